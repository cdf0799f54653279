"""The adapted head's cross-entropy for several heads at once: one large product, gradients in the same pass.

    logits = h Wᵀ + b + α (h downᵀ) upᵀ + bias        g = softmax(logits) − onehot(target)        (M, V)
    ∂/∂up = α gᵀ (h downᵀ)     ∂/∂down = α (g up)ᵀ h     ∂/∂bias = Σ g     ∂/∂h = g W + α (g up) down

W and b are frozen, so one large product, h Wᵀ, is all that a step needs unless h requires its gradient. It is done
once for all heads, in 16-bit numbers where the machine has them; softmax and sums are in float32. Rows go
through in chunks, gradients are formed while a chunk's logits exist, and nothing of size V outlives its chunk.
"""

import importlib.util
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..heads import HeadUpdate
from ..loss import Groups, HeadWeight, Updates, checked
from .head_loss_torch import Factors, HeadTask, Scratch, TorchPass
from .row_groups import RowGroups


def head_losses(
    h: Tensor,
    target: Tensor,
    weight: HeadWeight,
    updates: Updates,
    groups: Groups = None,
    scale: float = 1.0,
    *,
    chunk: int | None = None,
    kernel: str | None = None,
) -> Tensor:
    """`loss.head_losses`; chunk: rows at a time; kernel: "torch" or "triton", by default the device's faster one."""
    h, target, runs, _ = _laid_out(h, target, weight, updates, groups, kernel)
    heads = [_factors(update) for update in updates]
    if not torch.is_grad_enabled():
        h, heads = h.detach(), [Factors(*(None if x is None else x.detach() for x in f)) for f in heads]
    return HeadLossFunction.apply(
        h, target, Call(weight, runs, scale, chunk, kernel), *(x for f in heads for x in f)
    )


@torch.no_grad()
def token_losses(
    h: Tensor,
    target: Tensor,
    weight: HeadWeight,
    updates: Updates,
    groups: Groups = None,
    scale: float = 1.0,
    *,
    chunk: int | None = None,
    kernel: str | None = None,
) -> Tensor:
    """`loss.token_losses`; further arguments as above."""
    h, target, runs, order = _laid_out(h, target, weight, updates, groups, kernel)
    tasks = [HeadTask(_factors(update), own, weight, scale) for update, own in zip(updates, runs)]
    nll, _ = forward_pass(h, target, weight, tasks, chunk, kernel)
    return nll if order is None else torch.empty_like(nll).index_copy_(1, order, nll)


def _factors(update: HeadUpdate | None) -> Factors:
    """What an update adds; what adds nothing, factors of rank 0 too, is None."""
    if update is None:
        return Factors()
    if update.down is not None and update.down.shape[1] > 0:
        return Factors(update.down, update.up, update.bias, update.mix)
    return Factors(bias=update.bias)


def _laid_out(
    h: Tensor, target: Tensor, weight: HeadWeight, updates: Updates, groups: Groups, kernel: str | None
) -> tuple[Tensor, Tensor, list[RowGroups | None], Tensor | None]:
    """The rows, targets and groups with rows of one group side by side, and the order (M,) if that moved any.

    Correct in any order; but without the GPU kernels, the fewer groups a chunk holds, the smaller its products.
    """
    groups = checked(h, target, weight, updates, groups)
    runs = _runs(groups, h.device)
    first = next((group for group in runs if group is not None), None)
    if first is None or first.ordered or uses_triton(weight, kernel):
        return h, target, runs, None
    order = first.index.argsort(stable=True)
    return (
        h[order],
        target[order],
        _runs([None if g is None else g.index[order] for g in runs], h.device),
        order,
    )


def _runs(groups: list[Tensor | None], device: torch.device) -> list[RowGroups | None]:
    """One RowGroups for each distinct index: heads often share one."""
    distinct = {id(g): RowGroups.of(g, device) for g in groups if g is not None}
    return [None if g is None else distinct[id(g)] for g in groups]


class Call(NamedTuple):
    """What a pass needs besides rows and factors."""

    weight: HeadWeight
    runs: list[RowGroups | None]
    scale: float
    chunk: int | None
    kernel: str | None


class HeadLossFunction(torch.autograd.Function):
    """Sums of losses (K,); all gradients are computed in forward and only scaled in backward."""

    @staticmethod
    def forward(ctx, h, target, call, *flat):
        """flat: the Factors of head 1, of head 2, …, one tensor or None each."""
        tasks = [
            HeadTask(factors, group, call.weight, call.scale, wanted)
            for factors, group, wanted in zip(_by_head(flat), call.runs, _by_head(ctx.needs_input_grad[3:]))
        ]
        nll, gh = forward_pass(
            h, target, call.weight, tasks, call.chunk, call.kernel, want_h=ctx.needs_input_grad[0]
        )
        ctx.save_for_backward(gh, *(x for task in tasks for x in task.gradients))
        ctx.formats = h.dtype, _by_head([None if x is None else x.dtype for x in flat])
        return nll.sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """grad (K,) of the losses to gradients of h and of each head's factors."""
        gh, *flat = ctx.saved_tensors
        h_format, formats = ctx.formats
        out = []
        for share, sums, dtypes in zip(grad, _by_head(flat), formats):
            scaled = Factors(*(None if x is None else (x * share).to(d) for x, d in zip(sums, dtypes)))
            out += scaled._replace(up=None if scaled.up is None else scaled.up.transpose(1, 2))
        return (None if gh is None else torch.einsum("k,kmc->mc", grad, gh).to(h_format), None, None, *out)


def _by_head(flat) -> list[Factors]:
    n = len(Factors._fields)
    return [Factors(*flat[i : i + n]) for i in range(0, len(flat), n)]


def forward_pass(
    h: Tensor,
    target: Tensor,
    weight: HeadWeight,
    tasks: list[HeadTask],
    chunk: int | None,
    kernel: str | None,
    want_h: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Losses (K, M) of K heads, and dloss/dh (K, M, C) if wanted; other gradients are left in the tasks."""
    if uses_triton(weight, kernel):
        from .head_loss_triton import TritonPass as Pass
    else:
        Pass = TorchPass
    one_pass = Pass(weight, tasks)
    rows_at_once = chunk or one_pass.rows
    nll = torch.empty(len(tasks), len(h), dtype=weight.accumulate, device=h.device)
    gh = torch.zeros(len(tasks), *h.shape, dtype=weight.accumulate, device=h.device) if want_h else None
    scratch = Scratch.of(weight, min(rows_at_once, len(h)))
    for task in tasks:
        task.scratch = scratch
    for start in range(0, len(h), rows_at_once):
        rows = slice(start, start + rows_at_once)
        hc = h[rows].to(weight.weight.dtype)  # (n, C)
        out = scratch("base", len(hc), hc.dtype) if h.device.type == "cpu" else None
        base = torch.mm(hc, weight.weight.T, out=out)  # (n, Vp), shared by all heads
        nll[:, rows] = one_pass.chunk(hc, base, target[rows], rows, None if gh is None else gh[:, rows])
        del base  # otherwise two chunks' logits would be allocated at once
    one_pass.finish()
    return nll, gh


def uses_triton(weight: HeadWeight, kernel: str | None) -> bool:
    """Whether the GPU kernels do the pass: if named, or on a GPU with 16-bit numbers where Triton is installed."""
    if kernel not in (None, "torch", "triton"):
        raise ValueError(f"kernel {kernel!r} must be 'torch', 'triton' or None")
    if kernel is None and weight.weight.device.type == "cuda" and weight.weight.dtype.itemsize == 2:
        return _has_triton()
    return kernel == "triton"


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
