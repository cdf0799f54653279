"""Vectors of documents by name, and the sources that make conditions of them.

prefix  mean token embedding of the condition span                 every honest regime
padded  the same with the pad embedding of all other positions     the released scripts' mean, honest span
prompt  mean token embedding of all that is never scored            R4-prompt
row     mean token embedding of the whole row                      R9, a declared leak
length  the row's length and its share of padding, nothing else    R8, a declared leak
states  mean final hidden state over the condition span            R13

A source is built for one split and is called as `GroupMean` is, the paper's source, in the method's conditions.py.
Vectors come from the documents' condition spans (prefix or prompt), so nothing scored is read, except by the declared
leaks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from chameleon_lite import Arrangement, Backbone, Clustering, Condition, arrange
from chameleon_lite.backbones.transfer import sent
from chameleon_lite.conditions import GroupMean, group_means
from chameleon_lite.embed import mean_embeddings, normalise
from chameleon_lite.text import TokenTable, ragged
from chameleon_lite.train import Source

SMALL = (4, 8)  # rows: clusters below hold too few for a mean
DRAWS = 199  # permutations of the groups
CHUNK = 4_096  # documents whose hidden states are averaged at once


class Views(dict[str, Tensor]):
    """The vectors (N, C) of one split by name, each computed when first read and stored on the backbone's device."""

    def __init__(self, backbone: Backbone, table: TokenTable, states: np.ndarray, length: int) -> None:
        """states (L, C) are those of the table's tokens; `length` is that of a padded row."""
        super().__init__()
        self.table, self.states, self.length = table, states, length
        self.embedding, self.device, self.vocab = backbone.embedding.detach(), backbone.device, backbone.vocab
        self.start = table.offsets[:-1] + table.condition[:, 0]  # (N,) of the condition span among all tokens
        self.count = np.diff(table.condition)[:, 0].astype(np.int64)  # (N,) of its tokens
        ids = np.full((len(table), self.count.max(initial=1)), self.vocab)
        ids[np.arange(ids.shape[1]) < self.count[:, None]] = table.ids[ragged(self.start, self.count)]
        self.tokens = torch.from_numpy(ids).to(self.device)  # (N, P) ids of the condition span, padded with V

    def __missing__(self, name: str) -> Tensor:
        table, weight = self.table, self.embedding.cpu()  # a copy of a GPU's, which nothing keeps
        match name:
            case "prefix":
                x = mean_embeddings(table, weight)
            case "padded":
                x = span_vectors(table, weight, self.length)
            case "prompt":
                x = mean_embeddings(replace(table, condition=from_the_start(table.prefix)), weight)
            case "row":
                x = mean_embeddings(table, weight, span="row")
            case "length":
                share = torch.from_numpy(table.lengths / self.length).float()  # (N,) of a padded row: text
                x = F.pad(torch.stack([share, 1 - share], dim=1), (0, weight.shape[1] - 2))
            case "states":
                x, chunks = [], range(CHUNK, len(table), CHUNK)
                for start, count in zip(np.split(self.start, chunks), np.split(self.count, chunks)):
                    states = torch.from_numpy(self.states[ragged(start, count)]).float()
                    x.append(torch.segment_reduce(states, "mean", lengths=torch.from_numpy(count), axis=0))
                x = normalise(torch.cat(x))
        self[name] = x.to(self.device)
        return self[name]


def from_the_start(stop: np.ndarray) -> np.ndarray:
    """Spans (N, 2) of each document's first stop (N,) tokens."""
    return np.stack([np.zeros_like(stop), stop], axis=1).astype(np.int32)


def span_vectors(table: TokenTable, weight: Tensor, length: int | None) -> Tensor:
    """Normalised mean embedding (N, C) of each document's condition span; with `length`, over the padded row."""
    mean = mean_embeddings(table, weight, normalised=False)  # (N, C)
    if length is not None:
        count = torch.from_numpy(np.diff(table.condition)).to(mean)  # (N, 1)
        mean = (mean * count + weight[table.pad_id].float() * (length - count)) / length
    return normalise(mean)


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
        first = arrangement.groups(self.size).start[:-1]
        shift = len(first) // 2
        if arrangement.cluster is not None:  # groups never span clusters
            _, runs = torch.unique_consecutive(arrangement.cluster[first], return_counts=True)
            shift = min(int(runs.max()), shift)
        return (group + shift) % len(first)


