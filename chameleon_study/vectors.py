"""Vectors of documents by name, the inputs of conditions; computed when a regime first needs them.

prefix  mean token embedding of the condition span                 every honest regime
padded  the same with the pad embedding of all other positions     the released scripts' mean, honest span
row     mean token embedding of the whole row                      R9, a declared leak
length  the row's length and its share of padding, nothing else    R8, a declared leak
states  mean final hidden state over the condition span            R13
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from chameleon_lite.backbone import Backbone
from chameleon_lite.cluster import Clustering
from chameleon_lite.embed import mean_embeddings, normalise
from chameleon_lite.text import TokenTable, ragged

CHUNK = 4_096  # documents whose hidden states are averaged at once


class Views(dict[str, Tensor]):
    """The vectors (N, C) of one split by name, each computed when first read and stored on the backbone's device."""

    def __init__(self, backbone: Backbone, table: TokenTable, states: np.ndarray, length: int) -> None:
        """states (L, C) are those of the table's tokens; `length` is that of a padded row."""
        super().__init__()
        self.table, self.states, self.length = table, states, length
        self.embedding, self.device = backbone.embedding.detach().cpu(), backbone.device
        self.vocab = backbone.vocab
        self.start = table.offsets[:-1] + table.condition[:, 0]  # (N,) of the condition span among all tokens
        self.count = np.diff(table.condition)[:, 0].astype(np.int64)  # (N,) of its tokens
        ids = np.full((len(table), self.count.max(initial=1)), self.vocab)
        ids[np.arange(ids.shape[1]) < self.count[:, None]] = table.ids[ragged(self.start, self.count)]
        self.tokens = torch.from_numpy(ids).to(self.device)  # (N, P) ids of the condition span, padded with V

    def __missing__(self, name: str) -> Tensor:
        table, weight = self.table, self.embedding
        match name:
            case "prefix":
                x = mean_embeddings(table, weight)
            case "padded":
                x = span_vectors(table, weight, self.length)
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


def span_vectors(table: TokenTable, weight: Tensor, length: int | None) -> Tensor:
    """Normalised mean embedding (N, C) of each document's condition span; with `length`, over the padded row."""
    mean = mean_embeddings(table, weight, normalised=False)  # (N, C)
    if length is not None:
        count = torch.from_numpy(np.diff(table.condition)).to(mean)  # (N, 1)
        mean = (mean * count + weight[table.pad_id].float() * (length - count)) / length
    return normalise(mean)


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
        "adjusted_mutual_information": agreement,
        "length_variance_explained": float(between / total) if total else 0.0,
    }
