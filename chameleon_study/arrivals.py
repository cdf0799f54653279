"""Texts that arrive over time: what a condition may depend on by then, and how long a text waits for its batch.

on the fly   texts in random order, batches of B; a cluster's condition may read
               current      the prefixes in this batch                       ┐
               past         those and all that came before                   │ possible in a stream
               offline      prefixes of the whole evaluation set             ┘ not possible: it needs the future
               whole rows   all tokens of the whole set, clustered on itself   the released way, a leak
waiting      arrivals at a rate ─ a queue per cluster, full at B ─▶ one worker ─▶ seconds from arrival to result
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from chameleon_lite import Arrangement, Document, HeadWeight, evaluate, mean_embeddings, tokenise
from chameleon_lite.app.score import Adapter
from chameleon_lite.backbones.formats import matmul_dtype
from chameleon_lite.cluster import fit_clusters, nearest_centroid
from chameleon_lite.errors import UserError
from chameleon_lite.states import ScoredStates, hidden_states

from .sources import Own


def known_means(vectors: Tensor, labels: Tensor, rows: Tensor, own: Tensor, batches: list[Tensor]) -> dict:
    """What may be known ▶ the mean (N, C) that conditions each text, for N texts that arrive in batches of numbers.

    vectors (N, C) of prefixes, labels (N,) their nearest train centroids; rows (N, C) of whole texts, own (N,) their
    clusters when the evaluation set is clustered on itself.
    """
    everything = [torch.arange(len(labels))]
    means = {"current": _means(vectors, labels, batches), "past": _means(vectors, labels, batches, past=True)}
    means["offline"] = _means(vectors, labels, everything)
    return means | {"whole rows": _means(rows, own, everything)}


def _means(vectors: Tensor, labels: Tensor, batches: Sequence[Tensor], past: bool = False) -> Tensor:
    """Means over the same cluster in this batch, or in this and all batches before."""
    out, label = torch.empty_like(vectors), torch.unique(labels, return_inverse=True)[1]
    ones = torch.ones(len(label), 1, dtype=torch.float64)
    rows = torch.cat([vectors.double(), ones], dim=1)  # (N, C + 1): the last column counts
    sums = torch.zeros(int(label.max()) + 1, rows.shape[1], dtype=torch.float64)
    for batch in batches:
        if not past:
            sums.zero_()
        sums.index_add_(0, label[batch], rows[batch])
        total = sums[label[batch]]
        out[batch] = (total[:, :-1] / total[:, -1:]).to(out.dtype)
    return out


def on_the_fly(model, documents: Sequence[Document], *, batch: int = 16, seed: int = 0) -> pd.DataFrame:
    """An adapter on documents that arrive in batches: one row for each state of knowledge.

    Columns known, possible (in a stream), loss (nats per token), and against_frozen (the difference). UserError for
    an adapter with LoRA in its layers: the comparison reads stored states of the frozen ones.
    """
    backbone = model.backbone
    table = tokenise(documents, model.tokenizer, **Adapter(model).prompts)
    states = hidden_states(backbone, table, matmul_dtype(backbone.device))
    embedding = backbone.embedding.detach().cpu()
    prefixes, rows = (mean_embeddings(table, embedding, span=span) for span in ("condition", "row"))
    own = fit_clusters(rows, max(1, len(table) // batch), seed=seed).labels
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
    labels = nearest_centroid(prefixes, model.centroids.cpu())[0]
    means = known_means(prefixes, labels, rows, own, order.split(batch))
    heads = [(None, None), *((model.head, Own(mean.to(backbone.device))) for mean in means.values())]
    scored = ScoredStates(table, states, backbone.device)
    weight = HeadWeight(backbone.head.weight, backbone.head.bias)
    nll = evaluate(heads, scored, Arrangement(order), weight, rows=batch, scale=model.config.scale)
    loss = (nll.sum(1).cpu() / int(table.n_scored.sum())).numpy()
    known = ["frozen", *means]
    possible = [name in ("frozen", "current", "past") for name in known]
    return pd.DataFrame(dict(known=known, possible=possible, loss=loss, against_frozen=loss - loss[0]))


@dataclass(frozen=True)
class Service:
    """Seconds one worker needs for a batch of n rows: fixed + each · n (loading weights, then work per row)."""

    fixed: float
    each: float


def waiting_times(labels: np.ndarray, *, rate: float, batch: int, service: Service, seed: int) -> np.ndarray:
    """Seconds from arrival to result (N,) of texts with cluster labels (N,), arriving at `rate` per second (Poisson).

    Each cluster fills its batch; a full one goes to the single worker, first come first served, and the end of the
    stream sends what is left. With equal labels a batch takes any rows: what mixed clusters make possible.
    """
    if rate <= 0 or batch < 1:
        raise UserError("waiting_times needs a rate above 0 and batches of at least 1")
    arrival, ready = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, len(labels))), []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            ready.append((arrival[part[-1]] if len(part) == batch else arrival[-1], part))
    latency, free = np.empty(len(labels)), 0.0
    for at, rows in sorted(ready, key=lambda pair: pair[0]):
        free = max(at, free) + service.fixed + service.each * len(rows)
        latency[rows] = free - arrival[rows]
    return latency


def waiting_table(labels: np.ndarray, *, rate: float, batches, service: Service, seed=0) -> pd.DataFrame:
    """Quantiles p50, p95, p99 of the waiting time (seconds) by `batches` ("by cluster" or "mixed") and size."""
    rows = []
    for name, of in (("by cluster", np.asarray(labels)), ("mixed", np.zeros(len(labels), dtype=int))):
        for size in batches:
            times = waiting_times(of, rate=rate, batch=size, service=service, seed=seed)
            rows.append((name, size, *np.quantile(times, [0.5, 0.95, 0.99])))
    return pd.DataFrame(rows, columns=["batches", "size", "p50", "p95", "p99"])
