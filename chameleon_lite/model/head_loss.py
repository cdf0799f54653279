"""The adapted head's cross-entropy without the (tokens × vocabulary) matrix, for several heads at once.

    logits = h Wᵀ + b + α (h downᵀ) upᵀ + bias        g = softmax(logits) − onehot(target)        (M, V)
    ∂/∂up = α gᵀ (h downᵀ)     ∂/∂down = α (g up)ᵀ h     ∂/∂bias = Σ g     ∂/∂h = g W + α (g up) down

W and b are frozen, so one large product, h Wᵀ, is all that a step needs unless h asks for its gradient. It is done
once for all heads, in 16-bit numbers where the machine has them; softmax and sums are in float32. Rows go
through in chunks, gradients are formed while a chunk's logits exist, and nothing of size V outlives its chunk.

`plain_losses` is the same in two readable lines: the definition, and what the tests compare with.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .capability import matmul_dtype
from .head_loss_pass import IGNORED, HeadLossFunction, HeadTask, forward_pass, uses_triton
from .heads.interface import HeadUpdate, apply_update
from .row_groups import Groups, RowGroups

__all__ = [
    "IGNORED",
    "HeadWeight",
    "RowGroups",
    "head_losses",
    "matmul_dtype",
    "plain_losses",
    "token_losses",
]

ROW_MULTIPLE = (
    64  # matrix units need aligned columns: GPT-2's 50,257 as such cost seven times as much as 50,304
)


class HeadWeight:
    """A frozen head's weight, prepared once: in the matmul format, rows padded with zeros to a multiple of 64.

    In a 16-bit format the mean row is taken off first. That moves all logits of a token by one number, which
    neither softmax nor any gradient sees, and takes away a large common offset that would cost digits.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        """weight (V, C), bias (V,) or None; dtype defaults to the device's `matmul_dtype`."""
        device = torch.device(device) if device is not None else weight.device
        dtype = dtype or matmul_dtype(device)
        self.vocab, self.width = weight.shape
        self.padded = -(-self.vocab // ROW_MULTIPLE) * ROW_MULTIPLE
        exact = weight.detach().to(device)
        if dtype.itemsize == 2:
            exact = exact.float() - exact.float().mean(0)
        self.weight = torch.zeros(self.padded, self.width, dtype=dtype, device=device)  # (Vp, C)
        self.weight[: self.vocab] = exact
        self.bias = self.padded_bias = None
        if bias is not None:
            self.padded_bias = torch.zeros(self.padded, dtype=self.accumulate, device=device)  # (Vp,)
            self.bias = self.padded_bias[: self.vocab]
            self.bias.copy_(bias.detach())

    @property
    def accumulate(self) -> torch.dtype:
        """The format of softmax, losses and gradient sums: float32, or float64 for a float64 weight."""
        return torch.promote_types(self.weight.dtype, torch.float32)


def head_losses(
    h: Tensor,
    target: Tensor,
    weight: HeadWeight,
    updates: Sequence[HeadUpdate | None],
    *,
    groups: Groups = None,
    chunk: int | None = None,
    scale: float = 1.0,
    kernel: str | None = None,
) -> Tensor:
    """The sum of next-token losses (K,) of K heads on the same h (M, C), differentiable.

    target (M,) int64, IGNORED where a row counts nothing; updates: one a head, None for the frozen one;
    groups: for a head with G > 1 updates each row's own, as `RowGroups` or as an index (M,); chunk: rows at a time;
    scale: α; kernel: "torch" or "triton", by default the faster one that the device has.
    """
    h, target, listed, _ = _laid_out(h, target, weight, updates, groups, kernel)
    factors = [tensor for update in updates for tensor in _tensors(update)]
    if not torch.is_grad_enabled():
        h, factors = h.detach(), [None if x is None else x.detach() for x in factors]
    return HeadLossFunction.apply(h, target, weight, listed, chunk, scale, kernel, *factors)


@torch.no_grad()
def token_losses(
    h: Tensor,
    target: Tensor,
    weight: HeadWeight,
    updates: Sequence[HeadUpdate | None],
    *,
    groups: Groups = None,
    chunk: int | None = None,
    scale: float = 1.0,
    kernel: str | None = None,
) -> Tensor:
    """The next-token loss (K, M) of every row under each of K heads; arguments as for `head_losses`."""
    h, target, listed, order = _laid_out(h, target, weight, updates, groups, kernel)
    tasks = [HeadTask(*_tensors(update), group, weight, scale) for update, group in zip(updates, listed)]
    nll, _ = forward_pass(h, target, weight, tasks, chunk, kernel)
    if order is None:
        return nll
    return torch.empty_like(nll).index_copy_(1, order, nll)


def _tensors(update: HeadUpdate | None) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """(down, up, bias, mix) with what adds nothing, rank-0 factors too, as None."""
    if update is None:
        return None, None, None, None
    if update.down is not None and update.down.shape[1] > 0:
        return update.down, update.up, update.bias, update.mix
    return None, None, update.bias, None


def _laid_out(
    h: Tensor,
    target: Tensor,
    weight: HeadWeight,
    updates: Sequence[HeadUpdate | None],
    groups: Groups,
    kernel: str | None,
) -> tuple[Tensor, Tensor, list[RowGroups | None], Tensor | None]:
    """The rows, target and groups with rows of one group side by side, and the order (M,) if that moved any.

    Correct in any order; but without the GPU kernels, the fewer groups a chunk holds, the smaller its products.
    """
    listed = _checked(h, target, weight, updates, groups)
    first = next((group for group in listed if group is not None), None)
    if first is None or first.ordered or uses_triton(weight, kernel):
        return h, target, listed, None
    order = first.index.argsort(stable=True)
    return (
        h[order],
        target[order],
        [None if g is None else RowGroups.of(g.index[order]) for g in listed],
        order,
    )


def plain_losses(
    h: Tensor,
    target: Tensor,
    weight: HeadWeight,
    updates: Sequence[HeadUpdate | None],
    *,
    groups: Groups = None,
    chunk: int | None = None,
    scale: float = 1.0,
) -> Tensor:
    """The sum of next-token losses (K,) of K heads on the same h (M, C), with every matrix written out.

    Takes what `head_losses` takes; `chunk` changes nothing here.
    """
    listed = [None if g is None else g.index for g in _checked(h, target, weight, updates, groups)]
    logits = [_plain_logits(h, weight, update, group, scale) for update, group in zip(updates, listed)]
    return torch.stack([F.cross_entropy(x, target, ignore_index=IGNORED, reduction="sum") for x in logits])


def _plain_logits(
    h: Tensor, weight: HeadWeight, update: HeadUpdate | None, group: Tensor | None, scale: float
) -> Tensor:
    """Logits (M, V) of one head; `group` (M,) says which of the update's G groups a row belongs to."""
    x = h.to(weight.accumulate)  # (M, C)
    logits = F.linear(x, weight.weight[: weight.vocab].to(x.dtype), weight.bias)  # (M, V)
    if update is None:
        return logits
    if group is None:
        return logits + apply_update(x, update, scale)
    if update.down is not None:
        if update.mix is not None:  # one pair of factors for all groups
            z = (x @ update.down[0].to(x.dtype).T) * update.mix.to(x.dtype)[group]  # (M, R)
            return logits + scale * z @ update.up[0].to(x.dtype).T
        z = torch.einsum("mc,mrc->mr", x, update.down.to(x.dtype)[group])  # (M, R)
        logits = logits + scale * torch.einsum("mr,mvr->mv", z, update.up.to(x.dtype)[group])
    return logits if update.bias is None else logits + update.bias.to(x.dtype)[group]


def _checked(
    h: Tensor, target: Tensor, weight: HeadWeight, updates: Sequence[HeadUpdate | None], groups: Groups
) -> list[RowGroups | None]:
    """Each head's groups of the M rows, or None; ValueError for shapes that do not fit."""
    if h.dim() != 2 or h.shape[1] != weight.width or target.shape != h.shape[:1]:
        raise ValueError(
            f"h {tuple(h.shape)} and target {tuple(target.shape)} must be (M, {weight.width}) and (M,)"
        )
    listed = list(groups) if groups is not None else [None] * len(updates)
    if len(listed) != len(updates):
        raise ValueError(f"{len(updates)} updates but {len(listed)} groups: one entry a head")
    for update, group in zip(updates, listed):
        if group is None and update is not None and update.groups != 1:
            raise ValueError(
                f"an update of {update.groups} groups needs an index (M,) that says each row's group"
            )
        index = group.index if isinstance(group, RowGroups) else group
        if index is not None and index.shape != target.shape:
            raise ValueError(f"group index {tuple(index.shape)} must be {tuple(target.shape)}")
    known = {id(g): RowGroups.of(g) for g in listed if isinstance(g, Tensor)}  # heads often share one index
    return [known.get(id(g), g) for g in listed]
