"""Vectors of documents by name, the inputs of conditions; computed when a regime first needs them.

prefix  mean token embedding of the condition span                 every honest regime
padded  the same with the pad embedding of all other positions     the released scripts' mean, honest span
row     mean token embedding of the whole row                      R9, a declared leak
length  the row's length and its share of padding, nothing else    R8, a declared leak
states  mean final hidden state over the condition span            R13
noisy-P the prefix view with P % of the rows' vectors replaced by foreign documents' (claim 7)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chameleon_lite.embed import mean_embeddings, normalise
from chameleon_lite.errors import unknown
from chameleon_lite.text import TokenTable, ragged

CHUNK = 4_096  # documents whose hidden states are averaged at once


class Views:
    """The views of one split, each computed once and stored on the device."""

    def __init__(self, table: TokenTable, states: np.ndarray | None, embedding: Tensor, device, length: int):
        """states (L, C) are those of the table's tokens; `length` is that of a padded row."""
        self.table, self.states, self.embedding = table, states, embedding
        self.device, self.length = device, length
        self._computed: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._computed:
            if name not in MAKERS:
                raise unknown("view", name, MAKERS)
            self._computed[name] = MAKERS[name](self).to(self.device)
        return self._computed[name]


@dataclass(frozen=True)
class Replaced:
    """Views of the same documents with `prefix` in place of the prefix view."""

    views: Views
    prefix: Tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.prefix if name == "prefix" else self.views[name]


def with_foreign(vectors: Tensor, foreign: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """vectors (N, C) with round(share · N) rows replaced by rows of foreign (F, C): outliers for conditions."""
    count = round(share * len(vectors))
    place = torch.randperm(len(vectors), generator=generator)[:count].to(vectors.device)
    out = vectors.clone()
    pick = torch.randint(len(foreign), (count,), generator=generator).to(foreign.device)
    out[place] = foreign[pick].to(out)
    return out


def condition_tokens(table: TokenTable, vocab: int) -> Tensor:
    """Ids of each document's condition span, (N, P) int64, padded with `vocab`."""
    start, stop = (table.condition[:, i].astype(np.int64) for i in (0, 1))
    width = int((stop - start).max(initial=1))
    at = table.offsets[:-1, None] + start[:, None] + np.arange(width)  # (N, P)
    inside = np.arange(width) < (stop - start)[:, None]
    ids = table.ids[np.where(inside, at, 0)].astype(np.int64)
    return torch.from_numpy(np.where(inside, ids, vocab))


def _padded(views: Views) -> Tensor:
    table, weight = views.table, views.embedding
    span = torch.from_numpy(np.diff(table.condition).astype(np.float32))  # (N, 1)
    total = mean_embeddings(table, weight, normalised=False) * span.to(weight)
    pads = (views.length - span).clamp_min(0).to(weight)
    return normalise(total + pads * weight[table.pad_id].float())


def _length(views: Views) -> Tensor:
    share = torch.from_numpy(views.table.lengths / views.length).float()  # (N,) of a padded row that is text
    out = torch.zeros(len(share), views.embedding.shape[1])
    out[:, 0], out[:, 1] = share, 1 - share
    return out


def _states(views: Views) -> Tensor:
    start = views.table.offsets[:-1] + views.table.condition[:, 0]
    count = np.diff(views.table.condition)[:, 0].astype(np.int64)
    parts = []
    for low in range(0, len(count), CHUNK):
        piece = slice(low, low + CHUNK)
        states = torch.from_numpy(views.states[ragged(start[piece], count[piece])]).float()
        lengths = torch.from_numpy(count[piece])
        parts.append(torch.segment_reduce(states, "mean", lengths=lengths, axis=0, unsafe=True))
    return normalise(torch.cat(parts))


MAKERS: dict[str, Callable[[Views], Tensor]] = {
    "prefix": lambda views: mean_embeddings(views.table, views.embedding),
    "padded": _padded,
    "row": lambda views: mean_embeddings(views.table, views.embedding, span="row"),
    "length": _length,
    "states": _states,
}


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
