"""The adapted head's cross-entropy for several heads at once: one large product, gradients in the same pass.

    logits = h Wᵀ + b + α (h downᵀ) upᵀ + bias        g = softmax(logits) − onehot(target)        (M, V)
    ∂/∂up = α gᵀ (h downᵀ)     ∂/∂down = α (g up)ᵀ h     ∂/∂bias = Σ g     ∂/∂h = g W + α (g up) down

W and b are frozen, so one large product, h Wᵀ, is all that a step needs unless h requires its gradient. It is
done once for all heads, in 16-bit numbers where the machine has them; softmax and sums are in float32. Rows
go through in chunks, gradients are formed while a chunk's logits exist, and nothing of size V outlives it.
"""

import importlib.util
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..heads import HeadUpdate
from ..loss import GroupOf, HeadWeight, Updates, checked
from ..text import IGNORED
from .head_loss_torch import Chunk, HeadTask, RowGroups, TorchPass, buffer
from .recorded_groups import RecordedGroups

HAS_TRITON = importlib.util.find_spec("triton") is not None
MULTIPLE = 32  # of rows of 16-bit products on a CPU


class Call(NamedTuple):
    """What a pass needs besides rows and factors."""

    weight: HeadWeight
    runs: list[RowGroups | None]  # one per head
    scale: float
    chunk: int | None = None  # rows at a time
    kernel: str | None = None  # "torch" or "triton"; None: the device's faster one


def head_losses(h: Tensor, target: Tensor, weight: HeadWeight, updates: Updates, *more, **how) -> Tensor:
    """`loss.head_losses`; how: also `chunk` and `kernel` of `Call`."""
    h, target, call, _ = _in_order(h, target, weight, updates, *more, **how)
    flat = [x for update in updates for x in _terms(update)]
    if not torch.is_grad_enabled():  # autograd would still name what requires gradient as needed
        h, flat = h.detach(), [None if x is None else x.detach() for x in flat]
    return HeadLossFunction.apply(h, target, call, *flat)


@torch.no_grad()
def token_losses(h: Tensor, target: Tensor, weight: HeadWeight, updates: Updates, *more, **how) -> Tensor:
    """`loss.token_losses`; how: also `chunk` and `kernel` of `Call`."""
    rows = len(h)
    h, target, call, order = _in_order(h, target, weight, updates, *more, **how)
    tasks = [HeadTask(_terms(update), own, weight, call.scale) for update, own in zip(updates, call.runs)]
    nll, _ = forward_pass(h, target, call, tasks)
    nll = nll if order is None else torch.empty_like(nll).index_copy_(1, order, nll)
    return nll[:, :rows]


def _terms(update: HeadUpdate | None) -> HeadUpdate:
    """What an update adds; what adds nothing, factors of rank 0 too, is None."""
    if update is None or update.down is None or update.down.shape[1] > 0:
        return update or HeadUpdate()
    return HeadUpdate(bias=update.bias)


def _in_order(h, target, weight, updates: Updates, groups: GroupOf = None, scale=1.0, **how) -> tuple:
    """Rows, targets and the call, rows of one group side by side, and the order (M,) if that moved any.

    Correct in any order; but without the GPU kernels, fewer groups in a chunk make its products smaller. A CPU's
    16-bit products are compiled for each number of rows, and kept, 0.3 MB each: rows that do not count fill up.
    """
    groups = checked(h, target, weight, updates, groups)
    spare = -len(h) % MULTIPLE if h.device.type == "cpu" and weight.weight.dtype.itemsize == 2 else 0
    if spare and len(h):
        h, target = F.pad(h, (0, 0, 0, spare)), F.pad(target, (0, spare), value=IGNORED)
        groups = [g if g is None else torch.cat([g, g[-1:].expand(spare)]) for g in groups]
    runs, order = _runs(groups, h.device), None
    first = next((group for group in runs if group is not None), None)
    if first is not None and not first.ordered and not uses_triton(weight, how.get("kernel")):
        order = first.index.argsort(stable=True)
        runs = _runs([None if group is None else group.index[order] for group in runs], h.device)
        h, target = h[order], target[order]
    return h, target, Call(weight, runs, scale, **how), order


