"""Records to tables: every mean with its n and interval, every row with its circumstances."""

from pathlib import Path

import numpy as np
import pandas as pd

from chameleon_lite.errors import UserError

from .claims.contrasts import articles_of, by_unit
from .claims.statistics import Contrast, contrast, interval_text, mean_interval
from .records import Record, load_records, record_files
from .regimes import REGIMES


def parameter_frame(backbone: str) -> pd.DataFrame:
    """The parameter column derived for a backbone, beside the paper's (Tables 1 and 2) where it has one."""
    from .claims.paper import published_parameters
    from .parameters import parameter_table

    published = published_parameters() if "gpt2" in backbone else {}
    counts = parameter_table(backbone)
    rows = [
        (part, f"{n:,}", f"{published[part]:,}" if part in published else "–") for part, n in counts.items()
    ]
    return pd.DataFrame(rows, columns=["part", "derived", "paper"])


def documents_of(records: list[Record], folder: Path) -> pd.DataFrame:
    """Per-document losses of the given records: from `runs/<name>/` or from a packed parquet in `folder`."""
    packed = [Path(folder) / f"{experiment}.parquet" for experiment in {r.experiment for r in records}]
    frames = [pd.read_parquet(path) for path in packed if path.is_file()]
    raw = {r.name: Path(folder) / r.name / "documents.parquet" for r in records}
    frames += [pd.read_parquet(path).assign(run=name) for name, path in raw.items() if path.is_file()]
    if not frames:
        raise UserError(f"no per-document losses in {folder}: run the experiment there first")
    joined = pd.concat(frames, ignore_index=True)
    return joined.astype(
        {"run": "category", "split": "category"}
    )  # compared once per record, not once per row


def loss_matrix(
    records: list[Record],
    documents: pd.DataFrame,
    split: str = "test",
    articles: dict[str, str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """nll sums (S, N) and tokens (N,) of one regime's records (one per seed) over the units that intervals draw.

    Units are documents, of WikiText articles; `articles` names those of the mixed stream's rows (`contrasts.by_unit`).
    """
    rows, tokens = [], None
    for record in sorted(records, key=lambda r: r.seed):
        own = documents[(documents["run"] == record.name) & (documents["split"] == split)]
        nll, tokens = by_unit(own, record.corpus, articles or {})
        rows.append(nll)
    return np.stack(rows), tokens


def summary_frame(records: list[Record], folder: Path, split: str = "test") -> pd.DataFrame:
    """One row per regime and corpus: n seeds, nats per token and the difference from R0, with intervals."""
    documents, articles = documents_of(records, folder), articles_of(Path(folder))
    rows = []
    groups: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for record in records:
        group = groups.setdefault((record.corpus, record.backbone), {})
        group.setdefault(record.regime, []).append(record)
    for (corpus, backbone), group in groups.items():
        base = loss_matrix(group["R0"], documents, split, articles)[0] if group.get("R0") else None
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
    """Validation and training loss by epoch, one row per record and validation."""
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
