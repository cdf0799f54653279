"""Vectors of documents by name, and the sources that make conditions of them.

prefix  mean token embedding of the condition span                 every honest regime
padded  the same with the pad embedding of all other positions     the released scripts' mean, honest span
row     mean token embedding of the whole row                      R9, a declared leak
length  the row's length and its share of padding, nothing else    R8, a declared leak
states  mean final hidden state over the condition span            R13

A source is built for one split. It is a pure function of the epoch's arrangement and the rows (B,) of a step, and
returns the condition, one entry per group, and each row's group (B,), or None where all rows share one. Vectors come
from the documents' condition spans (prefix or prompt), so nothing scored is read, except by the declared leaks.
`GroupMean`, the paper's source, is in the method's own conditions.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chameleon_lite.backbone import Backbone
from chameleon_lite.batches import Arrangement
from chameleon_lite.conditions import GroupMean, group_means
from chameleon_lite.embed import mean_embeddings, normalise
from chameleon_lite.heads import Condition
from chameleon_lite.text import TokenTable, ragged

CHUNK = 4_096  # documents whose hidden states are averaged at once


class Views(dict[str, Tensor]):
    """The vectors (N, C) of one split by name, each computed when first read and stored on the backbone's device."""

    def __init__(self, backbone: Backbone, table: TokenTable, states: np.ndarray | None, length: int) -> None:
        """states (L, C) are those of the table's tokens; `length` is that of a padded row."""
        super().__init__()
        self.table, self.states, self.length = table, states, length
        self.shared, self.device, self.vocab = backbone.embedding.detach(), backbone.device, backbone.vocab
        self.start = table.offsets[:-1] + table.condition[:, 0]  # (N,) of the condition span among all tokens
        self.count = np.diff(table.condition)[:, 0].astype(np.int64)  # (N,) of its tokens
        ids = np.full((len(table), self.count.max(initial=1)), self.vocab)
        ids[np.arange(ids.shape[1]) < self.count[:, None]] = table.ids[ragged(self.start, self.count)]
        self.tokens = torch.from_numpy(ids).to(self.device)  # (N, P) ids of the condition span, padded with V

    @property
    def embedding(self) -> Tensor:
        """The input embeddings (V, C) on the host; every call copies them from a GPU, and nothing keeps the copy."""
        return self.shared.cpu()

    def __missing__(self, name: str) -> Tensor:
        self[name] = MAKERS[name](self).to(self.device)
        return self[name]


def with_foreign(vectors: Tensor, foreign: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """vectors (N, C) with round(share · N) rows replaced by rows of foreign (F, C): outliers for conditions."""
    count = round(share * len(vectors))
    place = torch.randperm(len(vectors), generator=generator)[:count].to(vectors.device)
    out = vectors.clone()
    pick = torch.randint(len(foreign), (count,), generator=generator).to(foreign.device)
    out[place] = foreign[pick].to(out)
    return out


def _padded(views: Views) -> Tensor:
    embedding = views.embedding
    count = torch.from_numpy(views.count)[:, None].to(embedding)  # (N, 1)
    total = mean_embeddings(views.table, embedding, normalised=False) * count
    pads = (views.length - count).clamp_min(0)
    return normalise(total + pads * embedding[views.table.pad_id].float())


def _length(views: Views) -> Tensor:
    share = torch.from_numpy(views.table.lengths / views.length).float()  # (N,) of a padded row that is text
    out = torch.zeros(len(share), views.shared.shape[1])
    out[:, 0], out[:, 1] = share, 1 - share
    return out


def _states(views: Views) -> Tensor:
    parts = []
    for low in range(0, len(views.count), CHUNK):
        start, count = views.start[low : low + CHUNK], views.count[low : low + CHUNK]
        states = torch.from_numpy(views.states[ragged(start, count)]).float()
        lengths = torch.from_numpy(count)
        parts.append(torch.segment_reduce(states, "mean", lengths=lengths, axis=0, unsafe=True))
    return normalise(torch.cat(parts))


MAKERS: dict[str, Callable[[Views], Tensor]] = {
    "prefix": lambda views: mean_embeddings(views.table, views.embedding),
    "padded": _padded,
    "row": lambda views: mean_embeddings(views.table, views.embedding, span="row"),
    "length": _length,
    "states": _states,
}


@dataclass(frozen=True)
class Split:
    """What condition sources are built from: N documents of one split, by clusterings that were fitted on train."""

    views: Views  # vectors (N, C) by name
    cluster: Tensor  # (N,) nearest centroid of the batching clustering
    centroids: Tensor  # (K, C)
    routing: Tensor  # (N,) nearest centroid of the routing clustering
    domain: Tensor  # (N,) number of the document's source, which only an oracle reads

    @property
    def vectors(self) -> Tensor:
        """The honest vectors (N, C): normalised mean token embeddings of the condition spans."""
        return self.views["prefix"]


class OtherCluster(GroupMean):
    """Another cluster's mean: as informative in form as the row's, and about other documents (R7, R7b)."""

    def read(self, arrangement: Arrangement, group: Tensor) -> Tensor:
        """The groups (G,) far enough along the order to lie in another cluster."""
        start = arrangement.groups(self.size).start
        count = len(start) - 1
        shift = count // 2
        if arrangement.cluster is not None:  # groups never span clusters
            _, runs = torch.unique_consecutive(arrangement.cluster[start[:-1]], return_counts=True)
            shift = min(int(runs.max()), shift)
        return (group + shift) % count


class LeaveOneOut(GroupMean):
    """The mean of the *other* documents of the row's group: context from the batch, none from the row (R10)."""

    def __call__(self, arrangement: Arrangement, rows: Tensor) -> tuple[Condition, Tensor]:
        condition, place = super().__call__(arrangement, rows)
        row = self.vectors[rows.to(self.vectors.device)]
        mean = condition.vector if place is None else condition.vector[place.to(row.device)]
        groups = arrangement.groups(self.size)
        size = groups.start.diff()[groups.of[rows]].to(row).unsqueeze(1)  # (B, 1)
        others = (mean * size - row) / (size - 1).clamp_min(1)
        return Condition(torch.where(size > 1, others, 0.0)), torch.arange(len(rows))


@dataclass(frozen=True, eq=False)
class Own:
    """Each row's vector of (N, C): per-sample conditioning; with `cluster` (N,) its label too (R12, the oracle)."""

    vectors: Tensor
    cluster: Tensor | None = None

    def __call__(self, arrangement: Arrangement, rows: Tensor) -> tuple[Condition, Tensor]:
        place = rows.to(self.vectors.device)
        label = None if self.cluster is None else self.cluster.to(place.device)[place]
        return Condition(self.vectors[place], cluster=label), torch.arange(len(rows))


@dataclass(frozen=True, eq=False)
class Counted:
    """Each row's vector and the counts (B, V) of the tokens in its condition span (R15)."""

    views: Views

    def __call__(self, arrangement: Arrangement, rows: Tensor) -> tuple[Condition, Tensor]:
        rows = rows.to(self.views.device)
        ids = self.views.tokens[rows]  # (B, P)
        counts = torch.zeros(len(rows), self.views.vocab + 1, device=ids.device)
        counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=counts.dtype))
        counts = counts[:, : self.views.vocab]
        return Condition(self.views["prefix"][rows], counts=counts), torch.arange(len(rows))