class RandomMean(GroupMean):
    """The mean of a group of documents drawn at random for each order, whatever that order is (R5-clustered)."""

    def __call__(self, arrangement: Arrangement, rows: Tensor) -> tuple[Condition, Tensor | None]:
        return super().__call__(arrangement.once("drawn", lambda: self.drawn(arrangement.order)), rows)

    @staticmethod
    def drawn(order: Tensor) -> Arrangement:
        """Another order of the same documents, which follows from the first alone."""
        seed = int((order * torch.arange(1, len(order) + 1)).sum()) % (1 << 31)
        return arrange(len(order), None, torch.Generator().manual_seed(seed))


class LeaveOneOut(GroupMean):
    """The mean of the *other* documents of the row's group: context from the batch, none from the row (R10)."""

    def __call__(self, arrangement: Arrangement, rows: Tensor) -> tuple[Condition, Tensor]:
        condition, place = super().__call__(arrangement, rows)
        row = self.vectors[sent(rows, self.vectors.device)]
        mean = condition.vector if place is None else condition.vector[sent(place, row.device)]
        groups = arrangement.groups(self.size)
        size = groups.start.diff()[groups.of[rows]].to(row).unsqueeze(1)  # (B, 1)
        others = (mean * size - row) / (size - 1).clamp_min(1)
        return Condition(torch.where(size > 1, others, 0.0)), torch.arange(len(rows))


@dataclass(frozen=True, eq=False)
class Own:
    """Each row's vector of (N, C): per-sample conditioning.

    With `cluster` also its label, (N,) (R12, the oracle), or its weights of all labels, (N, K) (R27).
    """

    vectors: Tensor
    cluster: Tensor | None = None

    def __call__(self, arrangement: Arrangement, rows: Tensor) -> tuple[Condition, Tensor]:
        place = sent(rows, self.vectors.device)
        label = None if self.cluster is None else self.cluster.to(place.device)[place]
        return Condition(self.vectors[place], cluster=label), torch.arange(len(rows))


def counted(views: Views) -> Source:
    """Each row's vector and the counts (B, V) of the tokens in its condition span (R15)."""

    def source(arrangement: Arrangement, rows: Tensor) -> tuple[Condition, Tensor]:
        rows = sent(rows, views.device)
        ids = views.tokens[rows]  # (B, P), padded with V
        counts = torch.zeros(len(rows), views.vocab + 1, device=ids.device)
        counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=counts.dtype))
        return Condition(views["prefix"][rows], counts=counts[:, :-1]), torch.arange(len(rows))

    return source


