"""Vectors of documents by name, from which conditions are made; computed when a regime first needs them.

prefix  mean token embedding of the condition span                 every honest regime
padded  the same with the pad embedding of all other positions     the released scripts' mean, honest span
row     mean token embedding of the whole row                      R9, a declared leak
length  the row's length and its share of padding, nothing else    R8, a declared leak
states  mean final hidden state over the condition span            R13
noisy-P the prefix view with P % of the rows' vectors replaced by foreign documents' (claim 7)
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from chameleon_lite.embed import mean_embeddings, normalise
from chameleon_lite.errors import unknown
from chameleon_lite.text import TokenTable, ragged

LEAKS = ("row", "length")  # views that read what is scored
CHUNK = 4_096  # documents whose hidden states are averaged at once


class Views:
    """The views of one split, each computed once and kept on the device."""

    def __init__(
        self, table: TokenTable, states: np.ndarray | None, embedding: Tensor, device, length: int
    ) -> None:
        """states (L, C) are those of the table's tokens; `length` is that of a padded row."""
        self.table, self.states, self.embedding = table, states, embedding
        self.device, self.length = device, length
        self._made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            if name not in MAKERS:
                raise unknown("view", name, MAKERS)
            self._made[name] = MAKERS[name](self).to(self.device)
        return self._made[name]


class Replaced:
    """Views of the same documents in which `prefix` stands for the prefix view."""

    def __init__(self, views: Views, prefix: Tensor) -> None:
        self.views, self.prefix = views, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self.prefix if name == "prefix" else self.views[name]


def with_foreign(own: Tensor, foreign: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """own (N, C) with round(share · N) rows replaced by rows of foreign (F, C): outliers in what a condition reads."""
    count = round(share * len(own))
    out, place = own.clone(), torch.randperm(len(own), generator=generator)[:count].to(own.device)
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


def _prefix(views: Views) -> Tensor:
    return mean_embeddings(views.table, views.embedding)


def _padded(views: Views) -> Tensor:
    span = torch.from_numpy((views.table.condition[:, 1] - views.table.condition[:, 0]).astype(np.float32))
    total = mean_embeddings(views.table, views.embedding, normalised=False) * span.unsqueeze(1).to(
        views.embedding
    )
    pads = (views.length - span).clamp_min(0).unsqueeze(1).to(views.embedding)
    return normalise(total + pads * views.embedding[views.table.pad_id].float())


def _row(views: Views) -> Tensor:
    return mean_embeddings(views.table, views.embedding, span="row")


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
    "prefix": _prefix,
    "padded": _padded,
    "row": _row,
    "length": _length,
    "states": _states,
}


def mean_cosine(x: Tensor) -> float:
    """The mean cosine over all pairs of different rows of x (N, C); no (N, N) matrix is made. NaN for one row."""
    unit = normalise(x.double())
    n, total = len(unit), unit.sum(0)  # (C,)
    return float((total @ total - unit.square().sum()) / (n * (n - 1))) if n > 1 else float("nan")


def main_direction(x: Tensor) -> tuple[Tensor, float]:
    """Place of each row (N,) along the direction of largest variance, and that direction's share of the variance.

    The sign is arbitrary in principle; here the largest entry of the direction is positive.
    """
    centred = x.double() - x.double().mean(0)
    covariance = centred.T @ centred  # (C, C)
    values, vectors = torch.linalg.eigh(covariance)
    direction = vectors[:, -1]  # (C,)
    direction = direction * direction[direction.abs().argmax()].sign()
    total = float(values.clamp_min(0).sum())
    return (centred @ direction).float(), float(values[-1]) / total if total else 0.0
