"""k-means on any device, without a loop over clusters: what `clusters.py` uses where there is much to do.

    start (K, C): greedy k-means++ ─▶ [ label = argmax_k (x·c_k − ½‖c_k‖²) ─▶ c_k = mean of its rows ] until still

Labels within the steps come from products in float32 or, on a GPU with bfloat16 units, from `SplitProducts`: a product
of bfloat16 parts, three times as wide, that is faster all the same and nearly as exact.
(Of single numbers in bfloat16 it would give other labels to some of the rows.) All distances are in float32.
The rows of a cluster are summed in their order, never by atomics, so a GPU repeats itself bit for bit. Labels are
found in chunks of rows: memory is chunk × K whatever N is, and for `SplitProducts` 6 bytes a number of x besides.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 256 << 20  # of the (rows, K) products held at one time
SPLIT_CAPABILITY = (8, 0)  # bfloat16 units: A100 and later
MOST_STEPS = 100
TOLERANCE = 1e-4  # of the mean variance of a column: scikit-learn's measure of having come to rest


def kmeans(
    x: Tensor, k: int, *, seed: int = 0, start: Tensor | None = None, steps: int | None = None
) -> Tensor:
    """`clusters.kmeans`: exactly `steps` from a start (k, C), or until the centroids rest, at most 100."""
    x = x.detach().float()
    if start is None:
        start = plus_plus(x, k, torch.Generator().manual_seed(seed))
    return lloyd(x, start, steps or MOST_STEPS, TOLERANCE if steps is None else -1.0)


def lloyd(x: Tensor, start: Tensor, steps: int, tolerance: float = TOLERANCE) -> Tensor:
    """At most `steps` steps over x (N, C) from start (K, C): centroids (K, C).

    Ends early when the centroids' total squared movement is within `tolerance`; never if that is negative. A cluster
    that lost all its rows starts anew at one of the rows that lie farthest from their centroids.
    """
    limit = tolerance * float(x.var(0, correction=0).mean()) if tolerance >= 0 else None
    labels_of, centroids, k = label_finder(x), start.float(), len(start)
    # 16-bit numbers are sorted in fewer rounds.
    edges = torch.arange(
        -1, k, dtype=torch.int16 if k < 1 << 15 else torch.int32, device=x.device
    )  # (K + 1,)
    for _ in range(steps):
        labels = labels_of(centroids)
        before, (centroids, empty) = centroids, _means(x, labels, edges)
        # A device is waited for only where an answer is needed, and once for both.
        asked = [empty.any()] if limit is None else [empty.any(), _movement(before, centroids) <= limit]
        some_empty, *still = torch.stack(asked).tolist()
        if some_empty:
            centroids = torch.where(empty.unsqueeze(1), _farthest(x, labels, before, empty), centroids)
            still = [limit is not None and bool(_movement(before, centroids) <= limit)]
        if any(still):
            break
    return centroids


def label_finder(x: Tensor) -> Callable[[Tensor], Tensor]:
    """What finds the nearest of centroids (K, C) for each row of x (N, C), labels (N,) int64, as `lloyd` does here."""
    return SplitProducts(x).labels if _splits(x) else lambda centroids: _closest(x, centroids)[1]


def assign(x: Tensor, centroids: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest centroid of each row: labels (N,) and squared distances (N,); norms (N,) are ‖x‖²."""
    closeness, labels = _closest(x, centroids)
    return labels, (norms - 2 * closeness).clamp_min(0)


