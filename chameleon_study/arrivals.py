"""Texts that arrive over time: what a condition may know by then, and how long a text waits for its batch.

    on the fly   texts in random order, batches of B; a cluster's condition may read
                   current      the prefixes in this batch                       ┐
                   past         those and all that came before                   │ possible in a stream
                   offline      prefixes of the whole evaluation set             ┘ not possible: it needs the future
                   whole rows   all tokens of the whole set, clustered on itself   the released way, a leak
    waiting      arrivals at a rate ─ a queue a cluster, full at B ─▶ one worker ─▶ seconds from arrival to result

What offline gains over past is due to texts that had not arrived; what whole rows gain, to reading the answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from chameleon_lite.app.score import Adapter
from chameleon_lite.backbones.formats import matmul_dtype
from chameleon_lite.batches import Arrangement
from chameleon_lite.cluster import Clustering, fit_clusters, nearest_centroid
from chameleon_lite.conditions import Source, group_means
from chameleon_lite.embed import mean_embeddings
from chameleon_lite.errors import UserError
from chameleon_lite.heads import Condition
from chameleon_lite.loss import HeadWeight
from chameleon_lite.states import ScoredStates, hidden_states
from chameleon_lite.text import Document, tokenise
from chameleon_lite.train import evaluate

KNOWN = ("current", "past", "offline", "whole rows")
LEAKS = ("whole rows",)


@dataclass
class Arrivals:
    """N texts in the order they arrive, in batches of B, and the vectors of the groups they are told.

    vectors (N, C) of prefixes, rows (N, C) of whole texts (only for the leak), labels (N,) nearest train centroids.
    """

    vectors: Tensor
    labels: Tensor
    order: Tensor
    batch: int
    rows: Tensor | None = None
    clusters: int = 1  # of the evaluation set on itself, for the leak
    seed: int = 0
    told: dict[str, Tensor] = field(
        default_factory=dict
    )  # (N, C) what each text is told, by what may be known

    def batches(self) -> list[Tensor]:
        """Document numbers (≤ B,) batch after batch, as they arrive."""
        return list(self.order.split(self.batch))

    def vector(self, known: str) -> Tensor:
        """What each text is told (N, C), computed once."""
        if known not in self.told:
            self.told[known] = (
                self._offline(known) if known in ("offline", "whole rows") else self._running(known)
            )
        return self.told[known]

    def _offline(self, known: str) -> Tensor:
        vectors, labels = self.vectors, self.labels
        if known == "whole rows":
            if self.rows is None:
                raise UserError("the leak needs the vectors of whole rows: give rows=")
            vectors, labels = self.rows, fit_clusters(self.rows, self.clusters, seed=self.seed).labels
        group = torch.unique(labels, return_inverse=True)[1]
        return group_means(vectors, group)[group]

    def _running(self, known: str) -> Tensor:
        """Means over the same cluster in this batch ("current"), or in this and all batches before ("past")."""
        out, label = torch.empty_like(self.vectors), torch.unique(self.labels, return_inverse=True)[1]
        sums = torch.zeros(int(label.max()) + 1, self.vectors.shape[1], dtype=torch.float64)
        counts = torch.zeros(len(sums), 1, dtype=torch.float64)
        for batch in self.batches():
            if known == "current":
                sums.zero_()
                counts.zero_()
            own = label[batch]
            sums.index_add_(0, own, self.vectors[batch].double())
            counts.index_add_(0, own, torch.ones(len(batch), 1, dtype=torch.float64))
            out[batch] = (sums[own] / counts[own]).to(out.dtype)
        return out

    def source(self, known: str, device) -> Source:
        """The condition source of `training.loop.evaluate`: one condition per distinct vector of the rows (B,)."""
        told = self.vector(known).to(device)

        def of(_: Arrangement, rows: Tensor) -> tuple[Condition, Tensor | None]:
            distinct, group = torch.unique(told[rows.to(device)], dim=0, return_inverse=True)
            return Condition(distinct), group if len(distinct) > 1 else None

        return of


def arrivals(
    vectors: Tensor, clustering: Clustering, batch: int, seed: int, rows: Tensor | None = None
) -> Arrivals:
    """Texts in a random order drawn by the seed; the evaluation set's own clustering has one cluster a batch."""
    if not 1 <= batch <= len(vectors):
        raise UserError(
            f"batches of {batch} do not fit {len(vectors)} texts; choose between 1 and {len(vectors)}"
        )
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
    labels, _ = clustering.assign(vectors)
    return Arrivals(vectors, labels, order, batch, rows, max(1, len(vectors) // batch), seed)


def evaluate_stream(
    head, scored, arriving: Arrivals, weight, *, known: Sequence[str] = KNOWN, scale: float = 1.0
) -> dict[str, Tensor]:
    """Sums of nats a text (N,) by what may be known, and "frozen"; all on the same batches and positions.

    scored: states.ScoredStates of the N texts; weight: the frozen head's HeadWeight.
    """
    heads = [(None, None), *((head, arriving.source(name, scored.device)) for name in known)]
    order = Arrangement(arriving.order)
    nll = evaluate(heads, scored, order, weight, rows=arriving.batch, scale=scale)
    return dict(zip(("frozen", *known), nll.cpu()))


def on_the_fly(
    model, documents: Sequence[Document], *, batch: int = 16, seed: int = 0, progress: bool = True
):
    """An adapter on documents that arrive in batches: a DataFrame with one row for each state of knowledge.

    Columns known, possible (in a stream), loss (nats a token), and against_frozen (the difference).
    Raises UserError for an adapter with LoRA in its layers: the comparison reads stored states of the frozen ones.
    """
    import pandas as pd

    backbone, settings = model.backbone, Adapter(model).prompts
    table = tokenise(documents, model.tokenizer, **settings)
    states = hidden_states(backbone, table, matmul_dtype(backbone.device), progress=progress)
    scored = ScoredStates(table, states, backbone.device)
    embedding = backbone.embedding.detach().cpu()
    prefixes, rows = (mean_embeddings(table, embedding, span=span) for span in ("condition", "row"))
    labels, distance = nearest_centroid(prefixes, model.centroids.cpu())
    clustering = Clustering(model.centroids.cpu(), labels, distance, float(distance.square().sum()))
    arriving = arrivals(prefixes, clustering, min(batch, len(table)), seed, rows)
    weight = HeadWeight(backbone.head.weight, backbone.head.bias)
    found = evaluate_stream(model.head, scored, arriving, weight, scale=model.config.scale)
    losses = {name: float(nll.sum()) / int(table.n_scored.sum()) for name, nll in found.items()}
    possible = {name: name in ("frozen", "current", "past") for name in losses}
    rows = [(name, possible[name], loss, loss - losses["frozen"]) for name, loss in losses.items()]
    return pd.DataFrame(rows, columns=["known", "possible", "loss", "against_frozen"])


@dataclass(frozen=True)
class Service:
    """Seconds one worker needs for a batch of n rows: fixed + each · n (loading weights, then work a row)."""

    fixed: float
    each: float

    def seconds(self, rows: int) -> float:
        """Seconds for a batch."""
        return self.fixed + self.each * rows


def waiting_times(
    labels: np.ndarray, *, rate: float, batch: int, service: Service, seed: int, patience: float | None = None
) -> np.ndarray:
    """Seconds from arrival to result (N,) of texts with cluster labels (N,), arriving at `rate` a second (Poisson).

    Each cluster fills a batch of its own; a full one goes to the single worker, first come first served. A batch
    also goes when its first text has waited `patience` seconds. Without patience the end of the stream sends what
    is left. Labels all equal are batches of any rows: what mixed clusters make possible.
    """
    if rate <= 0 or batch < 1 or (patience is not None and patience < 0):
        raise UserError(
            "waiting_times needs a rate above 0, a batch of at least 1 and a patience of at least 0"
        )
    arrival = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, len(labels)))
    ready = _batches(np.asarray(labels), arrival, batch, patience)
    latency, free = np.empty(len(labels)), 0.0
    for at, rows in sorted(ready, key=lambda one: one[0]):
        free = max(at, free) + service.seconds(len(rows))
        latency[rows] = free - arrival[rows]
    return latency


