"""Vectors become clusters: k-means fitted on one set of documents, everything else assigned.

    x (N, C) ── fit_clusters ─▶ centroids (K, C) ── assign: nearest centroid ─▶ label of any other vector
    labels ── merge_small ─▶ no cluster below the minimum: its vectors go to the nearest centroid that remains

Released code: k-means of its own, 10 Lloyd steps from random rows, the evaluation set clustered on itself.
Here: k-means with a k-means++ start on the training set only, scikit-learn's or the engine's fast form.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import engine
from .errors import UserError

MAX_CLUSTERS = 4_096
FITTED = 100_000  # vectors that k-means reads at most, or k if that is more
MANY_PRODUCTS = 1 << 20  # rows × clusters from which scikit-learn on one thread is slow


@dataclass(frozen=True, eq=False)
class Clustering:
    """K centroids (K, C) and, of all N vectors, fitted on or not, labels (N,) and distance (N,).

    `inertia` is the sum of squared distances over all N. A cluster is empty only where fewer than K vectors
    are distinct; its centroid stays.
    """

    centroids: Tensor
    labels: Tensor
    distance: Tensor
    inertia: float

    def assign(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (M, C) to the label (M,) int64 of the nearest centroid and the distance (M,) to it."""
        return nearest_centroid(x.to(self.centroids), self.centroids)

    @property
    def sizes(self) -> Tensor:
        """Vectors per cluster, (K,) int64."""
        return torch.bincount(self.labels, minlength=len(self.centroids))


def cluster_count(n: int, rows: int) -> int:
    """Clusters for n documents, about `rows` (how many) in each: n // rows, between 1 and MAX_CLUSTERS.

    The ceiling keeps fitting from growing with the square of n; larger clusters are cut into several groups.
    """
    return max(1, min(MAX_CLUSTERS, n // rows))


def fit_clusters(x: Tensor, k: int, *, seed: int) -> Clustering:
    """k-means of x (N, C) into k clusters; the same seed gives the same labels, bit for bit.

    Of more than FITTED vectors it fits on FITTED, or k if that is more, drawn by the seed; all are assigned.
    Raises UserError when k is not between 1 and N, or when x holds NaN or infinity.
    """
    if not 1 <= k <= len(x):
        raise UserError(f"cannot make {k} clusters of {len(x)} documents; choose between 1 and {len(x)}")
    if not torch.isfinite(x).all():
        raise UserError("cannot cluster vectors with NaN or infinity; check the embedding matrix")
    rows = x.detach().float()
    if len(x) > FITTED:
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: max(FITTED, k)]
        rows = rows[chosen.sort().values.to(x.device)]
    centroids = kmeans(rows, k, seed=seed)
    labels, distance = nearest_centroid(x.detach().float(), centroids)
    return Clustering(centroids, labels, distance, float(distance.cpu().double().square().sum()))


def kmeans(x: Tensor, k: int, *, seed: int) -> Tensor:
    """Centroids (k, C) float32 of x (N, C), by at most 100 steps from a start drawn by the seed.

    scikit-learn on one thread, because the order of a parallel sum is not fixed.
    """
    if impl := engine.fast("kmeans", worth=len(x) * k >= MANY_PRODUCTS):
        return impl(x, k, seed=seed)
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than k: see Clustering
        fit = KMeans(k, n_init=1, max_iter=100, random_state=seed).fit(x.cpu().numpy())
    return torch.from_numpy(fit.cluster_centers_.astype(np.float32)).to(x.device)


def merge_small(x: Tensor, labels: Tensor, centroids: Tensor, minimum: int = 4) -> Tensor:
    """Labels (N,) in which members of clusters smaller than `minimum` have the nearest centroid that remains.

    x (N, C), labels (N,) int64, centroids (K, C). Label numbers stay those of the centroids. Where no cluster
    is large enough, all get the largest one (the lowest label among equals).
    """
    sizes = torch.bincount(labels, minlength=len(centroids))  # (K,)
    remaining = torch.nonzero(sizes >= minimum).flatten()
    if not len(remaining):
        return torch.full_like(labels, int(sizes.argmax()))
    small = torch.nonzero(sizes[labels] < minimum).flatten()
    merged = labels.clone()
    merged[small] = remaining[nearest_centroid(x[small].to(centroids), centroids[remaining])[0]]
    return merged


def nearest_centroid(x: Tensor, centroids: Tensor, chunk: int = 16_384) -> tuple[Tensor, Tensor]:
    """For x (N, C) the nearest row of centroids (K, C): labels (N,) int64 and Euclidean distances (N,).

    Works in chunks of documents, so memory is chunk × K whatever N is; ties go to the lower index.
    """
    nearest = [torch.cdist(rows, centroids).min(dim=1) for rows in x.split(chunk)]
    return torch.cat([n.indices for n in nearest]), torch.cat([n.values for n in nearest])