@dataclass(frozen=True, eq=False)
class StreamMean:
    """The mean over the step's rows of the same cluster (N,): nothing is waited for (claim 15)."""

    vectors: Tensor
    cluster: Tensor

    def __call__(self, arrangement: Arrangement, rows: Tensor) -> tuple[Condition, Tensor | None]:
        cluster, group = torch.unique(self.cluster[rows], return_inverse=True)  # (G,), (B,)
        means = group_means(self.vectors[rows.to(self.vectors.device)], group)
        return Condition(means), group if len(cluster) > 1 else None


@dataclass(frozen=True, eq=False)
class TrainCentroid:
    """The centroid (K, C) of the row's training cluster (N,): its information without its batch (R18)."""

    centroids: Tensor
    cluster: Tensor

    def __call__(self, arrangement: Arrangement, rows: Tensor) -> tuple[Condition, Tensor | None]:
        cluster, group = torch.unique(self.cluster[rows], return_inverse=True)
        vectors = self.centroids[cluster.to(self.centroids.device)]
        return Condition(vectors), group if len(cluster) > 1 else None


@dataclass(frozen=True, eq=False)
class BatchMean:
    """The plain mean of vectors (N, C) over the rows of a step: the whole batch is one conditioning group."""

    vectors: Tensor

    def __call__(self, arrangement: Arrangement, rows: Tensor) -> tuple[Condition, None]:
        return Condition(self.vectors[rows.to(self.vectors.device)].mean(0, keepdim=True)), None


class Constant:
    """The same vector (C,) for every group: the mean over the training documents (R3)."""

    def __init__(self, vector: Tensor) -> None:
        self.condition = Condition(vector[None])

    def __call__(self, arrangement: Arrangement, rows: Tensor) -> tuple[Condition, None]:
        return self.condition, None


def mean_cosine(x: Tensor) -> float:
    """The mean cosine over all pairs of different rows of x (N, C); without an (N, N) matrix. NaN for one row."""
    unit = normalise(x.double())
    n, total = len(unit), unit.sum(0)  # (C,)
    return float((total @ total - unit.square().sum()) / (n * (n - 1))) if n > 1 else float("nan")


def main_direction(x: Tensor) -> tuple[Tensor, float]:
    """Place of each row (N,) along the direction of largest variance, and that direction's share of the variance.

    The sign is arbitrary in principle; here the largest entry of the direction is positive.
    """
    centred = x.double() - x.double().mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    direction = vectors[:, -1]  # (C,)
    direction = direction * direction[direction.abs().argmax()].sign()
    total = float(values.clamp_min(0).sum())
    return (centred @ direction).float(), float(values[-1]) / total if total else 0.0
