"""Condition sources: each computes, for the rows of a step, the vectors that condition a head.

A source is built for one split and is called as `GroupMean` is, the paper's source, in the method's conditions.py.
Vectors come from the documents' condition spans (prefix or prompt), so nothing scored is read, except by the declared
leaks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from chameleon_lite.batches import Arrangement
from chameleon_lite.conditions import GroupMean, group_means
from chameleon_lite.heads import Condition

from .vectors import Views


@dataclass(frozen=True)
class Split:
    """What condition sources are built from: N documents of one split, by clusterings that were fitted on train."""

    views: Views  # vectors (N, C) by name
    cluster: Tensor  # (N,) nearest centroid of the batching clustering
    centroids: Tensor  # (K, C)
    routing: Tensor  # (N,) nearest centroid of the routing clustering
    domain: Tensor  # (N,) number of the document's source, which only an oracle reads

    @property
    def vectors(self) -> Tensor:
        """The honest vectors (N, C): normalised mean token embeddings of the condition spans."""
        return self.views["prefix"]


class OtherCluster(GroupMean):
    """Another cluster's mean: as informative in form as the row's, and about other documents (R7, R7b)."""

    def read(self, arrangement: Arrangement, group: Tensor) -> Tensor:
        """The groups (G,) far enough along the order to lie in another cluster."""
        first = arrangement.groups(self.size).start[:-1]
        shift = len(first) // 2
        if arrangement.cluster is not None:  # groups never span clusters
            _, runs = torch.unique_consecutive(arrangement.cluster[first], return_counts=True)
            shift = min(int(runs.max()), shift)
        return (group + shift) % len(first)


class LeaveOneOut(GroupMean):
    """The mean of the *other* documents of the row's group: context from the batch, none from the row (R10)."""

    def __call__(self, arrangement: Arrangement, rows: Tensor) -> tuple[Condition, Tensor]:
        condition, place = super().__call__(arrangement, rows)
        row = self.vectors[rows.to(self.vectors.device)]
        mean = condition.vector if place is None else condition.vector[place.to(row.device)]
        groups = arrangement.groups(self.size)
        size = groups.start.diff()[groups.of[rows]].to(row).unsqueeze(1)  # (B, 1)
        others = (mean * size - row) / (size - 1).clamp_min(1)
        return Condition(torch.where(size > 1, others, 0.0)), torch.arange(len(rows))


@dataclass(frozen=True, eq=False)
class Own:
    """Each row's vector of (N, C): per-sample conditioning; with `cluster` (N,) its label too (R12, the oracle)."""

    vectors: Tensor
    cluster: Tensor | None = None

    def __call__(self, arrangement: Arrangement, rows: Tensor) -> tuple[Condition, Tensor]:
        place = rows.to(self.vectors.device)
        label = None if self.cluster is None else self.cluster.to(place.device)[place]
        return Condition(self.vectors[place], cluster=label), torch.arange(len(rows))


@dataclass(frozen=True, eq=False)
class Counted:
    """Each row's vector and the counts (B, V) of the tokens in its condition span (R15)."""

    views: Views

    def __call__(self, arrangement: Arrangement, rows: Tensor) -> tuple[Condition, Tensor]:
        rows = rows.to(self.views.device)
        ids = self.views.tokens[rows]  # (B, P), padded with V
        counts = torch.zeros(len(rows), self.views.vocab + 1, device=ids.device)
        counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=counts.dtype))
        return Condition(self.views["prefix"][rows], counts=counts[:, :-1]), torch.arange(len(rows))


@dataclass(frozen=True, eq=False)
class StreamMean:
    """The mean over the step's rows of the same cluster (N,): nothing is waited for (claim 15)."""

    vectors: Tensor
    cluster: Tensor

    def __call__(self, arrangement: Arrangement, rows: Tensor) -> tuple[Condition, Tensor | None]:
        cluster, group = torch.unique(self.cluster[rows], return_inverse=True)  # (G,), (B,)
        means = group_means(self.vectors[rows.to(self.vectors.device)], group)
        return Condition(means), group if len(cluster) > 1 else None


@dataclass(frozen=True, eq=False)
class TrainCentroid:
    """The centroid (K, C) of the row's training cluster (N,): its information without its batch (R18)."""

    centroids: Tensor
    cluster: Tensor

    def __call__(self, arrangement: Arrangement, rows: Tensor) -> tuple[Condition, Tensor | None]:
        cluster, group = torch.unique(self.cluster[rows], return_inverse=True)
        vectors = self.centroids[cluster.to(self.centroids.device)]
        return Condition(vectors), group if len(cluster) > 1 else None


@dataclass(frozen=True, eq=False)
class BatchMean:
    """The plain mean of vectors (N, C) over the rows of a step: the whole batch is one conditioning group."""

    vectors: Tensor

    def __call__(self, arrangement: Arrangement, rows: Tensor) -> tuple[Condition, None]:
        return Condition(self.vectors[rows.to(self.vectors.device)].mean(0, keepdim=True)), None


@dataclass(frozen=True, eq=False)
class Constant:
    """The same vector (C,) for every group: the mean over the training documents (R3)."""

    vector: Tensor

    def __call__(self, arrangement: Arrangement, rows: Tensor) -> tuple[Condition, None]:
        return Condition(self.vector[None]), None