def by_cluster(cluster: Tensor, vectors: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Source:
    """One condition per cluster of a step's rows: vectors(clusters (G,), rows (B,), group (B,)) are (G, C)."""

    def source(arrangement: Arrangement, rows: Tensor) -> tuple[Condition, Tensor | None]:
        present, group = torch.unique(cluster[rows], return_inverse=True)  # (G,), (B,)
        return Condition(vectors(present, rows, group)), group if len(present) > 1 else None

    return source


def stream_mean(vectors: Tensor, cluster: Tensor) -> Source:
    """The mean over the step's rows of the same cluster (N,): nothing is waited for (claim 15)."""
    return by_cluster(cluster, lambda _, rows, group: group_means(vectors[sent(rows, vectors.device)], group))


def train_centroid(centroids: Tensor, cluster: Tensor) -> Source:
    """The centroid (K, C) of the row's training cluster (N,): its information without its batch (R18)."""
    return by_cluster(cluster, lambda present, *_: centroids[sent(present, centroids.device)])


def batch_mean(vectors: Tensor) -> Source:
    """The plain mean of vectors (N, C) over the rows of a step: the whole batch is one conditioning group."""
    return lambda _, rows: (Condition(vectors[sent(rows, vectors.device)].mean(0, keepdim=True)), None)


def constant(vector: Tensor) -> Source:
    """The same vector (C,) for every group: the mean over the training documents (R3)."""
    return lambda *_: (Condition(vector[None]), None)


def mean_cosine(x: Tensor) -> float:
    """The mean cosine over all pairs of different rows of x (N, C); without an (N, N) matrix. NaN for one row."""
    unit = normalise(x.double())
    n, total = len(unit), unit.sum(0)  # (C,)
    return float((total @ total - unit.square().sum()) / (n * (n - 1))) if n > 1 else float("nan")


def main_direction(x: Tensor) -> tuple[Tensor, float]:
    """Place of each row (N,) along the direction of largest variance, and that direction's share of the variance."""
    centred = x.double() - x.double().mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    direction = vectors[:, -1]  # (C,)
    direction = direction * direction[direction.abs().argmax()].sign()  # else its sign would be arbitrary
    total = float(values.clamp_min(0).sum())
    return (centred @ direction).float(), float(values[-1]) / total if total else 0.0


def cluster_quality(clustering: Clustering, *, groups: Sequence[str], lengths: Sequence[int]) -> dict:
    """Sizes of the clusters, and their agreement with the documents' origins, groups (N,), and lengths (N,) in tokens.

    `adjusted_mutual_information` is 1 for clusters that are the groups, about 0 for chance, None with fewer than two
    groups; `length_variance_explained` is η²: the share of the variance of length that lies between clusters.
    `share_below_4` and `share_below_8` are the rows in clusters of fewer; `homogeneity…`: see `homogeneity_of`.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    sizes, labels = clustering.sizes, clustering.labels.cpu().numpy()
    filled = sizes[sizes > 0].double()
    length = pd.Series(np.asarray(lengths, float))
    between, total = length.groupby(labels).transform("mean").var(ddof=0), length.var(ddof=0)
    agreement = float(adjusted_mutual_info_score(list(groups), labels)) if len(set(groups)) > 1 else None
    return {
        "clusters": len(sizes),
        "empty": int((sizes == 0).sum()),
        "inertia": clustering.inertia,
        "sizes": {"min": int(filled.min()), "median": float(filled.quantile(0.5)), "max": int(filled.max())},
        **{f"share_below_{n}": float(filled[filled < n].sum() / filled.sum()) for n in SMALL},
        "adjusted_mutual_information": agreement,
        "length_variance_explained": float(between / total) if total else 0.0,
        **(homogeneity_of(labels, pd.factorize(np.asarray(groups))[0]) if len(set(groups)) > 1 else {}),
    }


def homogeneity_of(labels: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Homogeneity of clusters, labels (N,), in groups (N,): the share of the groups' entropy that clusters remove.

    `_by_chance` is its mean over permutations of the groups, `_p` their share that reaches the value, and
    `_attainable` that of clusters of the same sizes, filled with one group after the other.
    """
    generator, counts = np.random.default_rng(0), np.bincount(groups)

    def value(labels: np.ndarray, groups: np.ndarray) -> float:
        table = np.bincount(labels * len(counts) + groups, minlength=(labels.max() + 1) * len(counts))
        table = table.reshape(-1, len(counts)) / len(labels)  # (K, C) shares
        cluster, group = table.sum(1, keepdims=True), counts / len(labels)
        inside = np.where(table > 0, table, 1.0)
        within = -(table * np.log(inside / np.where(cluster > 0, cluster, 1.0))).sum()
        return float(1 + within / (group * np.log(group)).sum())

    found = value(labels, groups)
    chance = [value(labels, generator.permutation(groups)) for _ in range(DRAWS)]
    out = {"homogeneity": found, "homogeneity_by_chance": float(np.mean(chance))}
    out["homogeneity_attainable"] = value(np.sort(labels), np.sort(groups))
    return out | {"homogeneity_p": (1 + sum(x >= found for x in chance)) / (1 + DRAWS)}
