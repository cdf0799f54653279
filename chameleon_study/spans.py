"""When jobs of an experiment ran and on which device: what a whole study cost, although jobs shared it.

job ─▶ Span ─▶ runs/spans.jsonl ─ pack_spans ─▶ results/spans.jsonl ─▶ device_minutes: time a device had work, once
"""

import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ValidationError

from chameleon_lite import files

from .provenance import device_name
from .stored import read, storing

FILE = "spans.jsonl"


class Span(BaseModel, extra="forbid"):
    """One job (in older lines one process) on a corpus and a device, in seconds since 1970."""

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
    where = {"device": identity, "device_name": device_name(str(device))}
    return Span(experiment=experiment, corpus=corpus, started=started, ended=time.time(), **where)


def note(span: Span, runs: Path) -> None:
    """Add a span to those of a folder of runs."""
    runs.mkdir(parents=True, exist_ok=True)
    with open(runs / FILE, "a", encoding="utf-8") as file:
        file.write(span.model_dump_json() + "\n")


def pack_spans(experiment: str, runs: Path, results: Path) -> Path:
    """Add an experiment's spans to `results/spans.jsonl`; one that is there already is not doubled."""
    path = results / FILE
    with files.locked(runs / FILE):  # experiments that end at the same time share the file
        spans = load_spans(results) + [s for s in load_spans(runs) if s.experiment == experiment]
        lines = {(s.experiment, s.device, s.started): s.model_dump_json() + "\n" for s in spans}
        with storing(path) as part:
            part.write_text("".join(lines[key] for key in sorted(lines)), encoding="utf-8")
    return path


def load_spans(results: Path) -> list[Span]:
    """The spans of a folder, none where there is no file; a line that a kill cut is none."""
    path, spans = Path(results) / FILE, []
    for line in read(path).splitlines() if path.is_file() else []:
        with suppress(ValidationError):
            spans.append(Span.model_validate_json(line))
    return spans


def device_minutes(spans: list[Span]) -> pd.DataFrame:
    """One row per experiment and one for all: spans, devices, and the minutes in which a device had work of it.

    Time that several spans share on one device counts once, so rows need not add up to the last one.
    """
    rows = []
    for name in [*dict.fromkeys(s.experiment for s in spans), "all of them"]:
        some = [s for s in spans if name in (s.experiment, "all of them")]
        devices = {s.device for s in some}
        minutes = sum(_covered([s for s in some if s.device == device]) for device in devices) / 60
        kinds = ", ".join(sorted({s.device_name for s in some}))
        rows.append((name, len(some), len(devices), kinds, minutes))
    return pd.DataFrame(rows, columns=["experiment", "spans", "devices", "device", "device minutes"])


def _covered(spans: list[Span]) -> float:
    """Seconds that lie within at least one of the spans."""
    start, end = np.array(sorted((s.started, s.ended) for s in spans)).T
    before = np.maximum.accumulate(np.append(-np.inf, end[:-1]))  # the latest end so far
    return float(np.maximum(0.0, end - np.maximum(start, before)).sum())
