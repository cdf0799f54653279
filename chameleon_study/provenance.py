"""The circumstances of a result: versions, commit, hash of the sources, device and command."""

import os
import platform
import re
import subprocess
import sys
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from chameleon_lite.backbones.adapters import portable

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("chameleon_lite", "chameleon_study", "chameleon_bench")
LIBRARIES = "torch transformers peft accelerate numpy scikit-learn scipy pandas pydantic".split()
HEAD = "git describe --always --abbrev=40 --dirty=+ --exclude=*".split()


@lru_cache
def source_hash() -> str:
    """sha256 over the three packages' source files and tables: the code behind a record, without a repository too."""
    digest = sha256()
    folders = [ROOT / package for package in PACKAGES]
    for path in sorted(
        p for folder in folders for kind in ("*.py", "*.yaml", "*.csv") for p in folder.rglob(kind)
    ):
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
    return {
        "versions": {"python": platform.python_version()} | {name: installed(name) for name in LIBRARIES},
        "commit": commit(),
        "source": source_hash(),
        "device": device,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "command": command,
    }


def device_name(device: str) -> str:
    """The maker's name of a device."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def circumstances(settings, device: torch.device, command: str) -> dict[str, Any]:
    """The fields of a record that do not depend on what was trained, from its Experiment, device and command."""
    settings = without_places(settings)
    return {
        "experiment": settings.name,
        "backbone": settings.backbone,
        "profile": settings.profile,
        "settings": settings.model_dump(mode="json"),
        "peak_memory_bytes": peak_memory(device),
        "provenance": provenance(str(device), command),
    }


def reset_peak(device: torch.device) -> None:
    """Start counting the peak memory of a device anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peak bytes of the process on the host and, where there is one, of the device."""
    import resource  # not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if device.type == "cuda":
        return {"host": peak, "device": torch.cuda.max_memory_allocated(device)}
    return {"host": peak}


def default_command() -> str:
    """The command line as typed (`CHAMELEON_LITE_COMMAND` in notebooks), absolute paths as `from_here` has them."""
    given = os.environ.get("CHAMELEON_LITE_COMMAND")
    words = given.split(" ") if given else ["chameleon-lite", *sys.argv[1:]]
    return " ".join(re.sub(r"(?<![^=,])/[^,]+|(?<=://).+", lambda part: from_here(part[0]), w) for w in words)


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
