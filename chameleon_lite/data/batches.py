"""Clusters become batches: every row exactly once an epoch, shuffled anew by the generator one passes in.

Released code: one list of batches, made before training, in the same order in every epoch.
Here: call once an epoch with the same generator; composition and order both change, reproducibly.
"""

import torch
from torch import Tensor

from ..errors import UserError


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
