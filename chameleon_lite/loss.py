"""What is scored, and the cross-entropy of adapted heads on it.

    h (M, C), target (M,), update of each head, group (M,) of each state ─ head_losses ─▶ nats (H,)
    logits = h Wᵀ + b + α (h downᵀ) upᵀ + bias   (M, V)      loss = logsumexp(logits) − logits[target]   (M,)
    ids (B, T), mask (B, T) ─ next_token_pairs ─▶ row, column, target (M,) each, of a padded batch

M counts the scored states of all documents of a batch; for stored states states.py does the shift by one. By
default engine.py replaces `head_losses` and `token_losses` by those of fast/head_loss.py, same results up to
rounding; `_plain_losses` is the definition. It writes out the logits of a chunk of states and forgets
them: gradients come from writing them out again (torch.utils.checkpoint), so that memory never holds M × V
numbers. Losses are sums and counts until the last moment: a mean of means would depend on how the documents
were batched.
"""

from collections.abc import Sequence
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

CHUNK = 256  # states whose logits exist at one time
VOCAB_MULTIPLE = 64  # matrix units need aligned sizes: a vocabulary of 50,257 takes 7 times as long as 50,304
Updates = Sequence[HeadUpdate | None]  # of H heads, None for the frozen one
GroupOf = Sequence[Tensor | None] | None  # for each head the conditioning group of each state, (M,) int64


class HeadWeight:
    """A frozen head's weight, prepared once: in the matmul format, padded with zero rows to a multiple of 64.

    In a 16-bit format the mean row is subtracted first. That moves all logits of a token by one number, which
    changes neither softmax nor any gradient, and removes a large common offset that would cost digits.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None) -> None:
        """weight (V, C), bias (V,) or None; dtype defaults to the `matmul_dtype` of the weight's device."""
        dtype = dtype or matmul_dtype(weight.device)
        self.vocab, self.width = weight.shape
        self.padded = -(-self.vocab // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
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
    h: Tensor, target: Tensor, weight: HeadWeight, updates: Updates, groups: GroupOf = None, scale: float = 1
) -> Tensor:
    """The sum of next-token losses (H,), in nats, of H heads on the same states h (M, C); differentiable.

    target (M,) int64, IGNORED where a state does not count; updates: one per head, None for the frozen head;
    groups: for a head with G > 1 updates the group (M,) int64 of each state, on h's device or on the host
    (read there, it never makes a step wait for the GPU); scale: α. ValueError for shapes that do not fit.
    """
    if impl := engine.fast("head_losses"):
        return impl(h, target, weight, updates, groups, scale)
    return _plain_losses(h, target, weight, updates, groups, scale).sum(1)


@torch.no_grad()
def token_losses(
    h: Tensor, target: Tensor, weight: HeadWeight, updates: Updates, groups: GroupOf = None, scale: float = 1
) -> Tensor:
    """The next-token loss (H, M), in nats, of each state under each of H heads.

    h (M, C), target (M,) and the other arguments as for `head_losses`, and so the ValueError.
    """
    if impl := engine.fast("token_losses"):
        return impl(h, target, weight, updates, groups, scale)
    return _plain_losses(h, target, weight, updates, groups, scale)


def _plain_losses(h, target, weight, updates, groups, scale) -> Tensor:
    """Losses (H, M), chunk by chunk."""
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
        of_states = repeat(None) if group is None else group.to(x.device).split(CHUNK)
        chunks = zip(x.split(CHUNK), target.split(CHUNK), of_states)
        out.append(torch.cat([losses(*chunk, update) for chunk in chunks]))
    return torch.stack(out)  # (H, M)


def checked(h: Tensor, target: Tensor, weight: HeadWeight, updates: Updates, groups: GroupOf) -> list:
    """Each head's groups (M,) or None; ValueError for shapes that do not fit."""
    if h.dim() != 2 or h.shape[1] != weight.width or target.shape != h.shape[:1]:
        raise ValueError(f"h {tuple(h.shape)}, target {tuple(target.shape)}: not (M, {weight.width}), (M,)")
    groups = [None] * len(updates) if groups is None else list(groups)
    if len(groups) != len(updates):
        raise ValueError(f"{len(updates)} updates but {len(groups)} groups: one entry per head")
    for update, group in zip(updates, groups):
        if group is None and update is not None and update.groups != 1:
            raise ValueError(f"an update of {update.groups} groups needs the group (M,) of each state")
        if group is not None and group.shape != target.shape:
            raise ValueError(f"group {tuple(group.shape)} must be {tuple(target.shape)}")
    return groups


def next_token_pairs(ids: Tensor, mask: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is scored of a padded batch: row, the state's column, and target, (M,) each; rows ascending.

    ids (B, T), mask (B, T) true on real tokens, prefix (B,) tokens never scored. The state at t - 1 predicts
    the real token t, for every t of at least max(prefix, 1).
    """
    position = torch.arange(ids.shape[1], device=ids.device)  # (T,)
    scored = mask.bool() & (position[None] >= prefix[:, None].clamp_min(1))  # (B, T): is this token a target?
    row, column = scored.nonzero(as_tuple=True)  # (M,), (M,)
    return row, column - 1, ids[row, column]
