"""What adapting adds to a batch of 32 texts (claim 11): the whole batch beside a plain one.

    plain      ids ─ backbone ─▶ h ─ head ─▶ losses (M,)
    adapted    prefixes ─ mean embedding ─▶ nearest of K centroids ─ batch mean ─▶ hyper-network ─▶ update,
               ids ─ backbone ─▶ h ─ head + update ─▶ losses (M,)

Plain is also what a static LoRA costs: it can be folded into the head, an update for every batch cannot. The
backbone is `random-gpt2`, the paper's sizes: the values of weights do not matter for time. Waiting until 32
texts of one cluster have come is no work, so it is listed apart: a simulation with the seconds measured here.
"""

import time
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import bootstrap
from torch import Tensor

from chameleon_lite import engine
from chameleon_lite.backbones.formats import backbone_dtype, set_format
from chameleon_lite.cluster import fit_clusters, nearest_centroid
from chameleon_lite.conditions import prompt_vectors
from chameleon_lite.embed import normalise
from chameleon_lite.heads import Condition, HeadUpdate, HyperHead
from chameleon_lite.loss import token_losses
from chameleon_study.arrivals import Service, waiting_table

from .measure import gate, shown
from .workload import RANK, Bench, row_lengths

ROWS, PREFIX = 32, 16  # texts per batch; tokens of a text that are read before any is scored
BATCHES = 200  # as many as a 95th percentile needs; fewer where BUDGET ends first
BUDGET = 40.0  # seconds of measuring
LEAST, WARM = 3, 2  # batches measured whatever they take; batches before anything counts, on a CPU
DRAWS = 2_000  # of batches, for the interval of a ratio
LOAD = 0.3  # rate of arriving texts in the simulation, as a share of what the worker could do in full batches
VALIDATION = 2_461  # WikiText-2's validation rows, which the released way clusters when it evaluates


