"""What this machine has and lacks, each lack with the command that mends it (`chameleon-lite doctor`)."""

import os
import platform
import shutil
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import torch

from .. import files
from ..backbones import hub
from ..backbones.card import template
from ..backbones.formats import device_of, matmul_dtype

PACKAGES = ("torch", "transformers", "peft", "accelerate", "scikit-learn", "gguf")
EXTRAS = {"datasets": "hub", "umap-learn": "book", "torchmetrics": "generate", "distributed": "cluster"}


def report(timeout: float = 1.0) -> str:
    """The report as text, by doctor.jinja; `timeout` seconds are the limit of the probe of the hub."""
    home, device, versions = files.home(), device_of(), {}
    for name in (*PACKAGES, *EXTRAS):
        with suppress(PackageNotFoundError):
            versions[name] = None
            versions[name] = version(name)
    place = next(path for path in (home, *home.parents) if path.exists())
    facts = {
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": str(matmul_dtype(device)).removeprefix("torch."),
        "reachable": hub.reachable(timeout),
        "usable": place.is_dir() and os.access(place, os.W_OK),
        "free": shutil.disk_usage(place).free,
        "smollm2": any(home.glob("smollm2/**/*.safetensors")),
        "states": sum(path.stat().st_size for path in home.glob("states/*.npy")),
    }
    known = {"versions": versions, "extras": EXTRAS, "device": device, "offline": hub.offline(), "home": home}
    return template(__file__).render(facts | known).rstrip("\n")
