"""What this machine has and lacks, each lack with the command that mends it (`chameleon-lite doctor`)."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

import torch

from .. import files
from ..backbones import hub
from ..backbones.formats import device_of, matmul_dtype

PACKAGES = ("torch", "transformers", "peft", "accelerate", "scikit-learn", "gguf")
EXTRAS = {"datasets": "hub", "umap-learn": "book", "torchmetrics": "generate", "distributed": "cluster"}


def report(timeout: float = 1.0) -> str:
    """The report as text; `timeout` seconds are the limit of the probe of the hub."""
    lines = [f"python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    lines += [_package(name) for name in (*PACKAGES, *EXTRAS)]
    return "\n".join([*lines, *_devices(), _hub(timeout), *_cached()])


def _package(name: str) -> str:
    try:
        return f"  {name} {version(name)}"
    except PackageNotFoundError:
        source = f"'chameleon-lite[{EXTRAS[name]}]'" if name in EXTRAS else name
        return f"  {name} is absent: pip install {source}"


def _devices() -> list[str]:
    names = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    cpu = f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    first = device_of()
    dtype = str(matmul_dtype(first)).removeprefix("torch.")
    return [f"device: {' · '.join([*names, cpu])}", f"  large products in {dtype} on {first}"]


def _hub(timeout: float) -> str:
    if hub.offline():
        return "model hub: switched off by HF_HUB_OFFLINE; smollm2 and docstrings need none"
    if hub.reachable(timeout):
        return "model hub: reachable"
    return "model hub: not reachable; use --backbone smollm2 and --corpus docstrings, or a local folder"


def _cached() -> list[str]:
    home = files.home()
    ready = any(home.glob("smollm2/**/*.safetensors"))
    size = sum(path.stat().st_size for path in home.glob("states/*.npy"))
    place = next(path for path in (home, *home.parents) if path.exists())
    usable, free = place.is_dir() and os.access(place, os.W_OK), shutil.disk_usage(place).free
    return [
        f"cache: {home}" + ("" if usable else " cannot be written: set CHAMELEON_LITE_HOME elsewhere"),
        "  smollm2: ready" if ready else "  smollm2: absent; chameleon-lite fetch smollm2 (93 MB)",
        f"  hidden states: {size / 1e6:.0f} MB",
        f"  free disk: {free / 1e9:.1f} GB",
    ]
