"""What a head is told about a group of documents before they are scored: one small class a kind of knowledge.

A condition source is built for one split; called with the rows (B,) of a step it returns the condition, one entry
a group, and each row's group (B,), or None where all rows share one. Vectors come from the views of the documents'
condition spans (prefix or prompt), so nothing scored is read, except by the declared leaks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..data.arrangement import Arrangement
from ..heads import Condition

PREFIX = "prefix"


@dataclass
class Split:
    """What condition sources may know of a split; `arrangement` changes every epoch.

    `views` are vectors (N, C) by name (views.py); labels (N,) and centroids come from clusterings fitted on train.
    """

    views: Mapping[str, Tensor]
    arrangement: Arrangement | None = None
    cluster: Tensor | None = None  # (N,) nearest centroid of the batching clustering
    centroids: Tensor | None = None  # (K, C)
    routing: Tensor | None = None  # (N,) nearest centroid of the routing clustering
    domain: Tensor | None = None  # (N,) number of the document's source, which only an oracle is told
    tokens: Tensor | None = None  # (N, P) ids of the condition span, padded with V
    cache: dict = field(default_factory=dict)  # of group means, shared by the sources of one arrangement

    @property
    def vectors(self) -> Tensor:
        """The honest vectors (N, C): normalised mean token embeddings of the condition spans."""
        return self.views[PREFIX]


class GroupMean:
    """The mean vector of the row's group of at most `size` documents (paper, section 3.1)."""

    def __init__(self, split: Split, size: int, view: str = PREFIX) -> None:
        self.split, self.size, self.view = split, size, view
        self._for: Arrangement | None = None

    def __call__(self, rows: Tensor) -> tuple[Condition, Tensor | None]:
        self._refresh()
        group, row_group = torch.unique(self.group_of[rows], return_inverse=True)  # (G,), (B,)
        vectors = self.means[self.told(group).to(self.means.device)]
        return Condition(vectors), row_group if len(group) > 1 else None

    def told(self, group: Tensor) -> Tensor:
        """The group whose mean the groups (G,) are told: their own."""
        return group

    def _refresh(self) -> None:
        """Group means (groups, C), once an arrangement."""
        if self._for is self.split.arrangement:
            return
        self._for = self.split.arrangement
        self.group_of = self._for.groups(self.size)  # (N,)
        self.sizes = torch.bincount(self.group_of)  # (groups,)
        vectors = self.split.views[self.view]
        place = torch.argsort(self.group_of, stable=True).to(vectors.device)
        self.means = torch.segment_reduce(
            vectors[place], "mean", lengths=self.sizes.to(vectors.device), axis=0
        )


class OtherCluster(GroupMean):
    """Another cluster's mean: as informative in form as one's own, and about other documents (R7, R7b)."""

    def told(self, group: Tensor) -> Tensor:
        """The group far enough along the order to lie in another cluster."""
        return (group + self._shift) % len(self.sizes)

    def _refresh(self) -> None:
        before = self._for
        super()._refresh()
        if before is self._for:
            return
        cluster = self._for.cluster
        if cluster is None:
            self._shift = len(self.sizes) // 2
            return
        of_group = torch.empty(len(self.sizes), dtype=torch.int64)
        of_group[self.group_of[self._for.order]] = cluster  # groups never span clusters
        _, runs = torch.unique_consecutive(of_group, return_counts=True)
        self._shift = min(int(runs.max()), len(self.sizes) // 2)


class LeaveOneOut(GroupMean):
    """The mean of the *other* documents of the row's group: context from the batch, none from the row (R10)."""

    def __call__(self, rows: Tensor) -> tuple[Condition, Tensor]:
        self._refresh()
        group = self.group_of[rows]
        own = self.split.views[self.view]
        device = own.device
        size = self.sizes[group].to(device, own.dtype).unsqueeze(1)  # (B, 1)
        mean = self.means[group.to(device)]
        others = (mean * size - own[rows.to(device)]) / (size - 1).clamp_min(1)
        others = torch.where(size > 1, others, torch.zeros_like(others))
        return Condition(others), torch.arange(len(rows))


class Own:
    """Each row's own vector: per-sample conditioning (R6, R11, R13, R20)."""

    def __init__(self, split: Split, view: str = PREFIX) -> None:
        self.split, self.view = split, view

    def __call__(self, rows: Tensor) -> tuple[Condition, Tensor]:
        vectors = self.split.views[self.view]
        return Condition(vectors[rows.to(vectors.device)]), torch.arange(len(rows))


class Routed(Own):
    """Each row's cluster in the routing clustering (R12)."""

    def __call__(self, rows: Tensor) -> tuple[Condition, Tensor]:
        return self._labelled(rows, self.split.routing)

    def _labelled(self, rows: Tensor, labels: Tensor) -> tuple[Condition, Tensor]:
        vectors = self.split.views[self.view]
        place = rows.to(vectors.device)
        return Condition(vectors[place], cluster=labels.to(vectors.device)[place]), torch.arange(len(rows))


class Oracle(Routed):
    """Each row's source, which no text says: the upper bound for routing in a mixed stream (claim 14)."""

    def __call__(self, rows: Tensor) -> tuple[Condition, Tensor]:
        return self._labelled(rows, self.split.domain)


class Counted(Own):
    """Each row's token counts over its condition span (R15)."""

    def __init__(self, split: Split, vocab: int) -> None:
        super().__init__(split)
        self.vocab = vocab

    def __call__(self, rows: Tensor) -> tuple[Condition, Tensor]:
        own, group = super().__call__(rows)
        ids = self.split.tokens[rows.to(self.split.tokens.device)]  # (B, P)
        counts = torch.zeros(len(rows), self.vocab + 1, device=ids.device)
        counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=counts.dtype))
        return Condition(own.vector, counts=counts[:, : self.vocab]), group


class StreamMean(Own):
    """The mean over the rows of the same cluster that arrived in the same step: nothing is waited for (claim 15)."""

    def __call__(self, rows: Tensor) -> tuple[Condition, Tensor | None]:
        cluster, row_group = torch.unique(self.split.cluster[rows], return_inverse=True)
        vectors = self.split.views[self.view]
        place = torch.argsort(row_group, stable=True)
        lengths = torch.bincount(row_group).to(vectors.device)
        own = vectors[rows[place].to(vectors.device)]
        means = torch.segment_reduce(
            own, "mean", lengths=lengths, axis=0, unsafe=True
        )  # (G, C); right by construction
        return Condition(means), row_group if len(cluster) > 1 else None


class TrainCentroid:
    """The centroid of the row's training cluster: a cluster's information without its batch (R18)."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __call__(self, rows: Tensor) -> tuple[Condition, Tensor | None]:
        cluster, row_group = torch.unique(self.split.cluster[rows], return_inverse=True)
        centroids = self.split.centroids
        return Condition(centroids[cluster.to(centroids.device)]), row_group if len(cluster) > 1 else None


class Constant:
    """The same vector for every group: the mean over the training documents (R3)."""

    def __init__(self, vector: Tensor) -> None:
        self.condition = Condition(vector[None])

    def __call__(self, rows: Tensor) -> tuple[Condition, None]:
        return self.condition, None
