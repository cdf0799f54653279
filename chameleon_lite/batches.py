"""The order of documents in one epoch, and the conditioning groups cut from it.

    labels (N,) or None ─ arrange ─▶ order (N,), clusters together ─ steps(rows_per_step) ─▶ optimiser steps
                                                                   └ groups(batch_rows) ─▶ conditioning groups

Both cut the order independently: steps hold the same number of documents whatever the groups are, so that
group sizes can be compared at equal steps; a group that straddles two steps has one condition in both, the
mean of all its documents.

Released code: one list of batches, made before training, in the same order in every epoch.
Here: an arrangement per epoch; composition and order both change with the generator, reproducibly.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Groups(NamedTuple):
    """G conditioning groups of N documents, numbered along the order."""

    of: Tensor  # (N,) the group of each document
    start: Tensor  # (G + 1,) where each group begins along the order; the study's


@dataclass(frozen=True, eq=False)
class Arrangement:
    """One epoch's order of N documents. It never changes, so what follows from it is computed once."""

    order: Tensor  # (N,) int64, document numbers
    cluster: Tensor | None = None  # (N,) along the order; None where the order is random
    sizes: tuple[int, ...] | None = None  # of batches that were given; None: steps are cut by number of rows
    _memo: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, batches: Sequence[Tensor]) -> "Arrangement":
        """The study's: the arrangement whose steps are these batches (B,), of whatever sizes."""
        return cls(torch.cat(list(batches)), None, tuple(len(batch) for batch in batches))

    def steps(self, rows: int | None = None) -> list[Tensor]:
        """The given batches, or the order in runs of `rows` (how many) documents, the last perhaps shorter.

        Raises ValueError where neither is there.
        """
        if self.sizes is None and rows is None:
            raise ValueError("steps: give the number of rows per step")
        return list(self.order.split(rows if self.sizes is None else list(self.sizes)))

    def groups(self, size: int) -> Groups:
        """Groups along the order, none of which spans two clusters.

        A cluster's run is cut into equal parts of at most `size` documents; a random order into runs of
        `size`: a rest joins the run before if it is below half of `size`, else it is a run.
        """
        return self.once(size, partial(self._groups, size))

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """compute(), called once per arrangement and key; its result may depend on these two alone."""
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]

    def _groups(self, size: int) -> Groups:
        place, of = torch.arange(len(self.order)), torch.empty_like(self.order)
        if self.cluster is None:
            along, rest = place // size, len(place) % size  # (N,) the group at each place along the order
            if 0 < rest < size / 2 and len(place) > size:
                along = along.clamp_max(len(place) // size - 1)
        else:
            runs = torch.unique_consecutive(self.cluster, return_counts=True)[1]
            length = runs.repeat_interleave(runs)  # (N,) of the run at each place
            within = place - (runs.cumsum(0) - runs).repeat_interleave(runs)
            part = within * ((length + size - 1) // size) // length
            along = ((within == 0) | (part != part.roll(1))).cumsum(0) - 1
        of[self.order] = along
        return Groups(of, torch.cat([along.new_zeros(1), torch.bincount(along).cumsum(0)]))


def arrange(n: int, labels: Tensor | None, generator: torch.Generator) -> Arrangement:
    """A fresh order of n documents: shuffled; with `labels` (N,), clusters together and shuffled too."""
    order = torch.randperm(n, generator=generator)
    if labels is None:
        return Arrangement(order)
    labels = labels.cpu()
    rank = torch.randperm(int(labels.max()) + 1, generator=generator)  # a cluster's place among the clusters
    order = order[torch.argsort(rank[labels[order]], stable=True)]
    return Arrangement(order, labels[order])
