"""k-means on any device, without a loop over clusters: what `cluster.py` uses for many vectors.

    start (K, C): greedy k-means++ ─▶ [ label = argmax_k (x·c_k − ½‖c_k‖²) ─▶ c_k = mean of its rows ] to rest

All products are in float32: bfloat16 would change the label of some rows. The rows of a cluster are summed in
their order, never by atomics, so a GPU repeats itself bit for bit. Labels are computed in chunks of rows:
memory is chunk × K whatever N is.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones.transfer import arriving

CHUNK_BYTES = 256 << 20  # of the (rows, K) products held at one time
AHEAD = ("cuda",)  # devices that work while the host waits for a number
TOLERANCE = 1e-4  # of the mean variance of a column: scikit-learn's criterion of convergence


def kmeans(x: Tensor, k: int, *, seed: int) -> Tensor:
    """Centroids (k, C) float32 of x (N, C) on its device, by at most 100 steps from the seed's start."""
    x = x.detach().float()
    return lloyd(x, plus_plus(x, k, torch.Generator().manual_seed(seed)), steps=100)


def lloyd(x: Tensor, start: Tensor, steps: int, tolerance: float = TOLERANCE) -> Tensor:
    """At most `steps` steps over x (N, C) from start (K, C): centroids (K, C).

    Ends early when the centroids' total squared movement is within `tolerance`; never if that is negative. A
    cluster that lost all its rows starts anew at one of the rows that lie farthest from their centroids.
    """
    limit = tolerance * float(x.var(0, correction=0).mean())
    centroids, k = start.float(), len(start)
    short = torch.int16 if k < 1 << 15 else torch.int32  # 16-bit numbers are sorted in fewer rounds
    edges = torch.arange(-1, k, dtype=short, device=x.device)  # (K + 1,)
    begun = _step(x, centroids, edges, limit)
    for left in reversed(range(steps)):
        labels, after, empty, flags = begun
        # A GPU goes on while the host reads how this step ended; where it ended otherwise, that work is thrown away.
        begun = _step(x, after, edges, limit) if left and x.device.type in AHEAD else None
        some_empty, at_rest = flags()
        if some_empty:
            after = torch.where(empty.unsqueeze(1), _farthest(x, labels, centroids, empty), after)
            at_rest, begun = bool(_movement(centroids, after) <= limit), None
        centroids = after
        if at_rest or not left:
            break
        begun = begun or _step(x, centroids, edges, limit)
    return centroids


def _step(x: Tensor, centroids: Tensor, edges: Tensor, limit: float) -> tuple:
    """Labels (N,), new centroids (K, C), which are empty (K,), and a function: is any empty, did they rest."""
    labels = closest(x, centroids)[1]
    after, empty = _means(x, labels, edges)
    # Both flags in one transfer: each transfer makes the host wait for a GPU.
    flags = torch.stack([empty.any(), _movement(centroids, after) <= limit])
    return labels, after, empty, arriving(flags)


def closest(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of x (N, C) the largest x·c − ½‖c‖² over centroids (K, C): value, label (N,) each."""
    half = -0.5 * centroids.square().sum(1)  # (K,)
    rows = max(1, CHUNK_BYTES // (4 * len(centroids)))
    turned = centroids.T.contiguous() if x.is_cuda else centroids.T  # a GPU is a little faster so
    parts = [torch.addmm(half, part, turned).max(1) for part in x.split(rows)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def _means(x: Tensor, labels: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Mean row of each cluster (K, C), or zeros, and which have no rows (K,); edges are −1 … K − 1."""
    ordered, order = labels.to(edges.dtype).sort(stable=True)
    # searchsorted instead of bincount: bincount would make the host wait for a GPU.
    starts = torch.searchsorted(ordered, edges, right=True)  # (K + 1,)
    means = F.embedding_bag(order, x, starts, mode="mean", include_last_offset=True)
    return means, starts[1:] == starts[:-1]


def _movement(before: Tensor, after: Tensor) -> Tensor:
    return (after - before).square().sum()


def _farthest(x: Tensor, labels: Tensor, centroids: Tensor, empty: Tensor) -> Tensor:
    """For the empty (K,) clusters the rows of x farthest from their centroids, the farthest first: (K, C)."""
    rows = max(1, CHUNK_BYTES // (4 * x.shape[1]))
    parts = zip(x.split(rows), labels.split(rows))
    distance = torch.cat([(part - centroids[label]).square().sum(1) for part, label in parts])  # (N,)
    farthest = distance.topk(min(len(empty), len(x))).indices  # (≤ K,)
    return x[farthest[(empty.cumsum(0) - 1).clamp(0, len(farthest) - 1)]]


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
