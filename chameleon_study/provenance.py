"""The circumstances of a result: versions, commit, hash of the sources, device and command."""

import os
import platform
import subprocess
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("chameleon_lite", "chameleon_study", "chameleon_bench")
LIBRARIES = "torch transformers peft accelerate numpy scikit-learn scipy pandas pydantic".split()


@lru_cache
def source_hash() -> str:
    """sha256 over the source files of the three packages: what code made a record, also without a repository."""
    digest = sha256()
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@lru_cache
def commit() -> str:
    """`$CHAMELEON_LITE_COMMIT`, else the repository's HEAD (with `+` if files differ), else "unknown"."""
    given = os.environ.get("CHAMELEON_LITE_COMMIT")
    if given:
        return given
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def installed(library: str, otherwise: str = "absent") -> str:
    """The installed version of a library."""
    try:
        return version(library)
    except PackageNotFoundError:
        return otherwise


def provenance(device: str, command: str) -> dict[str, Any]:
    """Versions, commit, source hash, device and the command that made a run."""
    import torch

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
    """What a device is called by its maker."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
