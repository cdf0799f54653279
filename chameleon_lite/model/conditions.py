"""What a batch of prompts tells the head: one vector a prompt, prompts of one cluster together, one condition a group.

    prompt tokens ─ mean embedding, length 1 ─▶ vectors (B, C) ─ nearest stored centroid ─▶ label (B,)
      "cluster"   the mean over the prompts at hand of the same cluster (the paper's)
      "centroid"  the stored centroid itself: a prompt's result does not depend on its neighbours
      "row"       the prompt's own vector

Only tokens that stand before the first scored or generated one are ever read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.clusters import nearest_centroid
from ..data.embeddings import masked_mean, normalise
from ..errors import UserError, unknown
from ..heads import Condition

MODES = ("cluster", "centroid", "row")


@dataclass(frozen=True)
class Grouped:
    """A batch's conditions: G groups, and for each of B rows its group, nearest cluster and distance to it."""

    condition: Condition
    group: Tensor  # (B,) int64, row of the condition
    cluster: Tensor  # (B,) int64, nearest centroid; 0 where there are none
    distance: Tensor  # (B,) Euclidean; 0 where there are no centroids


def prompt_vectors(embedded: Tensor, mask: Tensor) -> Tensor:
    """Embedded prompts (B, T, C) and mask (B, T) to vectors (B, C) of length 1, float32; pads don't count."""
    return normalise(masked_mean(embedded.detach().float(), mask))


def grouped(vectors: Tensor, centroids: Tensor | None, mode: str = "cluster") -> Grouped:
    """Group vectors (B, C) by the nearest of centroids (K, C) and make one condition a group.

    Without centroids all rows are one cluster. Raises UserError for an unknown mode, and for "centroid" without.
    """
    if mode not in MODES:
        raise unknown("condition", mode, MODES)
    none = centroids is None or not len(centroids)
    if none and mode == "centroid":
        raise UserError(
            'condition "centroid" needs stored centroids and this adapter has none: use "cluster" or "row"'
        )
    if none:
        distance = vectors.new_zeros(len(vectors))
        cluster = torch.zeros_like(distance, dtype=torch.int64)
    else:
        centroids = centroids.to(vectors)
        cluster, distance = nearest_centroid(vectors, centroids)
    if mode == "row":
        return Grouped(
            Condition(vectors), torch.arange(len(vectors), device=vectors.device), cluster, distance
        )
    ids, group = torch.unique(cluster, return_inverse=True)  # (G,), (B,)
    means = centroids[ids] if mode == "centroid" else group_means(vectors, group)
    return Grouped(Condition(means), group, cluster, distance)


def group_means(vectors: Tensor, group: Tensor) -> Tensor:
    """Vectors (B, C) averaged over equal numbers in group (B,), which are 0 … G - 1: (G, C).

    Sorted and reduced by segment: unlike scattered additions it gives a GPU the same bits every time.
    """
    order = torch.argsort(group, stable=True)
    return torch.segment_reduce(vectors[order], "mean", lengths=torch.bincount(group), axis=0)
