"""k-means on any device, without a loop over clusters: what `clusters.py` uses where there is a GPU and much to do.

    start (K, C): greedy k-means++ ─▶ [ label = argmax_k (x·c_k − ½‖c_k‖²) ─▶ c_k = mean of its rows ] until still

Products are in float32: 16-bit distances give other labels to several rows in a hundred. Rows of one cluster are
brought side by side and summed in their order, never by atomics, so a GPU repeats itself bit for bit. Labels are
found in chunks of rows: memory is chunk × K whatever N is.
"""

import math

import torch
from torch import Tensor

CHUNK_BYTES = 256 << 20  # of the (rows, K) products held at one time
TOLERANCE = 1e-4  # of the mean variance of a column: scikit-learn's measure of having come to rest


def kmeans(x: Tensor, k: int, *, seed: int, n_init: int = 1, steps: int = 100) -> Tensor:
    """Centroids (K, C) float32 of x (N, C), the best of `n_init` starts by inertia; on x's device."""
    x = x.detach().float()
    generator = torch.Generator().manual_seed(seed)
    found = [lloyd(x, plus_plus(x, k, generator), steps) for _ in range(n_init)]
    return found[0] if n_init == 1 else min(found, key=lambda centroids: inertia(x, centroids))


def lloyd(x: Tensor, start: Tensor, steps: int, tolerance: float = TOLERANCE) -> Tensor:
    """At most `steps` steps over x (N, C) from start (K, C): centroids (K, C).

    Ends early when the centroids' total squared movement is within `tolerance`; never if that is negative. A cluster
    that lost all its rows starts anew at one of the rows that lie farthest from their centroids.
    """
    norms = x.square().sum(1)  # (N,)
    limit = tolerance * float(x.var(0, correction=0).mean()) if tolerance >= 0 else None
    centroids = start.float()
    for _ in range(steps):
        labels, distance = assign(x, centroids, norms)
        before, centroids = centroids, _means(x, labels, distance, centroids)
        # A device is waited for only where the answer is needed.
        if limit is not None and float((centroids - before).square().sum()) <= limit:
            break
    return centroids


def inertia(x: Tensor, centroids: Tensor) -> float:
    """Sum of squared distances of x (N, C) to the nearest of centroids (K, C)."""
    return float(assign(x, centroids, x.square().sum(1))[1].double().sum())


def assign(x: Tensor, centroids: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest centroid of each row: labels (N,) and squared distances (N,); norms (N,) are ‖x‖²."""
    half = -0.5 * centroids.square().sum(1)  # (K,)
    rows = max(1, CHUNK_BYTES // (4 * len(centroids)))
    parts = [torch.addmm(half, part, centroids.T).max(1) for part in x.split(rows)]
    closeness = torch.cat([p.values for p in parts])
    return torch.cat([p.indices for p in parts]), (norms - 2 * closeness).clamp_min(0)


def _means(x: Tensor, labels: Tensor, distance: Tensor, before: Tensor) -> Tensor:
    """Mean row of each cluster (K, C); empty ones get the rows with the largest distances, the farthest first."""
    k = len(before)
    # 16-bit numbers are sorted in fewer rounds; where clusters begin is looked up, since to count them is to wait.
    short = labels.to(torch.int16 if k < 1 << 15 else torch.int32)
    ordered, order = short.sort(stable=True)
    ends = torch.searchsorted(ordered, torch.arange(k, dtype=short.dtype, device=x.device), right=True)  # (K,)
    sizes = ends.diff(prepend=ends.new_zeros(1))  # (K,)
    sums = torch.segment_reduce(x[order], "sum", lengths=sizes, axis=0, unsafe=True)  # they do add up to N
    means = sums / sizes.clamp_min(1).unsqueeze(1)
    empty = sizes == 0
    if not bool(empty.any()):
        return means
    farthest = distance.topk(min(k, len(x))).indices  # (≤ K,)
    rank = (empty.cumsum(0) - 1).clamp(0, len(farthest) - 1)
    return torch.where(empty.unsqueeze(1), x[farthest[rank]], means)


def plus_plus(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """K rows of x (N, C) as a start: each is the best of a few drawn with probability ∝ squared distance.

    All random numbers are drawn on the host beforehand, so the device is never waited for.
    """
    trials = 2 + int(math.log(k))
    draws = torch.rand(k, trials, generator=generator).to(x.device)
    norms = x.square().sum(1)  # (N,)
    chosen = torch.empty(k, dtype=torch.int64, device=x.device)
    chosen[0] = (draws[0, 0] * len(x)).long()
    closest = _squared(x[chosen[:1]], x, norms)[0]  # (N,)
    for step in range(1, k):
        mass = closest.cumsum(0)
        candidates = torch.searchsorted(mass, draws[step] * mass[-1]).clamp_max(len(x) - 1)  # (trials,)
        reach = torch.minimum(_squared(x[candidates], x, norms), closest)  # (trials, N)
        best = reach.sum(1).argmin(0, keepdim=True)
        closest = reach.index_select(0, best)[0]
        chosen[step] = candidates.index_select(0, best)[0]
    return x[chosen]


def _squared(a: Tensor, x: Tensor, norms: Tensor) -> Tensor:
    """Squared distances (A, N) of a (A, C) to x (N, C), never negative."""
    return (a.square().sum(1, keepdim=True) + norms - 2 * a @ x.T).clamp_min(0)
