"""A step's documents in pieces, one of which goes through the layers at a time: its activations are the step's memory.

    documents of a step ─┬─ packed: rows of T tokens, documents one behind the other    no padding to speak of
                         └─ padded: documents of similar length, one a row              where a model refuses the former

Packing asks a model for two things: positions that start anew in each document, and a mask of who sees whom. Some take
both and ignore them, so that a probe decides, not a list of names.
"""

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.packing import first_fit, packed, sees
from ..data.ragged import by_length
from ..data.tokens import TokenTable
from ..loss import pick_next_token
from ..model.backbones import Backbone
from ..model.lora import without_lora
from ..states import sent

ROW_LENGTH = (
    256  # tokens of a packed row, where no document is longer: a longer one costs more attention, for nothing
)
ROW_MULTIPLE = 16  # attention with a mask is fastest on a GPU where the mask's rows are aligned


@dataclass(frozen=True, eq=False)
class Piece:
    """D documents in B rows of T tokens and their M scored pairs, on the layers' device."""

    documents: Tensor  # (D,) on the host: places in the rows of the step
    ids: Tensor  # (B, T) int64
    position: Tensor | None  # (B, T) int64; None: one document a row, from the row's start
    mask: Tensor  # (B, 1, T, T) who sees whom, or (B, T) real tokens
    state: Tensor  # (M,) flat place in B · T of the state before each scored token
    target: Tensor  # (M,)
    owner: Tensor  # (M,) place in `documents`


def row_length(longest: int, budget: int) -> int:
    """Tokens of a packed row: the longest document's if that is within the budget, and not fewer than ROW_LENGTH."""
    return max(ROW_LENGTH, min(_aligned(longest), budget // ROW_MULTIPLE * ROW_MULTIPLE))


def packed_pieces(
    table: TokenTable, rows: Tensor, length: int, budget: int, device: torch.device, n_rows: int | None = None
) -> Iterator[Piece]:
    """Documents rows (B,) in packed rows of `length`, at most `budget` tokens or one row a piece.

    `n_rows`: all pieces have as many rows, some of them empty. Documents longer than `length` come last, in pieces
    of longer rows.
    """
    lengths = table.lengths[rows.numpy()]
    short = lengths <= length
    longer = _aligned(int(lengths.max(initial=1)))
    for chosen, t, size in ((short, length, n_rows), (~short, longer, None)):
        places = np.flatnonzero(chosen)
        found = first_fit(lengths[places], t)
        at_once = size or max(1, budget // t)
        for low in range(0, len(found), at_once):
            own = [places[row] for row in found[low : low + at_once]]
            yield _packed_piece(table, rows.numpy(), own, t, size, device)


def padded_pieces(table: TokenTable, rows: Tensor, budget: int, device: torch.device) -> Iterator[Piece]:
    """Documents rows (B,) by length, one a row, in pieces of at most `budget` padded tokens or one document."""
    for places in by_length(table.lengths[rows.numpy()], budget):
        documents = rows.numpy()[places]
        ids, mask = table.padded(documents)
        row, column, target = pick_next_token(ids, mask, torch.from_numpy(table.prefix[documents]).long())
        state = row * ids.shape[1] + column
        yield Piece(
            torch.from_numpy(places),
            sent(ids, device),
            None,
            sent(mask, device),
            *sent(torch.stack([state, target, row]), device),
        )


@torch.no_grad()
def takes_packed(backbone: Backbone, longest: int) -> bool:
    """Whether the backbone's states of packed documents of up to `longest` tokens are those of each alone; LoRA is off.

    Asked at that length, since a layer's own sliding window shows in a document only that is longer.
    """
    if "position_ids" not in inspect.signature(backbone.body.forward).parameters:
        return False
    vocab, device, half = backbone.embedding.shape[0], backbone.device, longest // 2
    ids = torch.arange(2 * longest, device=device).view(2, longest) * 7_919 % vocab  # (2, T)
    document = torch.zeros_like(ids)
    document[1, half:] = 1  # the second row holds two
    position = torch.arange(longest, device=device) - half * document
    real = torch.ones_like(ids, dtype=torch.bool)
    with without_lora(backbone):
        alone = backbone.hidden(ids, real).float()  # (2, T, C)
        alone[1, half:] = backbone.hidden(ids[1:, half:], real[1:, half:])[0].float()
        try:
            gap = (backbone.hidden(ids, sees(document), position).float() - alone).norm() / alone.norm()
        except Exception:  # whatever a model raises that reads masks in another way
            return False
    return bool(gap < math.sqrt(torch.finfo(backbone.head.weight.dtype).eps))


def _packed_piece(
    table: TokenTable,
    rows: np.ndarray,
    own: list[np.ndarray],
    length: int,
    n_rows: int | None,
    device: torch.device,
) -> Piece:
    """Packed rows of places within `rows` as a piece; two copies to the device, whatever they hold."""
    if n_rows is None:  # no shape is asked for: not longer than the fullest row
        length = _aligned(max(int(table.lengths[rows[row]].sum()) for row in own))
    found = packed(table, [rows[row] for row in own], length, n_rows)
    ids, position, document = sent(torch.stack([found.ids, found.position, found.document]), device)
    pairs = sent(torch.stack([found.state, found.target, found.owner]), device)
    return Piece(torch.from_numpy(np.concatenate(own)), ids, position, sees(document), *pairs)


def _aligned(length: int) -> int:
    return -(-length // ROW_MULTIPLE) * ROW_MULTIPLE
