"""What is scored, and the cross-entropy of adapted heads on it.

    ids (B, T), mask (B, T) ─ next_token ─▶ states (M, C), target (M,) ─ head_losses ─▶ nats (K,) of K heads
    logits = h Wᵀ + b + α (h downᵀ) upᵀ + bias          loss = logsumexp(logits) − logits[target]          (M, V)

The plain form below writes out the logits of a chunk of rows and forgets them: gradients come from writing them out
again (torch.utils.checkpoint), so that memory never holds M × V numbers. Losses are sums and counts until the last
moment: a mean of means depends on how the rows were batched (audit, row 7).
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import engine
from .backbones.formats import matmul_dtype
from .heads import HeadUpdate, add_update
from .text import IGNORED

ROWS = 256  # whose logits exist at one time
ROW_MULTIPLE = 64  # matrix units need aligned columns: GPT-2's 50,257 take seven times as long as 50,304
Updates = Sequence[HeadUpdate | None]
Groups = Sequence[Tensor | None] | None
Losses = Callable[[Tensor, Tensor, Tensor], Tensor]  # states (M, C), targets (M,), rows (M,) ─▶ sums of nats


class HeadWeight:
    """A frozen head's weight, prepared once: in the matmul format, rows padded with zeros to a multiple of 64.

    In a 16-bit format the mean row is subtracted first. That moves all logits of a token by one number, which
    changes neither softmax nor any gradient, and removes a large common offset that would cost digits.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None) -> None:
        """weight (V, C), bias (V,) or None; dtype defaults to the `matmul_dtype` of the weight's device."""
        dtype = dtype or matmul_dtype(weight.device)
        self.vocab, self.width = weight.shape
        self.padded = -(-self.vocab // ROW_MULTIPLE) * ROW_MULTIPLE
        exact = weight.detach()
        if dtype.itemsize == 2:
            exact = exact.float() - exact.float().mean(0)
        spare, self.bias = self.padded - self.vocab, None
        self.weight = F.pad(exact.to(dtype), (0, 0, 0, spare))  # (Vp, C), always a copy
        if bias is not None:
            self.bias = F.pad(bias.detach().to(weight.device, self.accumulate), (0, spare))  # (Vp,)

    @property
    def accumulate(self) -> torch.dtype:
        """The format of softmax, losses and gradient sums: float32, or float64 for a float64 weight."""
        return torch.promote_types(self.weight.dtype, torch.float32)


def head_losses(
    h: Tensor, target: Tensor, weight: HeadWeight, updates: Updates, groups: Groups = None, scale: float = 1.0
) -> Tensor:
    """The sum of next-token losses (K,), in nats, of K heads on the same h (M, C); differentiable.

    target (M,) int64, IGNORED where a row does not count; updates: one per head, None for the frozen head;
    groups: for a head with G > 1 updates the group (M,) int64 of each row, on h's device or on the host (read there,
    it never makes a step wait for the GPU); scale: α. ValueError for shapes that do not fit.
    """
    if impl := engine.fast("head_losses"):
        return impl(h, target, weight, updates, groups, scale)
    return _row_losses(h, target, weight, updates, groups, scale).sum(1)


@torch.no_grad()
def token_losses(
    h: Tensor, target: Tensor, weight: HeadWeight, updates: Updates, groups: Groups = None, scale: float = 1.0
) -> Tensor:
    """The next-token loss (K, M), in nats, of each row under each of K heads.

    h (M, C), target (M,) and the other arguments as for `head_losses`, and so the ValueError.
    """
    if impl := engine.fast("token_losses"):
        return impl(h, target, weight, updates, groups, scale)
    return _row_losses(h, target, weight, updates, groups, scale)


def _row_losses(h, target, weight, updates, groups, scale) -> Tensor:
    """Losses (K, M), chunk by chunk."""
    groups = checked(h, target, weight, updates, groups)
    x = h.to(weight.accumulate)  # (M, C)
    matrix = weight.weight[: weight.vocab].to(x.dtype)  # (V, C)
    bias = None if weight.bias is None else weight.bias[: weight.vocab]  # (V,)

    def losses(x: Tensor, target: Tensor, group: Tensor | None, update: HeadUpdate | None) -> Tensor:
        logits = F.linear(x, matrix, bias)  # (n, V)
        if update is not None:
            logits = add_update(logits, x, update, group, scale)
        return F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none")  # (n,)

    if torch.is_grad_enabled():
        losses = partial(checkpoint, losses, use_reentrant=False, preserve_rng_state=False)
    out = []
    for update, group in zip(updates, groups):
        of_rows = repeat(None) if group is None else group.to(x.device).split(ROWS)
        chunks = zip(x.split(ROWS), target.split(ROWS), of_rows)
        out.append(torch.cat([losses(*chunk, update) for chunk in chunks]))
    return torch.stack(out)  # (K, M)


def checked(h: Tensor, target: Tensor, weight: HeadWeight, updates: Updates, groups: Groups) -> list:
    """Each head's groups (M,) or None; ValueError for shapes that do not fit."""
    if h.dim() != 2 or h.shape[1] != weight.width or target.shape != h.shape[:1]:
        raise ValueError(f"h {tuple(h.shape)}, target {tuple(target.shape)}: not (M, {weight.width}), (M,)")
    groups = [None] * len(updates) if groups is None else list(groups)
    if len(groups) != len(updates):
        raise ValueError(f"{len(updates)} updates but {len(groups)} groups: one entry per head")
    for update, group in zip(updates, groups):
        if group is None and update is not None and update.groups != 1:
            raise ValueError(f"an update of {update.groups} groups needs the group (M,) of each row")
        if group is not None and group.shape != target.shape:
            raise ValueError(f"group {tuple(group.shape)} must be {tuple(target.shape)}")
    return groups


def next_token(
    hidden: Tensor, ids: Tensor, mask: Tensor, prefix: Tensor, losses: Losses
) -> tuple[Tensor, int]:
    """Shifted, padding-masked cross-entropy over the positions after each row's prefix: (sum of nats, tokens).

    hidden (B, T, C); ids (B, T); mask (B, T) true on real tokens; prefix (B,) tokens never scored, at least 1.
    """
    row, column, target = pick_next_token(ids, mask, prefix)
    return losses(hidden[row, column], target, row), len(row)


def pick_next_token(ids: Tensor, mask: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, state's column and target (M,) each: the state at t - 1 predicts the real token t ≥ prefix (B,), t ≥ 1."""
    position = torch.arange(ids.shape[1], device=ids.device)  # (T,)
    scored = mask.bool() & (position[None] >= prefix[:, None].clamp_min(1))  # (B, T): is this token a target?
    row, column = scored.nonzero(as_tuple=True)  # (M,), (M,)
    return row, column - 1, ids[row, column]
