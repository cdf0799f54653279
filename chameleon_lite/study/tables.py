"""Records to tables: every mean with its n and interval, every row with its circumstances."""

from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import UserError
from .contrasts import articles_of, by_unit
from .records import Record, load_records, record_files
from .regimes import REGIMES
from .statistics import Contrast, contrast, interval_text, mean_interval


def parameter_frame(backbone: str) -> pd.DataFrame:
    """The parameter column derived for a backbone, beside the paper's (Tables 1 and 2) where it has one."""
    from ..model.parameters import parameter_table
    from .paper import published_parameters

    published = published_parameters() if "gpt2" in backbone else {}
    rows = [
        {
            "part": part,
            "derived": "–" if count is None else f"{count:,}",
            "paper": _or_dash(published.get(part)),
        }
        for part, count in parameter_table(backbone).items()
    ]
    return pd.DataFrame(rows)


def documents_of(records: list[Record], folder: Path) -> pd.DataFrame:
    """Per-document losses of the given records: from `runs/<name>/` or from a packed parquet in `folder`."""
    frames = []
    for experiment in {r.experiment for r in records}:
        packed = Path(folder) / f"{experiment}.parquet"
        if packed.is_file():
            frames.append(pd.read_parquet(packed))
    for record in records:
        raw = Path(folder) / record.name / "documents.parquet"
        if raw.is_file():
            frames.append(pd.read_parquet(raw).assign(run=record.name))
    if not frames:
        raise UserError(f"no per-document losses in {folder}: run the experiment there first")
    joined = pd.concat(frames, ignore_index=True)
    return joined.astype({"run": "category", "split": "category"})  # compared once a record, not once a row


def loss_matrix(
    records: list[Record],
    documents: pd.DataFrame,
    split: str = "test",
    articles: dict[str, str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """nll sums (S, N) and tokens (N,) of one regime's records (one a seed) over the units that intervals draw.

    Units are documents, of WikiText articles; `articles` names those of the mixed stream's rows (`contrasts.by_unit`).
    """
    rows, tokens = [], None
    for record in sorted(records, key=lambda r: r.seed):
        own = documents[(documents["run"] == record.name) & (documents["split"] == split)]
        nll, tokens = by_unit(own, record.corpus, articles or {})
        rows.append(nll)
    return np.stack(rows), tokens


def summary_frame(records: list[Record], folder: Path, split: str = "test") -> pd.DataFrame:
    """One row a regime and corpus: n seeds, nats a token with interval, and the difference from the frozen model."""
    documents, articles = documents_of(records, folder), articles_of(Path(folder))
    rows = []
    for (corpus, backbone), group in _groups(records).items():
        base = _matrix(group.get("R0"), documents, split, articles)
        for name, own in group.items():
            done = [r for r in own if r.status == "done"]
            if not done:
                rows.append({"regime": name, "corpus": corpus, "n seeds": 0, "test nll": "diverged"})
                continue
            nll, tokens = loss_matrix(done, documents, split, articles)
            against = None if base is None or name == "R0" else contrast(nll, base[: len(nll)], tokens)
            rows.append(_row(name, corpus, backbone, done, mean_interval(nll, tokens), against, split))
    return pd.DataFrame(rows)


def results_frame(results: Path) -> pd.DataFrame:
    """The summary of every packed experiment of the honest study, with profile and command.

    Experiments under another protocol have tables of their own, `released_tables.released_frame`.
    """
    frames = []
    for path in record_files(results):
        records = load_records(path)
        if "protocol" in records[0].data:
            continue
        frame = summary_frame(records, Path(results))
        frame.insert(0, "experiment", path.stem)
        frame["command"] = records[0].provenance["command"]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def curve_frame(records: list[Record]) -> pd.DataFrame:
    """Validation and training loss by epoch, one row a record and validation."""
    rows = [
        {"regime": r.regime, "corpus": r.corpus, "seed": r.seed, "learning_rate": r.learning_rate, **point}
        for r in records
        for point in r.curve
    ]
    return pd.DataFrame(rows)


def _row(name, corpus, backbone, done, mean: Contrast, against: Contrast | None, split: str) -> dict:
    return {
        "regime": name,
        "what": REGIMES[name].title if name in REGIMES else "",
        "backbone": backbone,
        "corpus": corpus,
        "n seeds": mean.n,
        "documents": mean.documents,
        "parameters": done[0].trainable_parameters,
        "learning rate": done[0].learning_rate,
        f"{split} nll": _text(mean),
        "difference from R0": _text(against) if against else "–",
        "profile": done[0].profile,
    }


def _text(c: Contrast) -> str:
    return interval_text(c.difference, c.low, c.high)


def _groups(records: list[Record]) -> dict:
    out: dict = {}
    for record in records:
        out.setdefault((record.corpus, record.backbone), {}).setdefault(record.regime, []).append(record)
    return out


def _matrix(
    records: list[Record] | None, documents: pd.DataFrame, split: str, articles: dict
) -> np.ndarray | None:
    return None if not records else loss_matrix(records, documents, split, articles)[0]


def _or_dash(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
