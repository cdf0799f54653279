"""The files of each run, its name, and what may enter `results/`.

runs/<name>/record.json + documents.parquet   raw, one folder per run, renamed into place when complete, with a checksum
results/<experiment>.jsonl + .parquet         packed: every record of an experiment, every per-document loss
"""

import hashlib
import re
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel

from chameleon_lite import files
from chameleon_lite.app.outputs import writing
from chameleon_lite.errors import DamagedFile, UserError

from .config import Experiment
from .provenance import placeless, without_places
from .stored import NOT_RECORDS, read_lines, store_text, storing

HONEST = "honest-"  # files of results that the honest study's experiments are packed into
FOREIGN = "foreign-"  # readings of clean rows among foreign ones, and experiments that supply them
CLEAN = "clean-"  # readings of the rows of a foreign reading that are not foreign, as without any
TRANSFER = "transfer:"  # readings of another corpus's test documents
ARTICLES = "wikitext"  # corpora of that name: their rows' `group` is the article
# scores of continued prompts
WITHIN = "batch_rouge_l"  # nan for a text that is alone in its batch
SCORES = ("rouge_l", "distinct_1", "distinct_2", "repeated", WITHIN, "batch_distinct_1", "batch_distinct_2")
KEPT = "complete runs are kept, and the same command goes on after them"
LONGEST = 90  # bytes of a backbone's or corpus's name in a file's, which file systems end at 255
REFUSED_BACKBONES = ("tiny", "random-gpt2")


class Record(BaseModel, extra="forbid"):
    """One trained (or frozen) head, measured."""

    name: str
    experiment: str
    regime: str
    backbone: str
    corpus: str
    seed: int
    profile: str
    settings: dict[str, Any]
    learning_rate: float | None
    choice: dict[str, float | str] = {}  # what else was tuned, where it is not the regime's own
    learning_rate_trials: dict[str, dict[str, float]] = {}  # choice ▶ sweep seed ▶ nats per token
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


def name_of(settings: Experiment, regime: str, corpus: str, seed: int) -> str:
    """`<regime>--<backbone>--<corpus>--<8 hex of the settings>--seed<k>`, safe as a file name.

    The hex digits cover what changes the run's numbers, not which other runs the file lists.
    """
    settings, corpus = without_places(settings), placeless(corpus)
    rates = {k: v for k, v in settings.learning_rates.items() if k == regime}
    alone = {"regimes": (regime,), "corpora": (corpus,), "seeds": 1, "name": "run", "what": ""}
    key = settings.model_copy(update=alone | {"learning_rates": rates}).key()
    return "--".join([regime, file_part(settings.backbone), file_part(corpus), key, f"seed{seed}"])


def file_part(name: str) -> str:
    """A path, hub id or name as a part of a file's name; of a long one the start, and a hash of the whole."""
    part = re.sub(r"[/\\:\0-\x1f]", "_", name)
    if len(part.encode()) <= LONGEST:
        return part
    start = part.encode()[: LONGEST - 13].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def try_folder(runs: Path) -> None:
    """Make a folder of runs and write into it, before any work: UserError or RunFailed where that is not possible."""
    if runs.is_file():
        raise UserError(f"{runs} is a file, and a folder is needed: choose another --out")
    with writing(runs):
        runs.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=runs).close()


def write_run(folder: Path, record: Record, documents: pd.DataFrame) -> None:
    """Write a run's folder whole under its name, record.json with a checksum of both files."""
    final, lock = folder / record.name, folder / "runs"  # two processes may write the same run
    with writing(final, KEPT), files.locked(lock), files.atomic(final) as part:
        part.mkdir()
        documents.to_parquet(part / "documents.parquet", index=False)
        content = record.model_dump(mode="json") | {"documents": files.sha256(part / "documents.parquet")}
        files.write_sealed(part / "record.json", content)
        if final.is_file():
            final.unlink()


def read_run(folder: Path, name: str) -> Record | None:
    """A run's record, None where there is no run; DamagedFile for a run that is not what was written under its name."""
    path = folder / name
    if not path.exists():
        return None
    try:
        content = files.read_sealed(path / "record.json")
        files.verified(path / "documents.parquet", content.pop("documents"))
        record = Record.model_validate(content)
    except (DamagedFile, OSError, KeyError, ValueError):
        raise DamagedFile(f"the run {path} is damaged or incomplete") from None
    if record.name != name:
        raise DamagedFile(f"{path} holds another run's record, that of {record.name}")
    return record


def stored_runs(folder: Path, names: list[str], hashes: dict[str, tuple], say) -> dict[str, Record]:
    """The runs that are there, undamaged, and of texts and a backbone as they are now, by their `hashes` per corpus."""
    records, changed, hashes = {}, [], {placeless(corpus): found for corpus, found in hashes.items()}
    for name in names:
        try:
            record = read_run(folder, name)
        except DamagedFile as error:
            say(f"{error}: it is made again")
            continue
        if record and hashes_of(record) == hashes[record.corpus]:
            records[name] = record
        elif record:
            changed.append(name)
    if changed:
        found = f"{len(changed)} runs, first {changed[0]}"
        say(f"texts or backbone are others than in {found}: they are made again")
    return records


def hashes_of(record: Record) -> tuple:
    """What a record's numbers come from: its texts, its backbone, and the other corpora that were read."""
    return record.data["hash"], record.data["backbone_hash"], record.data.get("transfers", {})


def pack(experiment: str, names: list[str], runs: Path, results: Path) -> tuple[Path, Path]:
    """Collect the named runs into `results/<experiment>.jsonl` and `.parquet`; refuses what must not be kept."""
    records = [read_run(runs, name) for name in names]
    if missing := [name for name, record in zip(names, records) if record is None]:
        raise UserError(f"{len(missing)} runs are incomplete, first {missing[0]}: run again with --resume")
    for r in records:
        refuse_unfit(r.name, r.profile, r.backbone)
    frames = [pd.read_parquet(runs / name / "documents.parquet").assign(run=name) for name in names]
    jsonl, parquet = results / f"{experiment}.jsonl", results / f"{experiment}.parquet"
    store_text(jsonl, "".join(r.model_dump_json() + "\n" for r in records))
    frame = pd.concat(frames, ignore_index=True)
    frame = frame.astype({"run": "category", "document": "category", "nll": np.float32})
    with storing(parquet) as part:
        frame.to_parquet(part, index=False, compression="zstd")
    return jsonl, parquet


def load_records(path: Path) -> list[Record]:
    """The records of one packed experiment; DamagedFile for a file that holds none, or anything else."""
    records = read_lines(Path(path), Record)
    if not records:
        raise DamagedFile(f"{path} holds no record: restore it, or pack its experiment again")
    return records


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