def _closest(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of x the largest x·c − ½‖c‖² (N,), in float32, and whose it is (N,)."""
    half = -0.5 * centroids.square().sum(1)  # (K,)
    rows = max(1, CHUNK_BYTES // (4 * len(centroids)))
    parts = [torch.addmm(half, part, centroids.T).max(1) for part in x.split(rows)]
    return _joined([p.values for p in parts]), _joined([p.indices for p in parts])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _splits(x: Tensor) -> bool:
    """Whether x lies where `SplitProducts` are fast, with a torch (2.8 and later) that keeps their sums in float32."""
    if not x.is_cuda or torch.version.cuda is None or "dtype" not in torch.ops.aten.mm.overloads():
        return False
    return torch.cuda.get_device_capability(x.device) >= SPLIT_CAPABILITY


class SplitProducts:
    """Nearest centroids of rows x (N, C) by bfloat16 products that are nearly as exact as float32's.

        a ≈ high + low, both bfloat16          x·c ≈ [high high low]·[high low high]

    All numbers count from the mean of x, which moves no row to another centroid and is most of what rows have in
    common. −½‖c‖² is in the same product, in three parts, so its (rows, K) results are written once and read once.
    Before the sums are rounded x·c is at most 3 · 2⁻¹⁶ ‖x‖‖c‖ off, and ‖c‖² no more than in float32. Holds 6 bytes
    a number of x.
    """

    def __init__(self, x: Tensor):
        self.mean = x.mean(0)  # (C,)
        self.width = x.shape[1]
        # Matrix units want rows of a multiple of 16 bytes; two of the further columns meet the parts of ‖c‖².
        self.columns = _multiple(self.width + 2, 8)
        self.x = torch.empty(len(x), 3 * self.columns, dtype=torch.bfloat16, device=x.device)
        rows = max(1, CHUNK_BYTES // (4 * self.columns))
        for part, out in zip(x.split(rows), self.x.split(rows)):
            further = part.new_full((len(part), self.columns), -0.5)
            torch.sub(part, self.mean, out=further[:, : self.width])
            high, again, low = out.split(self.columns, dim=1)
            _split(further, high, low)
            again.copy_(high)

    def labels(self, centroids: Tensor) -> Tensor:
        """The nearest of centroids (K, C) for each row of x, (N,) int64."""
        k, width = len(centroids), self.width
        # A product this wide is several times slower where K is no multiple of 64.
        further = centroids.new_zeros(_multiple(k, 64), self.columns, dtype=torch.float32)
        centred = torch.sub(centroids, self.mean, out=further[:k, :width])
        norms = centred.square().sum(1)  # (K,)
        further[:k, width] = norms.bfloat16()
        torch.sub(norms, further[:k, width], out=further[:k, width + 1])
        parts = torch.empty(len(further), 3 * self.columns, dtype=torch.bfloat16, device=centroids.device)
        high, low, again = parts.split(self.columns, dim=1)
        _split(further, high, low)
        again.copy_(high)
        rows = max(1, CHUNK_BYTES // (4 * len(parts)))
        return _joined([_product(x, parts)[:, :k].max(1).indices for x in self.x.split(rows)])


def _multiple(n: int, of: int) -> int:
    return -(-n // of) * of


def _split(a: Tensor, high: Tensor, low: Tensor) -> None:
    """Float32 a into two bfloat16 parts that have 16 of its 24 bits."""
    high.copy_(a)
    torch.sub(a, high, out=low)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a (N, D) by b (K, D), bfloat16, summed and returned in float32 (N, K); what a GPU does, a CPU imitates."""
    return torch.mm(a, b.T, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float().T


def _means(x: Tensor, labels: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Mean row of each cluster (K, C), zeros where it has none, and which have none (K,); edges are −1 … K − 1."""
    ordered, order = labels.to(edges.dtype).sort(stable=True)
    # Where clusters begin is looked up, since to count them is to wait.
    starts = torch.searchsorted(ordered, edges, right=True)  # (K + 1,)
    means = F.embedding_bag(order, x, starts, mode="mean", include_last_offset=True)
    return means, starts[1:] == starts[:-1]


def _movement(before: Tensor, after: Tensor) -> Tensor:
    return (after - before).square().sum()


def _farthest(x: Tensor, labels: Tensor, centroids: Tensor, empty: Tensor) -> Tensor:
    """For the empty (K,) of the clusters the rows of x farthest from their centroids, the farthest first: (K, C)."""
    rows = max(1, CHUNK_BYTES // (4 * x.shape[1]))
    parts = zip(x.split(rows), labels.split(rows))
    distance = _joined([(part - centroids[label]).square().sum(1) for part, label in parts])  # (N,)
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
