"""Which number format a machine multiplies matrices in fast, decided by what its chip has.

The libraries' own answers are not asked: a GPU without 16-bit brain-float units says it supports the format and
then emulates it several times slower, and so do most CPUs.
"""

from functools import lru_cache
from pathlib import Path

import torch

CPU_FLAGS = {"avx512_bf16", "amx_bf16"}  # as /proc/cpuinfo spells them
FP16_CAPABILITY = (7, 0)  # tensor cores for IEEE half precision: V100, T4 and later
BF16_CAPABILITY = (8, 0)  # tensor cores for brain float: A100 and later


@lru_cache
def cpu_flags(path: str = "/proc/cpuinfo") -> frozenset[str]:
    """The instruction-set flags of the first processor; empty where the system does not list them."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return frozenset()
    return next(
        (frozenset(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), frozenset()
    )


def matmul_dtype(device: str | torch.device) -> torch.dtype:
    """The format for large matrix products: float16 on GPUs with tensor cores, bfloat16 on CPUs that have it.

    float16 also on GPUs that have both: same speed, eight times finer, and nothing here comes near its range.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.float16 if torch.cuda.get_device_capability(device) >= FP16_CAPABILITY else torch.float32
    if device.type == "cpu" and CPU_FLAGS & cpu_flags():
        return torch.bfloat16
    return torch.float32


def backbone_dtype(device: str | torch.device) -> torch.dtype:
    """The format for a whole transformer's forward pass: bfloat16 where it is fast, for its range; else as above."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= BF16_CAPABILITY:
        return torch.bfloat16
    return matmul_dtype(device)


def number_format(name: str, device: str | torch.device) -> torch.dtype:
    """A format by its name; "auto" is the one the device multiplies fast."""
    return matmul_dtype(device) if name == "auto" else getattr(torch, name)
