"""Documents become vectors: the mean of their input token embeddings.

    ids of document n ── rows of the embedding matrix (V, C) ── mean over a span ── L2 normalise ─▶ (C,)

Paper: the mean token embedding of the input. Released code: the mean over all positions of the padded row, so
the pad embedding dominates short rows (`span="padded"`). Here: the tokens the condition may read, no padding.
C is the embedding's width, in backbone.py C'; an adapter needs it to be that of the hidden states.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError, known
from .text import TokenTable, cumulative, ragged

SPANS = ("condition", "row", "padded")


def mean_embeddings(
    table: TokenTable, weight: Tensor, *, span: str = "condition", length: int = 0, normalised: bool = True
) -> Tensor:
    """Mean embedding (N, C) float32 of each document, of unit length unless `normalised` is false.

    They lie on the device of weight (V, C). span "condition" averages what the condition may read, "row" all
    tokens; the study's "padded" the `length` positions of the padded row, pad embedding included (longer rows
    are cut). A document with an empty span is zero. Raises UserError for an unknown span and for "padded"
    without a length.
    """
    known("span", [span], SPANS)
    if span == "padded" and not length:
        raise UserError('span="padded" needs length: the number of positions a row is padded to')
    start, count = table.offsets[:-1], table.lengths
    if span == "condition":
        start, count = start + table.condition[:, 0], table.condition[:, 1] - table.condition[:, 0]
    elif span == "padded":
        count = count.clip(max=length)
    ids = torch.from_numpy(table.ids[ragged(start, count)]).long().to(weight.device)
    offsets = torch.from_numpy(cumulative(count)[:-1]).to(weight.device)
    weight = weight.detach().float()
    if span == "padded":
        pads = torch.from_numpy(length - count).to(weight).unsqueeze(1)  # (N, 1)
        x = (F.embedding_bag(ids, weight, offsets, mode="sum") + pads * weight[table.pad_id]) / length
    else:
        x = F.embedding_bag(ids, weight, offsets, mode="mean")  # (N, C)
    return normalise(x) if normalised else x


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x (..., T, C) over the tokens where mask (..., T) is true, to (..., C); zeros where none is."""
    weight = mask.to(x.dtype).unsqueeze(-1)  # (..., T, 1)
    return (x * weight).sum(-2) / weight.sum(-2).clamp_min(1)  # (..., C)


def normalise(x: Tensor) -> Tensor:
    """x (..., C) scaled to Euclidean length 1; a zero vector stays zero."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)