class Batches:
    """Batches of random texts as long as WikiText-2's rows, and all that reading them needs."""

    def __init__(self, bench: Bench, count: int) -> None:
        backbone, g = bench.backbone, torch.Generator().manual_seed(0)
        self.bench, self.backbone, self.count = bench, backbone, count
        longest = bench.size(cpu=64, gpu=256, quick=32)
        self.table = bench.table(row_lengths(count * ROWS).clip(PREFIX + 8, longest))
        clusters = bench.size(742, 742, 32)  # 23,767 // 32
        self.centroids = normalise(torch.randn(clusters, backbone.width, generator=g)).to(bench.device)
        self.weight = bench.head_weight(backbone_dtype(bench.device))
        self.exact = bench.head_weight(torch.float32)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            head = HyperHead(backbone.width, backbone.vocab, RANK, released_init="wikitext")  # not the no-op
        self.head = head.to(bench.device).eval()

    def batch(self, number: int, rows: int = ROWS) -> dict[str, Tensor]:
        """One batch: ids (B, T); `where` (M,) the states that predict a token are; target (M,)."""
        ids, mask = self.table.padded(torch.arange(number * ROWS, number * ROWS + rows))
        predicts = mask[:, 1:].clone()  # (B, T − 1)
        predicts[:, : PREFIX - 1] = False
        at = predicts.nonzero()  # (M, 2)
        batch = {"ids": ids, "where": at[:, 0] * ids.shape[1] + at[:, 1], "target": ids[:, 1:][predicts]}
        return {name: x.to(self.bench.device) for name, x in batch.items()}

    def vectors(self, b: dict) -> Tensor:
        """Prefixes to vectors (B, C), float32."""
        ids = b["ids"][:, :PREFIX]
        return prompt_vectors(F.embedding(ids, self.backbone.embedding), torch.ones_like(ids))

    def assign(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (B, C) to cluster (B,) and distance (B,)."""
        return nearest_centroid(vectors, self.centroids)

    def update(self, vectors: Tensor) -> HeadUpdate:
        """Vectors (B, C) of one cluster's batch to its update."""
        return self.head.factors(Condition(vectors.mean(0, keepdim=True)))

    def losses(self, b: dict, update: HeadUpdate | None) -> Tensor:
        """Losses (M,) under the frozen head, or under the head with an update."""
        h = self.backbone.hidden(b["ids"]).flatten(0, 1)[b["where"]]  # (M, C)
        return token_losses(h, b["target"], self.weight, [update])[0]

    def plain(self, b: dict) -> Tensor:
        """The whole batch, not adapted: losses (M,)."""
        return self.losses(b, None)

    def adapted(self, b: dict) -> Tensor:
        """The whole batch, adapted: losses (M,)."""
        vectors = self.vectors(b)
        self.assign(vectors)
        return self.losses(b, self.update(vectors))


def overhead(bench: Bench) -> dict:
    """Seconds (p50, p95) of the whole batch, the ratios with intervals, gates, and the waiting."""
    work = Batches(bench, bench.size(BATCHES, BATCHES, LEAST))
    # The tensors of `work` are made outside: those made in inference mode cannot be trained on by later rows.
    with set_format(bench.backbone.lm, backbone_dtype(bench.device)), torch.inference_mode():
        gates, seconds = _gates(work), _timed(work)
        alone = [bench.seconds(partial(work.adapted, work.batch(i, rows=1))) for i in range(LEAST)]
    whole = {name: quantiles(values) for name, values in seconds.items()}
    clusters, count = len(work.centroids), len(seconds["plain"])
    workload = {"backbone": bench.model, "prefix tokens": PREFIX, "stored centroids": clusters}
    workload |= {"longest text": int(work.table.lengths.max())}
    return shown(f"what adapting adds to a batch of {ROWS} texts", gates, batches=count, whole=whole) | {
        "ratios": ratios(seconds["adapted"], seconds["plain"]),
        "fitting clusters": _fitting(work),
        "waiting": _waiting(bench, whole["adapted"]["p50"], float(np.median(alone)), clusters),
        "workload": workload,
    }


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    p50, p95 = np.quantile(seconds, [0.5, 0.95])
    return {"p50": float(p50), "p95": float(p95)}


def ratios(adapted: list[float], plain: list[float]) -> dict[str, dict[str, float]]:
    """Adapted over plain seconds of the same batches (n,) at p50 and at p95, each with its 95 % interval.

    The interval is a bootstrap's over batches; both times of a batch are drawn together.
    """
    both, out = (np.asarray(adapted), np.asarray(plain)), {}
    for name, at in (("p50", 0.5), ("p95", 0.95)):

        def ratio(ours, theirs, axis=-1, at=at):
            return np.quantile(ours, at, axis=axis) / np.quantile(theirs, at, axis=axis)

        options = {"paired": True, "method": "percentile", "n_resamples": DRAWS}
        span = bootstrap(both, ratio, random_state=np.random.default_rng(0), **options).confidence_interval
        out[name] = {"ratio": float(ratio(*both)), "low": float(span.low), "high": float(span.high)}
    return out


def _timed(work: Batches) -> dict[str, list[float]]:
    """Seconds of plain and adapted, batch by batch and in turns, until all batches or the budget are used.

    Every second batch is read adapted first, so that neither always finds the caches warm. On a GPU all are
    read once before anything counts: a product of a new size may load a kernel, once per process.
    """
    seconds: dict[str, list[float]] = {"plain": [], "adapted": []}

    def read(i: int) -> dict[str, float]:
        b, order = work.batch(i % work.count), ("adapted", "plain") if i % 2 else ("plain", "adapted")
        return {name: work.bench.seconds(partial(getattr(work, name), b)) for name in order}

    for i in range(work.count if work.bench.gpu else WARM):
        read(i)
    started = time.perf_counter()
    for i in range(work.count):
        if i >= LEAST and time.perf_counter() - started > BUDGET:
            break
        for name, value in read(i).items():
            seconds[name].append(value)
    return seconds


def _gates(work: Batches) -> list[dict]:
    """The losses are the definition's, an update of zeros changes nothing, the centroid is the nearest."""
    b, limit = work.batch(0), work.bench.limits[1]
    vectors, update = work.vectors(b), work.update(work.vectors(b))
    b = {"ids": b["ids"], "where": b["where"][:256], "target": b["target"][:256]}
    nothing = HeadUpdate(update.down, torch.zeros_like(update.up))
    adapted, same, frozen = (float(work.losses(b, u).mean()) for u in (update, nothing, None))
    h = work.backbone.hidden(b["ids"]).flatten(0, 1)[b["where"]].float()
    with engine.use("plain"):
        expected = float(token_losses(h, b["target"], work.exact, [update]).mean())
    far = torch.cdist(vectors.double(), work.centroids.double())  # (B, K)
    chosen = far.gather(1, work.assign(vectors)[0][:, None])[:, 0]
    beyond = float((chosen - far.min(1).values).max())
    return [
        gate("mean loss under the update, from float32, nats", abs(adapted - expected), limit),
        gate("mean loss under an update of nothing, from the frozen head's", abs(same - frozen), limit),
        gate("distance to the chosen centroid beyond the nearest", beyond, 1e-4),
    ]


def _fitting(work: Batches) -> dict[str, float]:
    """Seconds of k-means fitted, as released, on the texts to be read, and the share of 32 of them."""
    rows = work.bench.size(VALIDATION, VALIDATION, 128)
    x = normalise(torch.randn(rows, work.backbone.width, generator=torch.Generator().manual_seed(1)))
    fitting = partial(fit_clusters, x.to(work.bench.device), rows // ROWS, seed=0)
    seconds = min(work.bench.seconds(fitting) for _ in range(2))
    return {"texts": rows, "seconds": seconds, "seconds a batch": seconds / (rows // ROWS)}


def _waiting(bench: Bench, full: float, one: float, clusters: int) -> dict:
    """Seconds from arrival to result when batches of 32 are filled by cluster, and when rows of all may mix.

    full and one: seconds of an adapted batch of 32 texts and of one. Clusters are equally likely here; uneven
    ones, as real ones are, wait longer.
    """
    each = max(0.0, (full - one) / (ROWS - 1))
    rate = LOAD * ROWS / full
    labels = np.random.default_rng(0).integers(0, clusters, bench.size(4, 4, 1) * ROWS * clusters)
    service = Service(max(0.0, full - ROWS * each), each)
    rows = waiting_table(labels, rate=rate, batches=(ROWS,), service=service).to_dict("records")
    return {"arrivals a second": rate, "clusters": clusters, "texts": len(labels), "batches": rows}
