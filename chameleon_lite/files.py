"""Where files live, and how they get there whole.

`home` is the cache folder, `atomic` writes under a temporary name and renames, `locked` keeps two processes
off one file, `sha256` and `verified` compare a checksum, `write_sealed` puts it into a JSON file itself. A
file under its final name is complete; what a killed process leaves has a `.part-` name and is ignored.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock

from .errors import DamagedFile


def home() -> Path:
    """The cache folder: $CHAMELEON_LITE_HOME, else chameleon-lite in $XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("CHAMELEON_LITE_HOME"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "chameleon-lite"


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on any failure.

    The block may create a file or a folder at the temporary path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".part-{path.name}-", dir=path.parent)) / path.name
    try:
        yield part
        if path.is_dir() and part.is_dir():
            shutil.rmtree(path)  # os.replace cannot put a folder over one that has content
        os.replace(part, path)
    finally:
        shutil.rmtree(part.parent, ignore_errors=True)


@contextmanager
def locked(path: Path | str) -> Iterator[None]:
    """Hold the lock of `path`: one process at a time, others wait; no lock where nothing can be written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    writable = os.access(path.parent, os.W_OK)
    with FileLock(str(path.parent / f".{path.name}.lock")) if writable else nullcontext():
        yield


def sha256(path: Path | str) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verified(path: Path | str, expected: str) -> Path:
    """`path` if its sha256 is `expected`; raises DamagedFile, naming the file, if not."""
    if not Path(path).is_file():
        raise DamagedFile(f"{path} is missing")
    if (actual := sha256(path)) != expected:
        what = f"sha256 {actual[:12]}…, expected {str(expected)[:12]}…"
        raise DamagedFile(f"{path} is damaged: {what}; remove it and fetch it again")
    return Path(path)


def write_sealed(path: Path | str, content: dict) -> None:
    """Write a JSON object and, under its key "seal", the checksum that `read_sealed` compares."""
    with atomic(path) as part:
        part.write_text(json.dumps(content | {"seal": seal(content)}, indent=1), encoding="utf-8")


def read_sealed(path: Path | str) -> dict:
    """The object that `write_sealed` wrote, without the seal; DamagedFile, naming the file, if not that."""
    # what is no JSON, or no object with a seal
    with suppress(ValueError, RecursionError, AttributeError, KeyError, TypeError):
        content = json.loads(Path(path).read_bytes())
        if content.pop("seal") == seal(content):
            return content
    raise DamagedFile(f"{path} is damaged: its content is not what its checksum promises; remove it")


def seal(content: dict) -> str:
    """The checksum of a JSON object, as it will be read: keys are texts, tuples are lists."""
    content = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
