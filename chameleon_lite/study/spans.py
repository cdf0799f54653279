"""When a process worked on an experiment and on which device: what a whole study cost, although processes shared it.

run_experiment ─▶ runs/spans/<experiment>--<corpus>--<host>-<pid>-<start>.json, written at the start and at the end
pack_spans     ─▶ results/spans.jsonl, one line a process ─▶ device_minutes: time a device had work, counted once
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict

from .. import cache
from .provenance import device_name
from .records import file_safe, load_records

FILE = "spans.jsonl"


class Span(BaseModel):
    """One process on one corpus and device, in seconds since 1970; `ended` is None if it was killed."""

    model_config = ConfigDict(extra="forbid")

    experiment: str
    corpus: str
    device: str  # an identity, not a kind: two processes with the same one shared it
    device_name: str
    started: float
    ended: float | None = None
    source: str = "the process itself"


@contextmanager
def noted(experiment: str, corpus: str, device: str, runs: Path) -> Iterator[None]:
    """Write a span around the work in hand."""
    span = Span(experiment=experiment, corpus=corpus, started=time.time(), **_identity(device))
    process = (
        f"{socket.gethostname()}-{os.getpid()}-{span.started:.6f}"  # a process may do several in a second
    )
    path = runs / "spans" / f"{experiment}--{file_safe(corpus)}--{process}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, span)
    try:
        yield
    finally:
        _write(path, span.model_copy(update={"ended": time.time()}))


def _write(path: Path, span: Span) -> None:
    with cache.atomic(path) as part:
        part.write_text(span.model_dump_json() + "\n")


def _identity(device: str) -> dict[str, str]:
    import torch

    if not device.startswith("cuda"):
        return {"device": "cpu", "device_name": device_name(device)}
    return {"device": str(torch.cuda.get_device_properties(device).uuid), "device_name": device_name(device)}


def pack_spans(experiment: str, runs: Path, results: Path) -> Path:
    """Add what is known of an experiment's processes to `results/spans.jsonl`; a span found there already stays one."""
    path = results / FILE
    found = [Span.model_validate_json(p.read_text()) for p in (runs / "spans").glob("*.json")]
    with cache.locked(runs / "locks" / FILE):  # experiments that end side by side share the file
        lines = {
            (s.experiment, s.device, s.started): s
            for s in [*load_spans(results), *(s for s in found if s.experiment == experiment)]
        }
        with cache.atomic(path) as part:
            part.write_text("".join(s.model_dump_json() + "\n" for _, s in sorted(lines.items())))
    return path


def load_spans(results: Path) -> list[Span]:
    """The spans of a results folder, none where there is no file."""
    path = Path(results) / FILE
    return (
        [Span.model_validate(json.loads(line)) for line in path.read_text().splitlines()]
        if path.is_file()
        else []
    )


def device_minutes(spans: list[Span]) -> pd.DataFrame:
    """A line an experiment and one for all: processes, devices, and the minutes in which a device had work of it.

    Time that several processes shared one device counts once, so lines need not add up to the last one. Processes
    that were killed count in `unfinished` alone.
    """
    rows = []
    for name in [*dict.fromkeys(s.experiment for s in spans), None]:
        own = [s for s in spans if name in (None, s.experiment)]
        ended = [s for s in own if s.ended is not None]
        rows.append(
            {
                "experiment": name or "all of them",
                "processes": len(own),
                "unfinished": len(own) - len(ended),
                "devices": len({s.device for s in own}),
                "device": ", ".join(sorted({s.device_name for s in own})),
                "device minutes": sum(
                    _covered([s for s in ended if s.device == d]) for d in {s.device for s in ended}
                )
                / 60,
            }
        )
    return pd.DataFrame(rows)


def unnoted_minutes(path: Path, spans: list[Span]) -> float:
    """Minutes of training that an experiment's records tell of on corpora without a span, one run after another.

    For regimes with LoRA in the layers, whose record gives the mean of a run's learning rates. 0 without the file.
    """
    if not path.is_file():
        return 0.0
    from .uncached import LEARNING_RATES  # brings PEFT along

    known = {(s.experiment, s.corpus) for s in spans}
    records = [r for r in load_records(path) if (r.experiment, r.corpus) not in known]
    return sum(r.seconds["training"] for r in records) * len(LEARNING_RATES) / 60


def _covered(spans: list[Span]) -> float:
    """Seconds that lie within at least one of the spans."""
    total, until = 0.0, float("-inf")
    for s in sorted(spans, key=lambda s: s.started):
        total += max(0.0, s.ended - max(s.started, until))
        until = max(until, s.ended)
    return total
