"""The vectors that condition a head: one per group of training documents, or per group of a batch of prompts.

    prompt tokens ─ mean embedding, unit norm ─▶ vectors (B, C) ─ nearest stored centroid ─▶ cluster (B,)
      "cluster"   the mean over the batch's prompts of the same cluster (the paper's)
      "centroid"  the stored centroid itself: a prompt's result does not depend on its neighbours
      "row"       the prompt's own vector
    training: vectors (N, C) of documents ─ arrangement.groups ─ GroupMean ─▶ the mean of each group

`train.Source` states what a source of training gives. Tokens that are scored are never read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .backbones.formats import sums_on
from .backbones.transfer import sent
from .batches import Arrangement
from .cluster import nearest_centroid
from .embed import masked_mean, normalise
from .errors import UserError, known
from .heads import Condition

MODES = ("cluster", "centroid", "row")


def group_means(vectors: Tensor, group: Tensor) -> Tensor:
    """The mean of the vectors (X, C) of each group, group (X,) in 0 … G - 1: (G, C).

    Sorted and reduced by segment: unlike scattered additions it gives a GPU the same bits every time.
    unsafe: the lengths are right, and checking them would make the host wait for the device.
    """
    place, lengths = torch.argsort(group, stable=True), torch.bincount(group)
    x, how = vectors.to(sums_on(vectors.device)), {"axis": 0, "unsafe": True}
    means = torch.segment_reduce(x[sent(place, x.device)], "mean", lengths=sent(lengths, x.device), **how)
    return means.to(vectors.device)


@dataclass(frozen=True, eq=False)
class GroupMean:
    """Source: the mean of vectors (N, C) over a row's group (paper, section 3.1).

    A group has at most `size` documents, in a random order about so many. The study's sources derive from it.
    """

    vectors: Tensor
    size: int

    def __call__(self, arrangement: Arrangement, rows: Tensor) -> tuple[Condition, Tensor | None]:
        of, key = arrangement.groups(self.size).of, (self.size, self.vectors)
        means = arrangement.once(key, lambda: group_means(self.vectors, of))  # all groups'
        group, row_group = torch.unique(of[rows], return_inverse=True)  # (G,), (B,)
        vectors = means[sent(self.read(arrangement, group), means.device)]
        return Condition(vectors), row_group if len(group) > 1 else None

    def read(self, arrangement: Arrangement, group: Tensor) -> Tensor:
        """Which group's mean conditions each of the groups (G,); here its own."""
        return group


def conditions_of(sources: Sequence, arrangement: Arrangement, rows: Tensor) -> list[tuple]:
    """What each source gives for documents rows (B,); a source that heads share is called once."""
    given = {id(source): source and source(arrangement, rows) for source in sources}
    return [given[id(source)] or (None, None) for source in sources]


@dataclass(frozen=True)
class Grouped:
    """Of a batch of B prompts the condition of G groups, each row's group, cluster and distance to it."""

    condition: Condition
    group: Tensor  # (B,) int64, row of the condition
    cluster: Tensor  # (B,) int64, nearest centroid; 0 where there are none
    distance: Tensor  # (B,) Euclidean; 0 where there are no centroids


def prompt_vectors(embedded: Tensor, mask: Tensor) -> Tensor:
    """Embedded prompts (B, T, C) and mask (B, T) to vectors (B, C) float32 of norm 1; pads don't count."""
    return normalise(masked_mean(embedded.detach().float(), mask))


def grouped(vectors: Tensor, centroids: Tensor | None, mode: str = "cluster") -> Grouped:
    """Group vectors (B, C) by the nearest of centroids (K, C), with one condition per group.

    Without centroids all rows are one cluster; for "centroid" UserError, as for an unknown mode.
    """
    known("condition", [mode], MODES)
    if centroids is None or not len(centroids):
        if mode == "centroid":
            raise UserError('condition "centroid" needs stored centroids: use "cluster" or "row"')
        distance = vectors.new_zeros(len(vectors))
        cluster = torch.zeros_like(distance, dtype=torch.int64)
    else:
        centroids = centroids.to(vectors)
        cluster, distance = nearest_centroid(vectors, centroids)
    if mode == "row":
        each = torch.arange(len(vectors), device=vectors.device)
        return Grouped(Condition(vectors), each, cluster, distance)
    present, group = torch.unique(cluster, return_inverse=True)  # (G,), (B,)
    means = centroids[present] if mode == "centroid" else group_means(vectors, group)
    return Grouped(Condition(means), group, cluster, distance)
