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

from chameleon_lite import Condition, HeadUpdate, HyperHead, engine, token_losses
from chameleon_lite.backbones.formats import backbone_dtype, set_format
from chameleon_lite.cluster import fit_clusters, nearest_centroid
from chameleon_lite.conditions import prompt_vectors
from chameleon_lite.embed import normalise
from chameleon_lite.loss import next_token_pairs
from chameleon_study.arrivals import Service, waiting_table

from .bench import Bench
from .measure import gate
from .workload import RANK, row_lengths

ROWS, PREFIX = 32, 16  # texts per batch; tokens of a text that are read before any is scored
BUDGET = 40.0  # seconds of measuring, after which fewer batches must do
LEAST, WARM = 3, 2  # batches measured whatever they take; batches before anything counts, on a CPU
QUANTILES = {"p50": 0.5, "p95": 0.95}
DRAWS = 2_000  # of batches, for the interval of a ratio
LOAD = 0.3  # rate of arriving texts in the simulation, as a share of what the worker could do in full batches


class Batches:
    """Batches of random texts as long as WikiText-2's rows, and all that reading them needs."""

    def __init__(self, bench: Bench, count: int, longest: int, centroids: int) -> None:
        backbone, g = bench.backbone, torch.Generator().manual_seed(0)
        self.bench, self.backbone, self.count = bench, backbone, count
        self.table = bench.table(row_lengths(count * ROWS).clip(PREFIX + 8, longest))
        self.centroids = normalise(torch.randn(centroids, backbone.width, generator=g)).to(bench.device)
        self.weight = bench.head_weight(backbone_dtype(bench.device))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            head = HyperHead(backbone.width, backbone.vocab, RANK, released_init="wikitext")  # not the no-op
        self.head = head.to(bench.device).eval()

    def batch(self, number: int, rows: int = ROWS) -> dict[str, Tensor]:
        """One batch: ids (B, T); `where` (M,) the states that predict a token are; target (M,)."""
        ids, mask = self.table.padded(torch.arange(number * ROWS, number * ROWS + rows))
        row, column, target = next_token_pairs(ids, mask, torch.full((rows,), PREFIX))
        batch = {"ids": ids, "where": row * ids.shape[1] + column, "target": target}
        return {name: x.to(self.bench.device) for name, x in batch.items()}

    def assigned(self, b: dict) -> tuple[HeadUpdate, Tensor, Tensor]:
        """The update of a batch of one cluster; each prefix's vector (B, C) and nearest centroid (B,)."""
        ids = b["ids"][:, :PREFIX]
        vectors = prompt_vectors(F.embedding(ids, self.backbone.embedding), torch.ones_like(ids))
        cluster, _ = nearest_centroid(vectors, self.centroids)
        return self.head.factors(Condition(vectors.mean(0, keepdim=True))), vectors, cluster

    def states(self, b: dict) -> Tensor:
        """The states (M, C) that predict a token."""
        return self.backbone.hidden(b["ids"]).flatten(0, 1)[b["where"]]

    def plain(self, b: dict, update: HeadUpdate | None = None) -> Tensor:
        """Losses (M,) of the whole batch under the frozen head, or with an update."""
        return token_losses(self.states(b), b["target"], self.weight, [update])[0]

    def adapted(self, b: dict) -> Tensor:
        """Losses (M,) of the whole batch, its update included."""
        return self.plain(b, self.assigned(b)[0])


