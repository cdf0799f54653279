"""When jobs of an experiment ran and on which device: what a whole study cost, although jobs shared it.

job ─▶ Span ─▶ runs/spans.jsonl ─ pack_spans ─▶ results/spans.jsonl ─▶ device_minutes: time a device had work, once
"""

import time
from pathlib import Path

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict

from chameleon_lite import files

from .layers import LEARNING_RATES
from .provenance import device_name
from .records import load_records

FILE = "spans.jsonl"


class Span(BaseModel):
    """One job (in older lines one process) on a corpus and a device, in seconds since 1970."""

    model_config = ConfigDict(extra="forbid")

    experiment: str
    corpus: str
    device: str  # an identity, not a kind: two processes with the same one shared it
    device_name: str
    started: float
    ended: float
    source: str = "the process itself"


def span_of(experiment: str, corpus: str, started: float, device: torch.device) -> Span:
    """The span that ends now."""
    identity = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else "cpu"
    name = device_name(str(device))
    ended = time.time()
    return Span(
        experiment=experiment, corpus=corpus, device=identity, device_name=name, started=started, ended=ended
    )


def note(span: Span, runs: Path) -> None:
    """Add a span to those of a folder of runs."""
    runs.mkdir(parents=True, exist_ok=True)
    with open(runs / FILE, "a") as file:
        file.write(span.model_dump_json() + "\n")


def pack_spans(experiment: str, runs: Path, results: Path) -> Path:
    """Add an experiment's spans to `results/spans.jsonl`; one that is there already stays one."""
    path = results / FILE
    with files.locked(runs / FILE):  # experiments that end side by side share the file
        spans = load_spans(results) + [s for s in load_spans(runs) if s.experiment == experiment]
        lines = {(s.experiment, s.device, s.started): s.model_dump_json() + "\n" for s in spans}
        with files.atomic(path) as part:
            part.write_text("".join(line for _, line in sorted(lines.items())))
    return path


def load_spans(results: Path) -> list[Span]:
    """The spans of a folder, none where there is no file."""
    path = Path(results) / FILE
    lines = path.read_text().splitlines() if path.is_file() else []
    return [Span.model_validate_json(line) for line in lines]


def device_minutes(spans: list[Span]) -> pd.DataFrame:
    """One row per experiment and one for all: spans, devices, and the minutes in which a device had work of it.

    Time that several spans share on one device counts once, so rows need not add up to the last one.
    """
    rows = []
    for name in [*dict.fromkeys(s.experiment for s in spans), None]:
        of_name = [s for s in spans if name in (None, s.experiment)]
        devices = {s.device for s in of_name}
        seconds = sum(_covered([s for s in of_name if s.device == d]) for d in devices)
        rows.append(
            {
                "experiment": name or "all of them",
                "spans": len(of_name),
                "devices": len(devices),
                "device": ", ".join(sorted({s.device_name for s in of_name})),
                "device minutes": seconds / 60,
            }
        )
    return pd.DataFrame(rows)


def unnoted_minutes(path: Path, spans: list[Span]) -> float:
    """Minutes of training that an experiment's records tell of on corpora without a span, one run after another.

    For regimes with LoRA in the layers, whose record gives the mean of a run's learning rates. 0 without the file.
    """
    known = {(s.experiment, s.corpus) for s in spans}
    records = load_records(path) if path.is_file() else []
    records = [r for r in records if (r.experiment, r.corpus) not in known]
    return sum(r.seconds["training"] for r in records) * len(LEARNING_RATES) / 60


def _covered(spans: list[Span]) -> float:
    """Seconds that lie within at least one of the spans."""
    total, until = 0.0, float("-inf")
    for s in sorted(spans, key=lambda s: s.started):
        total += max(0.0, s.ended - max(s.started, until))
        until = max(until, s.ended)
    return total
