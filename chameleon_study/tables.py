"""Records to tables: every mean with its n and interval, every row with its circumstances."""

from pathlib import Path

import numpy as np
import pandas as pd

from chameleon_lite.errors import UserError

from .claims.contrasts import articles_of, by_unit
from .claims.paper import published_parameters
from .claims.statistics import contrast, mean_interval
from .parameters import parameter_table
from .records import Record, load_records, record_files
from .regimes import REGIMES
from .stored import read_losses


def parameter_frame(backbone: str) -> pd.DataFrame:
    """The parameter column derived for a backbone, beside the paper's (Tables 1 and 2) where it has one."""
    paper = published_parameters() if "gpt2" in backbone else {}
    rows = [
        (part, f"{n:,}", f"{paper[part]:,}" if part in paper else "–")
        for part, n in parameter_table(backbone).items()
    ]
    return pd.DataFrame(rows, columns=["part", "derived", "paper"])


def documents_of(records: list[Record], folder: Path) -> pd.DataFrame:
    """Per-document losses of the given records: from `runs/<name>/` or from a packed parquet in `folder`."""
    folder = Path(folder)
    packed = [folder / f"{experiment}.parquet" for experiment in {r.experiment for r in records}]
    raw = {r.name: folder / r.name / "documents.parquet" for r in records}
    frames = [read_losses(path) for path in packed if path.is_file()]
    frames += [read_losses(path).assign(run=name) for name, path in raw.items() if path.is_file()]
    if not frames:
        raise UserError(f"no per-document losses in {folder}: run the experiment there first")
    categories = {"run": "category", "split": "category"}  # compared once per record, not once per row
    return pd.concat(frames, ignore_index=True).astype(categories)


def loss_matrix(
    records: list[Record], documents: pd.DataFrame, articles: dict[str, str] = {}
) -> tuple[np.ndarray, np.ndarray]:
    """nll sums (S, N) of one regime's records and tokens (N,), in the units of `contrasts.by_unit`."""
    rows, tokens = [], None
    for record in sorted(records, key=lambda r: r.seed):
        of_run = documents[(documents["run"] == record.name) & (documents["split"] == "test")]
        nll, tokens = by_unit(of_run, record.corpus, articles)
        rows.append(nll)
    return np.stack(rows), tokens


def summary_frame(records: list[Record], folder: Path) -> pd.DataFrame:
    """One row per regime and corpus: n seeds, nats per token and the difference from R0, with intervals."""
    documents, articles = documents_of(records, folder), articles_of(Path(folder))
    groups: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for r in records:
        groups.setdefault((r.corpus, r.backbone), {}).setdefault(r.regime, []).append(r)
    rows = []
    for (corpus, backbone), group in groups.items():
        base = loss_matrix(group["R0"], documents, articles)[0] if group.get("R0") else None
        for name, of_regime in group.items():
            done = [r for r in of_regime if r.status == "done"]
            if not done:
                rows.append({"regime": name, "corpus": corpus, "n seeds": 0, "test nll": "diverged"})
                continue
            nll, tokens = loss_matrix(done, documents, articles)
            against = None if base is None or name == "R0" else contrast(nll, base[: len(nll)], tokens)
            mean, first = mean_interval(nll, tokens), done[0]
            row = {"regime": name, "what": REGIMES[name].title if name in REGIMES else ""}
            row |= {"backbone": backbone, "corpus": corpus, "n seeds": mean.n, "documents": mean.documents}
            row |= {"parameters": first.trainable_parameters, "learning rate": first.learning_rate}
            row |= {"test nll": mean.text(".4f")}
            row |= {"difference from R0": against.text(".4f") if against else "–", "profile": first.profile}
            rows.append(row)
    return pd.DataFrame(rows)


def results_frame(results: Path) -> pd.DataFrame:
    """The summary of every packed experiment of the honest study, with its command."""
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
    fields = ("regime", "corpus", "seed", "learning_rate")
    return pd.DataFrame([{f: getattr(r, f) for f in fields} | point for r in records for point in r.curve])
