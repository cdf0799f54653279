"""Texts that arrive over time: what a condition may depend on by then, and how long a text waits for its batch.

    on the fly   texts in random order, batches of B; a cluster's condition may read
                   current      the prefixes in this batch                       ┐
                   past         those and all that came before                   │ possible in a stream
                   offline      prefixes of the whole evaluation set             ┘ not possible: it needs the future
                   whole rows   all tokens of the whole set, clustered on itself   the released way, a leak
    waiting      arrivals at a rate ─ a queue per cluster, full at B ─▶ one worker ─▶ seconds from arrival to result

What offline gains over past is due to texts that had not arrived; what whole rows gain, to reading scored text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chameleon_lite.app.score import Adapter
from chameleon_lite.backbones.formats import matmul_dtype
from chameleon_lite.batches import Arrangement
from chameleon_lite.cluster import Clustering, fit_clusters, nearest_centroid
from chameleon_lite.conditions import group_means
from chameleon_lite.embed import mean_embeddings
from chameleon_lite.errors import UserError
from chameleon_lite.heads import Condition
from chameleon_lite.loss import HeadWeight
from chameleon_lite.states import ScoredStates, hidden_states
from chameleon_lite.text import Document, tokenise
from chameleon_lite.train import Source, evaluate

KNOWN = ("current", "past", "offline", "whole rows")


@dataclass
class Arrivals:
    """N texts in the order they arrive, in batches of B, and the vectors that condition them.

    vectors (N, C) of prefixes, rows (N, C) of whole texts (only for the leak), labels (N,) nearest train centroids.
    """

    vectors: Tensor
    labels: Tensor
    order: Tensor
    batch: int
    rows: Tensor | None = None
    clusters: int = 1  # of the evaluation set on itself, for the leak
    seed: int = 0

    def vector(self, known: str) -> Tensor:
        """The mean (N, C) that conditions each text, by what may be known."""
        if known in ("current", "past"):
            return self._running(known == "past")
        vectors, labels = self.vectors, self.labels
        if known == "whole rows":
            if self.rows is None:
                raise UserError("the leak needs the vectors of whole rows: give rows=")
            vectors, labels = self.rows, fit_clusters(self.rows, self.clusters, seed=self.seed).labels
        group = torch.unique(labels, return_inverse=True)[1]
        return group_means(vectors, group)[group]

    def _running(self, past: bool) -> Tensor:
        """Means over the same cluster in this batch, or in this and all batches before."""
        out, label = torch.empty_like(self.vectors), torch.unique(self.labels, return_inverse=True)[1]
        ones = torch.ones(len(label), 1, dtype=torch.float64)
        rows = torch.cat([self.vectors.double(), ones], dim=1)  # (N, C + 1): the last column counts
        sums = torch.zeros(int(label.max()) + 1, rows.shape[1], dtype=torch.float64)
        for batch in self.order.split(self.batch):
            if not past:
                sums.zero_()
            sums.index_add_(0, label[batch], rows[batch])
            total = sums[label[batch]]
            out[batch] = (total[:, :-1] / total[:, -1:]).to(out.dtype)
        return out

    def source(self, known: str, device) -> Source:
        """A condition source for `train.evaluate`: rows (B,) to one condition per distinct vector."""
        vectors = self.vector(known).to(device)

        def of(arrangement: Arrangement, rows: Tensor) -> tuple[Condition, Tensor | None]:
            distinct, group = torch.unique(vectors[rows.to(device)], dim=0, return_inverse=True)
            return Condition(distinct), group if len(distinct) > 1 else None

        return of


def arrivals(vectors: Tensor, clustering: Clustering, batch: int, seed: int, rows=None) -> Arrivals:
    """Texts in a random order drawn by the seed; the evaluation set's own clustering has one cluster per batch."""
    n = len(vectors)
    if not 1 <= batch <= n:
        raise UserError(f"batches of {batch} do not fit {n} texts; choose between 1 and {n}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return Arrivals(vectors, clustering.assign(vectors)[0], order, batch, rows, max(1, n // batch), seed)


def evaluate_stream(
    head, scored, arriving: Arrivals, weight, *, known: Sequence[str] = KNOWN, scale: float = 1.0
) -> dict[str, Tensor]:
    """Sums of nats per text (N,) by what may be known, and "frozen"; all on the same batches and positions.

    scored: states.ScoredStates of the N texts; weight: the frozen head's HeadWeight.
    """
    heads = [(None, None), *((head, arriving.source(name, scored.device)) for name in known)]
    order = Arrangement(arriving.order)
    nll = evaluate(heads, scored, order, weight, rows=arriving.batch, scale=scale)
    return dict(zip(("frozen", *known), nll.cpu()))


def on_the_fly(model, documents: Sequence[Document], *, batch: int = 16, seed: int = 0, progress=True):
    """An adapter on documents that arrive in batches: a DataFrame with one row for each state of knowledge.

    Columns known, possible (in a stream), loss (nats per token), and against_frozen (the difference).
    Raises UserError for an adapter with LoRA in its layers: the comparison reads stored states of the frozen ones.
    """
    import pandas as pd

    backbone, centroids = model.backbone, model.centroids.cpu()
    table = tokenise(documents, model.tokenizer, **Adapter(model).prompts)
    states = hidden_states(backbone, table, matmul_dtype(backbone.device), progress=progress)
    scored = ScoredStates(table, states, backbone.device)
    embedding = backbone.embedding.detach().cpu()
    prefixes, rows = (mean_embeddings(table, embedding, span=span) for span in ("condition", "row"))
    labels, distance = nearest_centroid(prefixes, centroids)
    clustering = Clustering(centroids, labels, distance, float(distance.square().sum()))
    arriving = arrivals(prefixes, clustering, min(batch, len(table)), seed, rows)
    weight = HeadWeight(backbone.head.weight, backbone.head.bias)
    nll = evaluate_stream(model.head, scored, arriving, weight, scale=model.config.scale)
    loss = {name: float(values.sum()) / int(table.n_scored.sum()) for name, values in nll.items()}
    rows = [(n, n in ("frozen", "current", "past"), v, v - loss["frozen"]) for n, v in loss.items()]
    return pd.DataFrame(rows, columns=["known", "possible", "loss", "against_frozen"])


@dataclass(frozen=True)
class Service:
    """Seconds one worker needs for a batch of n rows: fixed + each · n (loading weights, then work per row)."""

    fixed: float
    each: float

    def seconds(self, rows: int) -> float:
        """Seconds for a batch."""
        return self.fixed + self.each * rows


def waiting_times(
    labels: np.ndarray, *, rate: float, batch: int, service: Service, seed: int, patience: float | None = None
) -> np.ndarray:
    """Seconds from arrival to result (N,) of texts with cluster labels (N,), arriving at `rate` per second (Poisson).

    Each cluster fills its batch; a full one goes to the single worker, first come first served. A batch also goes
    when its first text has waited `patience` seconds. Without patience the end of the stream sends what is left.
    With equal labels a batch takes any rows: what mixed clusters make possible.
    """
    if rate <= 0 or batch < 1 or (patience is not None and patience < 0):
        raise UserError("waiting_times needs a rate above 0, batches of at least 1, a patience of at least 0")
    arrival = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, len(labels)))
    latency, free = np.empty(len(labels)), 0.0
    ready = _batches(np.asarray(labels), arrival, batch, np.inf if patience is None else patience)
    for at, rows in sorted(ready, key=lambda batch: batch[0]):
        free = max(at, free) + service.seconds(len(rows))
        latency[rows] = free - arrival[rows]
    return latency