def overhead(bench: Bench, batches: int, longest: int, centroids: int, texts: int) -> dict:
    """Seconds (p50, p95) of the whole batch, the ratios with intervals, gates, and the waiting."""
    work = Batches(bench, batches, longest, centroids)
    # The tensors of `work` are made outside: those made in inference mode cannot be trained on by later rows.
    with set_format(bench.backbone.lm, backbone_dtype(bench.device)), torch.inference_mode():
        gates, seconds = _gates(work), _timed(work)
        alone = [bench.seconds(partial(work.adapted, work.batch(i, rows=1))) for i in range(LEAST)]
    whole, g = {name: quantiles(values) for name, values in seconds.items()}, torch.Generator().manual_seed(1)
    x = normalise(torch.randn(texts, bench.backbone.width, generator=g)).to(bench.device)
    fitting = min(bench.seconds(lambda: fit_clusters(x, texts // ROWS, seed=0)) for _ in range(2))
    # as released, on the texts to be read themselves; and the share of 32 of them
    clusters = {"texts": texts, "seconds": fitting, "seconds a batch": fitting / (texts // ROWS)}
    found = {"gates": gates, "batches": len(seconds["plain"]), "whole": whole, "fitting clusters": clusters}
    found["ratios"] = ratios(seconds["adapted"], seconds["plain"])
    found["waiting"] = _waiting(bench, whole["adapted"]["p50"], float(np.median(alone)), centroids)
    return found | {"workload": {"backbone": bench.model, "prefix tokens": PREFIX}}


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return dict(zip(QUANTILES, np.quantile(seconds, list(QUANTILES.values())).tolist()))


def ratios(adapted: list[float], plain: list[float]) -> dict[str, dict[str, float]]:
    """Adapted over plain seconds of the same batches (n,), with a paired bootstrap's 95 % intervals."""
    both, out = (np.asarray(adapted), np.asarray(plain)), {}
    for name, at in QUANTILES.items():

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
    warm, deadline = work.count if work.bench.gpu else WARM, np.inf
    for i in range(-warm, work.count):
        if i == 0:
            deadline = time.perf_counter() + BUDGET
        if i >= LEAST and time.perf_counter() > deadline:
            break
        b = work.batch(i % work.count)
        for name in ("adapted", "plain") if i % 2 else ("plain", "adapted"):
            taken = work.bench.seconds(partial(getattr(work, name), b))
            if i >= 0:
                seconds[name].append(taken)
    return seconds


def _gates(work: Batches) -> list[dict]:
    """The losses are the definition's, an update of zeros changes nothing, the centroid is the nearest."""
    b, limit = work.batch(0), work.bench.limits[1]
    update, vectors, cluster = work.assigned(b)
    b = {"ids": b["ids"], "where": b["where"][:256], "target": b["target"][:256]}
    nothing = HeadUpdate(update.down, torch.zeros_like(update.up))
    adapted, same, frozen = (float(work.plain(b, u).mean()) for u in (update, nothing, None))
    exact = work.bench.head_weight(torch.float32)
    with engine.use("plain"):
        expected = float(token_losses(work.states(b).float(), b["target"], exact, [update]).mean())
    far = torch.cdist(vectors.double(), work.centroids.double())  # (B, K)
    beyond = float((far.gather(1, cluster[:, None])[:, 0] - far.min(1).values).max())
    return [
        gate("mean loss under the update, from float32, nats", abs(adapted - expected), limit),
        gate("mean loss under an update of nothing, from the frozen head's", abs(same - frozen), limit),
        gate("distance to the chosen centroid beyond the nearest", beyond, 1e-4),
    ]


def _waiting(bench: Bench, full: float, one: float, clusters: int) -> dict:
    """Seconds from arrival to result when batches of 32 are filled by cluster, and when rows of all may mix.

    full and one: seconds of an adapted batch of 32 texts and of one. Clusters are equally likely here; uneven
    ones, as real ones are, wait longer.
    """
    each, rate = max(0.0, (full - one) / (ROWS - 1)), LOAD * ROWS / full
    labels = np.random.default_rng(0).integers(0, clusters, bench.size(4, 4, 1) * ROWS * clusters)
    service = Service(max(0.0, full - ROWS * each), each)
    rows = waiting_table(labels, rate=rate, batches=(ROWS,), service=service).to_dict("records")
    return {"arrivals a second": rate, "clusters": clusters, "texts": len(labels), "batches": rows}
