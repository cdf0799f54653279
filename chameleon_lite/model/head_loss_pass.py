"""One pass over the rows for all heads: loss and, while a chunk's logits exist, gradients (see `head_loss.py`).

    chunk of n rows ─ one product h Wᵀ (n, Vp) ─┬─ head 1: + z upᵀ ─ softmax ─ loss, gradients
                                                └─ head 2: …               z = α h downᵀ (n, R)

A head with G updates is done as one head of a larger rank: the factors of the groups present in the chunk are laid
side by side, R' = groups · R, and z is zero but in the slots of the row's own group. No loop over groups or rows.
A head with one pair of factors and G mixtures of their R slots does the same with the row's own mixture: z ∘ mix.
"""

import importlib.util
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..data.tokens import IGNORED
from .row_groups import RowGroups
from .scratch import Scratch

CPU_ROWS, CUDA_ROWS = 128, 510  # rows a chunk: last-level cache; memory
# Probabilities below 6e-8 vanish in float16 and those below 6e-5 lose digits; this shift by 2^10 keeps them.
FP16_SHIFT = 1_024.0
DIGITS_FROM = 1e-30  # of a float32 probability; below 1e-38 it loses digits, below 1e-45 it is zero


@dataclass
class ChunkFactors:
    """What one head adds to one chunk's logits, in the matmul format; R' = R × groups present."""

    down: Tensor | None  # (R', C)
    up: Tensor | None  # (Vp, R')
    own: (
        Tensor | None
    )  # (n, R') one in the slots of the row's group, or its mixture; None where all rows are alike
    bias: Tensor | None  # (n, Vp), or (1, Vp) where there is one group
    ids: Tensor | None  # (groups present,) their indices
    local: Tensor | None  # (n,) each row's position in ids
    aligned_up: Tensor | None = None  # (Vp, a multiple of 8) up with zero columns, as GPU products want it