def _batches(
    labels: np.ndarray, arrival: np.ndarray, size: int, patience: float | None
) -> list[tuple[float, list]]:
    """When each batch is ready, and its rows."""
    out: list[tuple[float, list]] = []
    for label in np.unique(labels):
        waiting: list[int] = []
        for row in np.flatnonzero(labels == label):
            if waiting and patience is not None and arrival[row] > arrival[waiting[0]] + patience:
                out.append((arrival[waiting[0]] + patience, waiting))
                waiting = []
            waiting.append(int(row))
            if len(waiting) == size:
                out.append((arrival[row], waiting))
                waiting = []
        if waiting:
            end = arrival[-1] if patience is None else min(arrival[-1], arrival[waiting[0]] + patience)
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
    """p50, p95 and p99 of the waiting time (seconds) by batch size, batches by cluster beside mixed ones: a DataFrame.

    Columns batches ("by cluster" or "mixed"), size, p50, p95, p99. `service` may differ between the two.
    """
    import pandas as pd

    rows = []
    for name, own in (("by cluster", np.asarray(labels)), ("mixed", np.zeros(len(labels), dtype=int))):
        cost = service if isinstance(service, Service) else service[name]
        for size in batches:
            times = waiting_times(own, rate=rate, batch=size, service=cost, seed=seed, patience=patience)
            p50, p95, p99 = np.quantile(times, [0.5, 0.95, 0.99])
            rows.append({"batches": name, "size": size, "p50": p50, "p95": p95, "p99": p99})
    return pd.DataFrame(rows)
