"""Documents laid one behind the other in rows of one length, so that a model's pass holds hardly any padding.

    lengths (N,) ─ first_fit ─▶ rows of documents ─ packed ─▶ ids, position, document (B, T) ─ sees ─▶ mask

With each token's position in its own document, and a mask of what it may see, a model reads every document
as if it were alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..text import TokenTable, cumulative, ragged


@dataclass(frozen=True, eq=False)
class Packed:
    """D documents in B rows of T tokens, and their M scored tokens, one after another; all on the host."""

    ids: Tensor  # (B, T) int64
    position: Tensor  # (B, T) int64 inside the document
    document: Tensor  # (B, T) int64, counted in the order in which they lie; -1 for padding
    state: Tensor  # (M,) int64 flat place of the state that predicts each scored token
    target: Tensor  # (M,) int64
    owner: Tensor  # (M,) int64 document of each scored token, counted likewise


def first_fit(lengths: np.ndarray, capacity: int) -> list[np.ndarray]:
    """Lengths (N,) to rows of document numbers: the longest first, each into the first row with room for it.

    Raises ValueError for a document longer than `capacity`.
    """
    lengths = np.asarray(lengths)
    if lengths.max(initial=0) > capacity:
        raise ValueError(f"a document of {lengths.max()} tokens has no room in rows of {capacity}")
    room, rows = np.full(len(lengths), capacity), [[] for _ in lengths]
    for n in np.argsort(-lengths, kind="stable"):
        row = int(np.argmax(room >= lengths[n]))
        room[row] -= lengths[n]
        rows[row].append(n)
    return [np.array(row) for row in rows if row]


def packed(table: TokenTable, rows: Sequence[np.ndarray], length: int, n_rows: int | None = None) -> Packed:
    """Rows of document numbers, of `first_fit`, to B rows of T = `length`; B is `n_rows` where given.

    Rows beyond those that documents fill are padding.
    """
    sizes = np.array([len(row) for row in rows])
    order = np.concatenate(rows)  # (D,)
    lengths = table.lengths[order]
    before = cumulative(lengths)[:-1]  # (D,) tokens in front of each document, had the rows no gaps
    row_starts = before[cumulative(sizes)[:-1]]  # (rows,)
    start = before + np.repeat(np.arange(len(rows)) * length - row_starts, sizes)  # (D,) in the flat B · T
    flat, number = ragged(start, lengths), np.arange(len(order))  # (L,), (D,)
    shape = (n_rows or len(rows), length)
    ids, position, document = (np.full(shape, fill, dtype=np.int64) for fill in (table.pad_id, 0, -1))
    ids.flat[flat] = table.ids[ragged(table.offsets[order], lengths)]
    position.flat[flat] = ragged(np.zeros_like(start), lengths)
    document.flat[flat] = np.repeat(number, lengths)
    prefix = np.maximum(table.prefix[order], 1)  # nothing predicts a first token
    scored = np.maximum(lengths - prefix, 0)  # (D,)
    at = ragged(start + prefix, scored)  # (M,)
    arrays = (ids, position, document, at - 1, ids.flat[at], np.repeat(number, scored))
    return Packed(*map(torch.from_numpy, arrays))


def sees(document: Tensor) -> Tensor:
    """document (B, T) to mask (B, 1, T, T): whether a token (third axis) attends to another (last axis).

    It sees its own document up to itself. Padding sees the padding before it and itself: a position that saw
    nothing would be nan.
    """
    length = document.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=document.device).tril()
    return ((document[:, :, None] == document[:, None]) & causal)[:, None]
