"""Trained heads are read on held-out documents: test, other corpora's, seen ones, and with foreign rows around them.

heads ─ one pass an order of documents ─▶ nll (N,) a regime and split, and by position for the test split
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from chameleon_lite.conditions import Source
from chameleon_lite.heads import Head
from chameleon_lite.train import Member, evaluate

from .cohort import Context, order_of, source_of
from .names import FOREIGN, TRANSFER
from .prepare import Material, Seeded
from .regimes import Regime

POSITIONS = 16  # scored positions a bin of "nll by position"


@dataclass
class Measured:
    """One regime's per-document nll sums (N,) by split, in float64 on the host, and its loss by position."""

    nll: dict[str, Tensor] = field(default_factory=dict)
    positions: list[dict[str, float]] = field(default_factory=list)


class PositionSums:
    """Sums of token losses (heads, bins) over bins of scored positions, kept on the device."""

    def __init__(self, offsets: Tensor, bins: int) -> None:
        self.offsets, self.bins = offsets, bins
        self.nll: Tensor | float = 0.0
        self.count: Tensor | float = 0.0

    def __call__(self, nll: Tensor, document: Tensor) -> None:
        """Add a batch: nll (heads, M) and document numbers (M,), each document's rows side by side."""
        start = torch.ones_like(document, dtype=torch.bool)
        start[1:] = document[1:] != document[:-1]
        index = torch.arange(len(document), device=document.device)
        within = (
            index - torch.cummax(torch.where(start, index, 0), 0).values
        )  # (M,) scored position in its document
        bins = (within // POSITIONS).clamp_max(self.bins - 1)
        one = torch.nn.functional.one_hot(bins, self.bins).double()  # (M, bins)
        self.nll = self.nll + nll.double() @ one
        self.count = self.count + one.sum(0)

    def rows(self) -> list[list[dict[str, float]]]:
        """For every head the bins as {position, nll, tokens}; position is the bin's first, nll its sum in nats."""
        counts = self.count.tolist()
        return [
            [
                {"position": i * POSITIONS, "nll": v, "tokens": c}
                for i, (v, c) in enumerate(zip(values, counts))
                if c
            ]
            for values in self.nll.tolist()
        ]


def measure(
    context: Context, seeded: Seeded, regimes: list[Regime], members: dict[str, Member]
) -> dict[str, Measured]:
    """Read every split and probe once for every regime whose head (or that of `weights_of`) is at hand."""
    out = {r.name: Measured() for r in regimes}
    probes = context.settings.probes
    jobs = [(split, 0.0) for split in ("validation", "test", *context.material.probes)]
    jobs += [("test", share) for share in probes.foreign_shares if context.material.foreign is not None]
    for split, share in jobs:
        name = f"{FOREIGN}{round(100 * share)}" if share else split
        asked = [r for r in regimes if _asked(r, split, share, probes.foreign_regimes)]
        for order in sorted({order_of(context.settings, r) for r in asked}):
            cohort = [r for r in asked if order_of(context.settings, r) == order]
            watch = None
            if name == "test" and probes.position_bins:
                watch = PositionSums(context.material.scored[split].offsets, probes.position_bins)
            nll = _read(context, seeded, cohort, members, split, order, share, watch)
            for r, values in zip(cohort, nll.cpu()):
                out[r.name].nll[name] = values
            if watch is not None:
                for r, rows in zip(cohort, watch.rows()):
                    out[r.name].positions = rows
    return out


def _asked(r: Regime, split: str, share: float, foreign_regimes) -> bool:
    """An oracle knows only its own sources; foreign rows are for the regimes named in the settings."""
    return not (split.startswith(TRANSFER) and r.name.endswith("oracle")) and (
        not share or r.name in foreign_regimes
    )


def _read(
    context: Context,
    seeded: Seeded,
    cohort: list[Regime],
    members,
    split: str,
    order: str,
    share: float,
    watch,
) -> Tensor:
    material, settings = context.material, context.settings.train
    return evaluate(
        [head_and_source(r, members, material, seeded, split, share) for r in cohort],
        material.scored[split],
        seeded.epoch(split, order, 0),
        material.weight,
        rows=settings.rows_per_step,
        scale=settings.scale,
        processes=context.processes,
        watch=watch,
    )


def head_and_source(
    r: Regime, members: dict[str, Member], material: Material, seeded: Seeded, split: str, share: float = 0.0
) -> tuple[Head | None, Source | None]:
    """A regime's head, None for the frozen model, and its condition source for a split.

    `share` of the split's condition vectors are replaced by foreign ones.
    """
    member = members.get(r.weights_of or r.name)
    return member.head if member else None, source_of(r, material, seeded, split, share)