def _batches(labels: np.ndarray, arrival: np.ndarray, size: int, patience: float) -> list[tuple[float, list]]:
    """When each batch is ready, and its rows."""
    out: list[tuple[float, list]] = []
    for label in np.unique(labels):
        waiting: list[int] = []
        for row in np.flatnonzero(labels == label):
            if waiting and arrival[row] > arrival[waiting[0]] + patience:
                out.append((arrival[waiting[0]] + patience, waiting))
                waiting = []
            waiting.append(int(row))
            if len(waiting) == size:
                out.append((arrival[row], waiting))
                waiting = []
        if waiting:
            end = min(arrival[-1], arrival[waiting[0]] + patience)
            out.append((max(end, arrival[waiting[-1]]), waiting))
    return out


def waiting_table(
    labels: np.ndarray,
    *,
    rate: float,
    batches: Sequence[int],
    service: Mapping[str, Service] | Service,
    seed: int = 0,
    patience: float | None = None,
):
    """p50, p95 and p99 of the waiting time (seconds) by batch size, by cluster and in mixed batches: a DataFrame.

    Columns batches ("by cluster" or "mixed"), size, p50, p95, p99. `service` may differ between the two.
    """
    import pandas as pd

    rows = []
    for name, of in (("by cluster", np.asarray(labels)), ("mixed", np.zeros(len(labels), dtype=int))):
        cost = service if isinstance(service, Service) else service[name]
        for size in batches:
            times = waiting_times(of, rate=rate, batch=size, service=cost, seed=seed, patience=patience)
            rows.append((name, size, *np.quantile(times, [0.5, 0.95, 0.99])))
    return pd.DataFrame(rows, columns=["batches", "size", "p50", "p95", "p99"])