def _runs(groups: list[Tensor | None], device: torch.device) -> list[RowGroups | None]:
    """One RowGroups for each distinct index: heads often share one. A recording has its own."""
    distinct = {id(g): g for g in groups if g is not None}
    for i, g in distinct.items():
        distinct[i] = g if isinstance(g, RecordedGroups) else RowGroups.of(g, device)
    return [None if g is None else distinct[id(g)] for g in groups]


class HeadLossFunction(torch.autograd.Function):
    """Sums of losses (H,); all gradients are computed in forward and only scaled in backward."""

    @staticmethod
    def forward(ctx, h, target, call, *flat):
        """flat: the factors of head 1, of head 2, …, one tensor or None each."""
        of_heads = zip(_by_head(flat), call.runs, _by_head(ctx.needs_input_grad[3:]))
        tasks = [HeadTask(update, run, call.weight, call.scale, wanted) for update, run, wanted in of_heads]
        nll, gh = forward_pass(h, target, call, tasks, want_h=ctx.needs_input_grad[0])
        ctx.save_for_backward(gh, *(x for task in tasks for x in task.gradients))
        ctx.formats = h.dtype, [None if x is None else x.dtype for x in flat]
        return nll.sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """grad (H,) of the losses to gradients of h and of each head's factors."""
        gh, *flat = ctx.saved_tensors
        h_format, formats = ctx.formats
        out = []
        for share, sums, dtypes in zip(grad, _by_head(flat), _by_head(formats)):
            scaled = HeadUpdate(*(None if x is None else (x * share).to(d) for x, d in zip(sums, dtypes)))
            out += scaled._replace(up=None if scaled.up is None else scaled.up.transpose(1, 2))
        return (None if gh is None else torch.einsum("h,hmc->mc", grad, gh).to(h_format), None, None, *out)


def _by_head(flat) -> list[HeadUpdate]:
    n = len(HeadUpdate._fields)
    return [HeadUpdate(*flat[i : i + n]) for i in range(0, len(flat), n)]


def forward_pass(h: Tensor, target: Tensor, call: Call, tasks: list[HeadTask], want_h=False) -> tuple:
    """Losses (H, M) of H heads, and dloss/dh (H, M, C) if wanted; other gradients are left in the tasks."""
    weight, Pass = call.weight, TorchPass
    if uses_triton(weight, call.kernel):
        from .head_loss_triton import TritonPass as Pass
    one_pass = Pass(weight, tasks)
    size = call.chunk or one_pass.rows
    nll = torch.empty(len(tasks), len(h), dtype=weight.accumulate, device=h.device)
    gh = torch.zeros(len(tasks), *h.shape, dtype=weight.accumulate, device=h.device) if want_h else None
    for start in range(0, len(h), size):
        rows = slice(start, start + size)
        chunk = Chunk(h[rows].to(weight.weight.dtype), target[rows], rows)
        base = buffer(weight, "base", len(chunk.h), chunk.h.dtype)
        torch.mm(chunk.h, weight.weight.T, out=base)  # (n, Vp), shared by all heads
        nll[:, rows] = one_pass.chunk(chunk, base, None if gh is None else gh[:, rows])
        del base  # otherwise two chunks' logits would be allocated at once
    one_pass.finish()
    return nll, gh


def uses_triton(weight: HeadWeight, kernel: str | None) -> bool:
    """Whether the GPU kernels do the pass: if named, or on a GPU with 16-bit numbers and Triton."""
    if kernel not in (None, "torch", "triton"):
        raise ValueError(f"kernel {kernel!r} must be 'torch', 'triton' or None")
    if kernel is None and weight.weight.device.type == "cuda" and weight.weight.dtype.itemsize == 2:
        return HAS_TRITON
    return kernel == "triton"
