"""The order of the documents in one epoch, and the conditioning groups and batches cut from it.

    labels (N,) ── arrange ─▶ Arrangement: clusters side by side ─▶ groups of at most `size` documents of one cluster
                                                                 └▶ steps of `rows` documents

Released code: one list of batches, made before training, in the same order in every epoch.
Here: one arrangement per epoch; composition and order change, reproducibly.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .errors import UserError


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


def cluster_batches(labels: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    """Rows of labels (N,) as batches (≤ size,) int64, each of one cluster; a larger cluster is cut into several.

    Which rows of a large cluster meet and in which order batches come is drawn from the generator.
    Raises UserError when size is not between 1 and N.
    """
    _check(len(labels), size)
    shuffled = torch.randperm(len(labels), generator=generator)
    order = shuffled[labels.cpu()[shuffled].argsort(stable=True)]  # (N,) clusters together, random inside
    counts = torch.bincount(labels.cpu())  # (K,)
    starts = counts.cumsum(0) - counts
    inside = torch.arange(len(labels)) - starts.repeat_interleave(counts)  # (N,) rank inside the cluster
    first = torch.nonzero(inside % size == 0).flatten()  # where batches begin
    batches = torch.tensor_split(order, first[1:])
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def random_batches(n: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """Rows 0 … n - 1 in random order as batches (size,) int64; the last may be smaller.

    Raises UserError when size is not between 1 and n.
    """
    _check(n, size)
    return list(torch.randperm(n, generator=generator).split(size))


def _check(n: int, size: int) -> None:
    if not 1 <= size <= n:
        raise UserError(f"batch size {size} does not fit {n} documents; choose between 1 and {n}")
