"""What a corpus of an experiment will cost, said before it is spent.

steps × heads × seconds a head and step, timed on a few steps of this corpus on this device
"""

import time

import torch

from ..heads import LoraHead
from ..loss import head_losses
from .cohort import Context
from .regimes import Regime

PROBES, HEADS = (
    3,
    4,
)  # timed steps, after one that warms up, and heads in them, on a GPU; one of each on a CPU
SMALL = 100  # steps × heads that are not worth timing


def estimate(context: Context, regimes: list[Regime]) -> str:
    """One line: steps, heads of sweep and reported seeds, and the minutes they take at the measured speed."""
    settings = context.settings
    rows = settings.train.rows_per_step
    steps = -(-len(context.material.tables["train"]) // rows) * settings.train.epochs
    swept = {r.rate_of or r.name for r in regimes} - set(settings.learning_rates)
    sweep = len(swept) * len(settings.sweep.grid) * settings.sweep.seeds
    heads = sweep + len(regimes) * settings.seeds
    if steps * heads < SMALL:
        return f"cost: {steps} steps × {heads} heads, a small run"
    each = seconds_a_head(context)
    return (
        f"cost: {steps} steps × {heads} heads ({sweep} of the sweep) × {1000 * each:.1f} ms = "
        f"{steps * heads * each / 60:.1f} minutes at most, before early stopping"
    )


def seconds_a_head(context: Context) -> float:
    """Seconds of one optimiser step of one rank-4 head in a cohort, forward and backward."""
    material, scored = context.material, context.material.scored["train"]
    backbone, device = material.backbone, scored.device
    steps, count = (PROBES, HEADS) if device.type == "cuda" else (1, 1)
    heads = [LoraHead(backbone.width, backbone.vocab).to(device) for _ in range(count)]
    batch = torch.arange(min(context.settings.train.rows_per_step, scored.documents))
    for index in range(steps + 1):
        if index == 1:
            _wait(device)
            started = time.perf_counter()
        h, target, _ = scored.batch(batch)
        head_losses(h, target, material.weight, [head.factors() for head in heads]).sum().backward()
    _wait(device)
    return (time.perf_counter() - started) / steps / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