class HeadTask:
    """One head during one pass: its factors chunk by chunk, and the sums of its gradients."""

    def __init__(
        self,
        down: Tensor | None,
        up: Tensor | None,
        bias: Tensor | None,
        mix: Tensor | None,
        group: RowGroups | None,
        weight,
        scale: float,
    ) -> None:
        self.down, self.up, self.bias, self.mix, self.scale, self.weight = down, up, bias, mix, scale, weight
        self.scratch: Scratch | None = None  # set by the pass
        self.mix_of = (
            group.index if group is not None and mix is not None else None
        )  # (M,) each row's mixture
        self.group = None if mix is not None or (down is None and bias is None) else group
        self._whole: ChunkFactors | None = None
        self.wanted = (False,) * 4  # which of the four are
        self.gradients: list[Tensor | None] = [
            None
        ] * 4  # of down (G, R, C), up (G, R, V), bias (G, V), mix (G, R)

    @property
    def whole(self) -> ChunkFactors:
        """The factors of a head whose rows all use the same ones, laid out once a pass."""
        if self._whole is None:
            self._whole = self._lay_out(self.down, self.up, self.bias)
        return self._whole

    def start_sums(self) -> None:
        """Zeros for the gradients that are `wanted`."""
        shapes = (self.down, None if self.up is None else self.up.transpose(1, 2), self.bias, self.mix)
        self.gradients = [
            torch.zeros(x.shape, dtype=self.weight.accumulate, device=x.device) if want else None
            for x, want in zip(shapes, self.wanted)
        ]

    def _lay_out(self, down: Tensor | None, up: Tensor | None, bias: Tensor | None) -> ChunkFactors:
        """The factors of some groups, (g, R, C), (g, V, R), (g, V), side by side and padded."""
        weight, laid = self.weight, ChunkFactors(None, None, None, None, None, None)
        if down is not None:
            laid.down = down.to(weight.weight.dtype).flatten(0, 1)  # (g·R, C)
            laid.up = weight.weight.new_zeros(weight.padded, laid.down.shape[0])  # (Vp, g·R)
            laid.up[: weight.vocab].unflatten(1, down.shape[:2]).copy_(up.transpose(0, 1))
        if bias is not None:
            laid.bias = torch.zeros(len(bias), weight.padded, dtype=weight.accumulate, device=bias.device)
            laid.bias[:, : weight.vocab] = bias
        return laid

    def factors(self, rows: slice) -> ChunkFactors:
        """The factors that the chunk's rows need."""
        if self.mix is not None:
            own = self.mix.to(self.weight.weight.dtype)  # (G, R)
            return replace(self.whole, own=own if self.mix_of is None else own[self.mix_of[rows]])  # (n, R)
        if self.group is None:
            return self.whole
        ids, local = torch.unique(self.group.index[rows], return_inverse=True)
        device = self.weight.weight.device
        ids, local = ids.to(device), local.to(device)
        laid = self._lay_out(*(None if x is None else x[ids] for x in (self.down, self.up, self.bias)))
        laid.ids, laid.local = ids, local
        if laid.down is not None:
            own = torch.nn.functional.one_hot(local, len(ids)).to(laid.down.dtype)  # (n, groups)
            laid.own = own.repeat_interleave(self.down.shape[1], dim=1)  # (n, R')
        laid.bias = None if laid.bias is None else laid.bias[local]
        return laid

    def add(self, which: int, part: Tensor, ids: Tensor | None) -> None:
        """Add a chunk's gradient of down (R', C), up (R', V), bias (groups, V) or mix (G, R) to its sum."""
        total = self.gradients[which]
        part = part.reshape(-1, *total.shape[1:])
        total.add_(part) if ids is None else total.index_add_(0, ids, part)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, with the result in float32 at least."""
    if a.dtype.itemsize > 2:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float() if a.dtype == torch.bfloat16 else a.float() @ b.float()


def low_rank_states(hc: Tensor, part: ChunkFactors, scale: float) -> Tensor | None:
    """z = α h downᵀ (n, R'), zero outside the row's own group."""
    if part.down is None:
        return None
    z = hc @ part.down.T  # (n, R')
    if scale != 1.0:
        z = z * scale
    return z if part.own is None else z * part.own


def torch_step(
    hc: Tensor, base: Tensor, target: Tensor, task: HeadTask, rows: slice, gh: Tensor | None, reuse: bool
) -> Tensor:
    """Losses (n,) of one head on one chunk; adds its gradients to the task's and writes gh (n, C) if given.

    base (n, Vp) is overwritten only if `reuse`.
    """
    weight, part = task.weight, task.factors(rows)
    if reuse and base.dtype == weight.accumulate:
        logits = base
    else:
        logits = task.scratch("logits", len(hc), weight.accumulate).copy_(base)  # (n, Vp)
    logits[:, weight.vocab :] = -torch.inf
    z = low_rank_states(hc, part, task.scale)
    if z is not None:
        logits += torch.mm(z, part.up.T, out=task.scratch("update", len(hc), z.dtype))
    for bias in (weight.padded_bias, part.bias):
        if bias is not None:
            logits += bias
    p = torch.softmax(logits, dim=1, out=task.scratch("p", len(hc), weight.accumulate))
    index = target.clamp_min(0).unsqueeze(1)  # (n, 1)
    nll = _nll(logits, p, index)
    if gh is not None or any(g is not None for g in task.gradients):
        p.scatter_add_(1, index, p.new_full(index.shape, -1.0))  # now dloss/dlogits
        gradients_by_product(hc, p, z, part, target, task, rows, gh)
    return nll.masked_fill(target == IGNORED, 0.0)


def _nll(logits: Tensor, p: Tensor, index: Tensor) -> Tensor:
    """−log p of the targets (n,), from p itself, or from the row's maximum where p is too small to have digits.

    On a CPU logsumexp over this many columns takes ten times as long as softmax, and even a maximum shows.
    """
    picked = p.gather(1, index).squeeze(1)
    if p.device.type == "cpu" and bool((picked > DIGITS_FROM).all()):
        return -picked.log()
    return logits.amax(1) - p.amax(1).log() - logits.gather(1, index).squeeze(1)


def gradients_by_product(
    hc: Tensor,
    p: Tensor,
    z: Tensor | None,
    part: ChunkFactors,
    target: Tensor,
    task: HeadTask,
    rows: slice,
    gh: Tensor | None,
) -> None:
    """From dloss/dlogits p (n, Vp), which it may overwrite, add up the head's gradients and write gh (n, C)."""
    weight, dtype = task.weight, task.weight.weight.dtype
    shift = FP16_SHIFT if dtype == torch.float16 else 1.0
    g = p.mul_(shift) if shift != 1.0 else p
    if g.dtype != dtype:
        g = task.scratch("g", len(hc), dtype).copy_(g)  # (n, Vp)
    add_gradients(hc, g, z, part, target, task, rows, gh, shift)
    if task.gradients[2] is not None:
        counts = (target != IGNORED).to(p.dtype).unsqueeze(0)  # (1, n)
        if part.ids is not None:
            counts = counts * torch.nn.functional.one_hot(part.local, len(part.ids)).T  # (groups, n)
        task.add(2, (counts @ p)[:, : weight.vocab] / shift, part.ids)


def add_gradients(
    hc: Tensor,
    g: Tensor,
    z: Tensor | None,
    part: ChunkFactors,
    target: Tensor,
    task: HeadTask,
    rows: slice,
    gh: Tensor | None,
    shift: float,
) -> None:
    """The products of g (n, Vp) = shift · dloss/dlogits; ignored rows are taken out of the small factors, not of g."""
    counts = (target != IGNORED).unsqueeze(1)  # (n, 1)
    if z is not None:
        rank = part.down.shape[0]  # R'; z and the aligned up may be wider by columns of zeros
        if task.gradients[1] is not None:
            up = product((z * counts).T, g)[:rank, : task.weight.vocab]  # (R', V)
            task.add(1, up / shift, part.ids)
        gz = product(g, part.up if part.aligned_up is None else part.aligned_up)[:, :rank]  # (n, R')
        down_gradients(hc, gz * counts, part, task, rows, gh, shift)
    if gh is not None:
        gh += product(g, task.weight.weight) * counts / shift


def down_gradients(
    hc: Tensor, gz: Tensor, part: ChunkFactors, task: HeadTask, rows: slice, gh: Tensor | None, shift: float
) -> None:
    """From gz (n, R') = shift · dloss/dz / α: the gradients of down and mix, and their part of gh (n, C)."""
    if task.gradients[3] is not None:
        by_row = (hc @ part.down.T).to(gz.dtype) * gz * (task.scale / shift)  # (n, R)
        if (
            task.mix_of is not None
        ):  # summed by a product: adding at an index would not repeat itself on a GPU
            by_row = torch.nn.functional.one_hot(task.mix_of[rows], len(task.mix)).to(by_row.dtype).T @ by_row
        task.add(3, by_row if task.mix_of is not None else by_row.sum(0, True), None)
    gz = gz if part.own is None else gz * part.own
    gz = gz * (task.scale / shift)
    if task.gradients[0] is not None:
        task.add(0, gz.T @ hc.to(gz.dtype), part.ids)
    if gh is not None:
        gh += gz @ part.down.to(gz.dtype)


class TorchPass:
    """A pass by PyTorch's own operations, one head after the other; runs anywhere."""

    def __init__(self, weight, tasks: list[HeadTask]) -> None:
        self.tasks, self.rows = tasks, CPU_ROWS if weight.weight.device.type == "cpu" else CUDA_ROWS
        for task in tasks:
            task.start_sums()

    def chunk(self, hc: Tensor, base: Tensor, target: Tensor, rows: slice, gh: Tensor | None) -> Tensor:
        """Losses (K, n) of a chunk's rows with base logits (n, Vp), which it may overwrite; gh (K, n, C) is set."""
        last = len(self.tasks) - 1
        return torch.stack(
            [
                torch_step(hc, base, target, task, rows, None if gh is None else gh[k], reuse=k == last)
                for k, task in enumerate(self.tasks)
            ]
        )

    def finish(self) -> None:
        """All chunks are through: the tasks hold their gradients."""


def forward_pass(
    h: Tensor,
    target: Tensor,
    weight,
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
    one = Pass(weight, tasks)
    rows_at_once = chunk or one.rows
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
        nll[:, rows] = one.chunk(hc, base, target[rows], rows, None if gh is None else gh[:, rows])
        del base  # or the next chunk's would be asked for while this one's is still held
    one.finish()
    return nll, gh


def uses_triton(weight, kernel: str | None) -> bool:
    """Whether the GPU kernels do the pass: if asked for, or on a GPU with 16-bit numbers where Triton is installed."""
    if kernel not in (None, "torch", "triton"):
        raise ValueError(f"kernel {kernel!r} must be 'torch', 'triton' or None")
    if kernel is None and weight.weight.device.type == "cuda" and weight.weight.dtype.itemsize == 2:
        return _has_triton()
    return kernel == "triton"


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


class HeadLossFunction(torch.autograd.Function):
    """Sums of losses (K,); all gradients are computed in forward and only scaled in backward."""

    @staticmethod
    def forward(ctx, h, target, weight, groups, chunk, scale, kernel, *factors):
        """factors: down, up, bias, mix of head 1, of head 2, …; groups: one index (M,) or None a head."""
        own = [factors[i : i + 4] for i in range(0, len(factors), 4)]
        tasks = [HeadTask(*four, group, weight, scale) for four, group in zip(own, groups)]
        wanted = ctx.needs_input_grad[7:]
        for k, task in enumerate(tasks):
            task.wanted = wanted[4 * k : 4 * k + 4]
        nll, gh = forward_pass(h, target, weight, tasks, chunk, kernel, want_h=ctx.needs_input_grad[0])
        ctx.save_for_backward(gh, *(g for task in tasks for g in task.gradients))
        ctx.dtypes = (h.dtype, *(None if x is None else x.dtype for x in factors))
        return nll.sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """grad (K,) of the losses to gradients of h and of each head's factors."""
        gh, *sums = ctx.saved_tensors
        out = []
        for i, total in enumerate(sums):
            if total is not None:
                total = (total * grad[i // 4]).to(ctx.dtypes[1 + i])
            out.append(total.transpose(1, 2) if total is not None and i % 4 == 1 else total)
        h_grad = None if gh is None else torch.einsum("k,kmc->mc", grad, gh).to(ctx.dtypes[0])
        return (h_grad, *[None] * 6, *out)
