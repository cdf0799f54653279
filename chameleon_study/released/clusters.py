"""Clusters and batches of the released scripts, written anew and vectorised.

    x (N, C) ─ random rows as centroids, 10 Lloyd steps ─▶ labels (N,) ─ one fixed list ─▶ batches

Released code: no seed, empty clusters keep their stale centroid, clusters may hold a single row.
Here: the same with a seed; the method's cluster.py and batches.py hold what the study uses.
"""

import pandas as pd
import torch
from torch import Tensor

from chameleon_lite.cluster import Clustering, nearest_centroid
from chameleon_lite.errors import UserError

LLOYD_STEPS = 10


def released_clusters(x: Tensor, k: int, *, seed: int) -> Clustering:
    """k-means of x (N, C): k random rows, then LLOYD_STEPS, once; UserError for k > N."""
    if not 1 <= k <= len(x):
        raise UserError(f"cannot make {k} clusters of {len(x)} documents; choose between 1 and {len(x)}")
    rows = x.detach().float()
    start = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:k]
    centroids = rows[start.to(x.device)]  # (K, C)
    for _ in range(LLOYD_STEPS):
        labels, _ = nearest_centroid(rows, centroids)
        centroids = _means(rows, labels, centroids)
    labels, distance = nearest_centroid(rows, centroids)
    return Clustering(centroids, labels, distance, float(distance.double().square().sum()))


def _means(rows: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    """Mean row of each cluster (K, C); an empty cluster keeps its centroid."""
    sizes = torch.bincount(labels, minlength=len(centroids))  # (K,)
    # cluster by cluster in row order, so that a GPU repeats itself too
    sums = torch.segment_reduce(rows[labels.argsort(stable=True)], "sum", lengths=sizes, axis=0)
    return torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp_min(1), centroids)


def released_batches(labels: Tensor, size: int, *, seed: int) -> list[Tensor]:
    """Rows of labels (N,) as batches (≤ size,) of one cluster, clusters in order of first appearance.

    The seed decides only which rows of a cluster larger than `size` share a batch.
    """
    number = torch.from_numpy(pd.factorize(labels.cpu().numpy())[0])  # (N,) by first appearance
    return _cut(number, size, torch.Generator().manual_seed(seed))


def cluster_batches(labels: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    """Rows of labels (N,) as batches (≤ size,) int64, each of one cluster, in a random order."""
    batches = _cut(labels.cpu(), size, generator)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _cut(labels: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    """Batches along the clusters' numbers, each cluster's rows in a random order."""
    shuffled = torch.randperm(len(labels), generator=generator)
    order = shuffled[labels[shuffled].argsort(stable=True)]
    return [b for run in order.split(labels.bincount().tolist()) for b in run.split(size) if len(b)]
