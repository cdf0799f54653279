"""Who stands beside whom: the order of documents in an epoch and the conditioning groups cut from it.

    labels (N,) or None ─ arrange ─▶ order (N,), runs of one cluster ─ steps ─▶ 32 rows an optimiser step
                                                              └ groups(g) ─▶ group of each document, at most g rows

Steps always hold the same number of rows, whatever the groups are; a group that straddles two steps keeps one
condition in both. Group sizes can thus be compared at equal steps (claim 6).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Arrangement:
    """One epoch's order. `cluster` (N,) along the order, or None when the order is random."""

    order: Tensor  # (N,) int64, document numbers
    cluster: Tensor | None

    def steps(self, rows: int) -> list[Tensor]:
        """The order cut into runs of `rows` documents; the last may be shorter."""
        return list(self.order.split(rows))

    def groups(self, size: int) -> Tensor:
        """The group number of each document (N,), numbered along the order; no group spans two clusters.

        A cluster's run is cut into equal parts of at most `size` rows; a random order into runs of exactly `size`,
        a rest below half of it joining the run before.
        """
        along = torch.zeros(len(self.order), dtype=torch.int64)
        if self.cluster is None:
            along = torch.arange(len(self.order)) // size
            rest = len(self.order) % size
            if 0 < rest < size / 2 and len(self.order) > size:
                along[-rest:] -= 1
        else:
            parts = (self._run_length + size - 1) // size  # (N,) parts of the run each place belongs to
            part = self._within * parts // self._run_length
            along = torch.cumsum(_starts(self._run * (int(parts.max()) + 1) + part), 0) - 1
        out = torch.empty_like(along)
        out[self.order] = along
        return out

    @cached_property
    def _run(self) -> Tensor:
        return torch.cumsum(_starts(self.cluster), 0) - 1  # (N,) number of the run at each place

    @cached_property
    def _run_length(self) -> Tensor:
        return torch.bincount(self._run)[self._run]

    @cached_property
    def _within(self) -> Tensor:
        lengths = torch.bincount(self._run)
        return torch.arange(len(self.order)) - (lengths.cumsum(0) - lengths)[self._run]


def arrange(n: int, labels: Tensor | None, generator: torch.Generator) -> Arrangement:
    """A fresh order of n documents: shuffled, and with `labels` (N,) the clusters kept together, in shuffled order."""
    order = torch.randperm(n, generator=generator)
    if labels is None:
        return Arrangement(order, None)
    labels = labels.cpu()
    rank = torch.randperm(int(labels.max()) + 1, generator=generator)  # a cluster's place among the clusters
    order = order[torch.argsort(rank[labels[order]], stable=True)]
    return Arrangement(order, labels[order])


def _starts(values: Tensor) -> Tensor:
    """1 where a value differs from the one before (N,), 1 at the first."""
    return torch.cat([values.new_ones(1), (values[1:] != values[:-1]).long()])
