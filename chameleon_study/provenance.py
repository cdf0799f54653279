"""The circumstances of a result: versions, commit, sources, device and command; and when the jobs of a study ran.

job ─▶ Span ─▶ runs/spans.jsonl ─ pack_spans ─▶ results/spans.jsonl ─▶ device_minutes: time a device had work, once
"""

import os
import platform
import re
import subprocess
import sys
import time
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ValidationError

from chameleon_lite import files
from chameleon_lite.backbones.adapters import portable

from .stored import read, store_text

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("chameleon_lite", "chameleon_study", "chameleon_bench")
LIBRARIES = "torch transformers peft accelerate numpy scikit-learn scipy pandas pydantic".split()
FILE = "spans.jsonl"
HEAD = "git describe --always --abbrev=40 --dirty=+ --exclude=*".split()


@lru_cache
def source_hash() -> str:
    """sha256 over the three packages' source files and tables: the code behind a record, without a repository too."""
    digest = sha256()
    folders, kinds = [ROOT / package for package in PACKAGES], ("*.py", "*.yaml", "*.jinja", "*.csv")
    for path in sorted(p for folder in folders for kind in kinds for p in folder.rglob(kind)):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@lru_cache
def commit() -> str:
    """`$CHAMELEON_LITE_COMMIT`, else the repository's HEAD (with `+` if files differ), else "unknown"."""
    if given := os.environ.get("CHAMELEON_LITE_COMMIT"):
        return given
    try:
        return subprocess.run(HEAD, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def installed(library: str, otherwise: str = "absent") -> str:
    """The installed version of a library."""
    try:
        return version(library)
    except PackageNotFoundError:
        return otherwise


def provenance(device: str, command: str) -> dict[str, Any]:
    """Versions, commit, source hash, device and command of a run."""
    versions = {"python": platform.python_version()} | {name: installed(name) for name in LIBRARIES}
    code = {"versions": versions, "commit": commit(), "source": source_hash()}
    machine = {"device": device, "device_name": device_name(device), "threads": torch.get_num_threads()}
    return code | machine | {"command": command}


def device_name(device: str) -> str:
    """The maker's name of a device."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def circumstances(settings, device: torch.device, command: str) -> dict[str, Any]:
    """The fields of a record that do not depend on what was trained, from its Experiment, device and command."""
    settings = without_places(settings)
    names = {"experiment": settings.name, "backbone": settings.backbone, "profile": settings.profile}
    made = {"settings": settings.model_dump(mode="json"), "provenance": provenance(str(device), command)}
    return names | made | {"peak_memory_bytes": peak_memory(device)}


def reset_peak(device: torch.device) -> None:
    """Start counting the peak memory of a device anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peak bytes of the process on the host and, where there is one, of the device."""
    import resource  # not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    of_device = {"device": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}
    return {"host": peak} | of_device


def default_command() -> str:
    """The command line as typed (`CHAMELEON_LITE_COMMAND` in notebooks), absolute paths as `from_here` has them."""
    given = os.environ.get("CHAMELEON_LITE_COMMAND")
    words = given.split(" ") if given else ["chameleon-lite", *sys.argv[1:]]
    words = [re.sub(r"(?<![^=,])/[^,]+|(?<=://).+", lambda part: from_here(part[0]), word) for word in words]
    return re.sub(r"(?<=--dask.)(\w+://)?\S+", r"\1…", " ".join(words))  # tcp:// may be left out


def from_here(path: str) -> str:
    """An absolute path from home or from here, one that is in neither as `placeless`; of an address only `…`."""
    if not path.startswith("/"):
        return "…"
    name = portable(path, Path())
    return placeless(path) if name.startswith("./..") else name


def message_from_here(text: str) -> str:
    """A message with the absolute paths in it as `from_here` has them."""
    return re.sub(r"(?<![\w.~])/[^\s/\"':;,)]+/[^\s\"':;,)]+", lambda part: from_here(part[0]), text)


def placeless(name: str) -> str:
    """A corpus's or backbone's name in records: of an absolute path its last part and a hash of the whole."""
    path = os.path.normpath(os.path.expanduser(name))
    if not os.path.isabs(path):
        return name
    return f"local:{os.path.basename(path)}-{sha256(path.encode()).hexdigest()[:8]}"


def without_places(settings):
    """An Experiment whose corpora and backbone have the names of records; itself where no name is a path."""
    corpora, probes = (tuple(map(placeless, part.corpora)) for part in (settings, settings.probes))
    probes = settings.probes.model_copy(update={"corpora": probes})
    names = {"corpora": corpora, "backbone": placeless(settings.backbone), "probes": probes}
    return settings.model_copy(update=names)


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
    with files.locked(runs / FILE):  # experiments that end at the same time share the file
        spans = load_spans(results) + [s for s in load_spans(runs) if s.experiment == experiment]
        lines = {(s.experiment, s.device, s.started): s.model_dump_json() + "\n" for s in spans}
        return store_text(results / FILE, "".join(lines[key] for key in sorted(lines)))


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
