"""The files of each run, its name, and what may enter `results/`.

runs/<name>/record.json + documents.parquet   raw, one folder per run, renamed into place when complete
results/<experiment>.jsonl + .parquet         packed: every record of an experiment, every per-document loss
"""

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from chameleon_lite import files
from chameleon_lite.errors import UserError

from .config import Experiment

HONEST = "honest-"  # files of results that the honest study's experiments are packed into
FOREIGN = "foreign-"  # readings with foreign rows, and experiments that supply them
TRANSFER = "transfer:"  # readings of another corpus's test documents
ARTICLES = "wikitext"  # corpora of that name: their rows' `group` is the article
NOT_RECORDS = ("proofs", "spans")
REFUSED_BACKBONES = ("tiny", "random-gpt2")


class Record(BaseModel):
    """One trained (or frozen) head, measured."""

    model_config = ConfigDict(extra="forbid")

    name: str
    experiment: str
    regime: str
    backbone: str
    corpus: str
    seed: int
    profile: str
    settings: dict[str, Any]
    learning_rate: float | None
    learning_rate_trials: dict[str, dict[str, float]] = {}  # rate ▶ sweep seed ▶ nats per token
    metrics: dict[str, float]
    curve: list[dict[str, float | None]] = []
    positions: list[dict[str, float]] = []  # test nll sums by scored position
    trainable_parameters: int
    stored_bytes: int
    seconds: dict[str, float]
    peak_memory_bytes: dict[str, int]
    status: Literal["done", "failed"] = "done"
    failure: str | None = None
    data: dict[str, Any]
    provenance: dict[str, Any]

    def measured(self) -> dict[str, Any]:
        """The fields that equal settings and seed must reproduce bit for bit on one machine."""
        return {"metrics": self.metrics, "curve": self.curve, "learning_rate": self.learning_rate}


def name_of(settings: Experiment, regime: str, corpus: str, seed: int) -> str:
    """`<regime>--<backbone>--<corpus>--<8 hex of the settings>--seed<k>`, safe as a file name.

    The hex digits cover what changes the run's numbers, not which other runs the file lists.
    """
    rates = {k: v for k, v in settings.learning_rates.items() if k == regime}
    alone = {"regimes": (regime,), "corpora": (corpus,), "seeds": 1, "name": "run", "what": ""}
    key = settings.model_copy(update=alone | {"learning_rates": rates}).key()
    parts = (re.sub(r"[/\\:]", "_", part) for part in (regime, settings.backbone, corpus))  # paths, hub ids
    return "--".join([*parts, key, f"seed{seed}"])


def write_run(folder: Path, record: Record, documents: pd.DataFrame) -> Path:
    """Write a run's folder whole under its name; returns it."""
    final = folder / record.name
    with files.atomic(final) as part:
        part.mkdir()
        (part / "record.json").write_text(record.model_dump_json(indent=1))
        documents.to_parquet(part / "documents.parquet", index=False)
    return final


def read_run(folder: Path, name: str) -> Record | None:
    """A run's record if it is there and complete, else None; a damaged one is never taken for a result."""
    path = folder / name / "record.json"
    try:
        return Record.model_validate_json(path.read_text()) if path.is_file() else None
    except ValueError:
        return None


def pack(experiment: str, names: list[str], runs: Path, results: Path) -> tuple[Path, Path]:
    """Collect the named runs into `results/<experiment>.jsonl` and `.parquet`; refuses what must not be kept."""
    records = [read_run(runs, name) for name in names]
    if missing := [name for name, record in zip(names, records) if record is None]:
        raise UserError(f"{len(missing)} runs are incomplete, first {missing[0]}: run again with --resume")
    for r in records:
        refuse_unfit(r.name, r.profile, r.backbone)
    frames = [pd.read_parquet(runs / name / "documents.parquet").assign(run=name) for name in names]
    jsonl, parquet = results / f"{experiment}.jsonl", results / f"{experiment}.parquet"
    with files.atomic(jsonl) as part:
        part.write_text("".join(r.model_dump_json() + "\n" for r in records))
    frame = pd.concat(frames, ignore_index=True)
    frame = frame.astype({"run": "category", "document": "category", "nll": np.float32})
    with files.atomic(parquet) as part:
        frame.to_parquet(part, index=False, compression="zstd")
    return jsonl, parquet


def load_records(path: Path) -> list[Record]:
    """The records of one packed experiment."""
    return [Record.model_validate_json(line) for line in Path(path).read_text().splitlines() if line]


def record_files(folder: Path) -> list[Path]:
    """The packed experiments of a results folder; other files there (proofs.jsonl) hold no records."""
    return [path for path in sorted(Path(folder).glob("*.jsonl")) if path.stem not in NOT_RECORDS]


def load_results(folder: Path) -> list[Record]:
    """Every record under a results folder, experiment by experiment."""
    return [record for path in record_files(folder) for record in load_records(path)]


def refuse_unfit(what: str, profile: str, backbone: str) -> None:
    """UserError for results of the smoke profile and of random weights: they are shown, never kept."""
    if profile == "smoke":
        raise UserError(f"{what} comes from the smoke profile: shown, never kept in results")
    if backbone.startswith(REFUSED_BACKBONES):
        raise UserError(f"{what} comes from {backbone}, whose weights are random: not a result")
