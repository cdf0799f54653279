"""One pass over the rows for all heads by PyTorch's own operations: losses and gradients (see `head_loss.py`).

    chunk of n rows ─ one product h Wᵀ (n, Vp) ─┬─ head 1: + z upᵀ ─ softmax ─ loss, gradients
                                                └─ head 2: …               z = α h downᵀ (n, R)

A head with G updates is done as one head of a larger rank: the factors of the groups present in the chunk are laid
side by side, R' = groups · R, and z is zero except in the slots of the row's own group. No loop over groups or rows.
A head with one pair of factors and G mixtures of their R slots does the same with the row's own mixture: z ∘ mix.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..loss import HeadWeight
from ..text import IGNORED
from .row_groups import RowGroups

CPU_ROWS, CUDA_ROWS = 128, 510  # rows per chunk: last-level cache; memory
# Probabilities below 6e-8 vanish in float16 and those below 6e-5 lose digits; this shift by 2^10 keeps them.
FP16_SHIFT = 1_024.0
DIGITS_FROM = 1e-30  # of a float32 probability; below 1e-38 it loses digits, below 1e-45 it is zero


class Scratch:
    """Large buffers by name, (rows, columns) each, which every chunk of a pass uses again.

    On a CPU memory of tens of megabytes goes back to the system when it is freed and is cleared page by page when it
    is allocated again; for a chunk of logits that takes several times as long as the softmax written into it.
    """

    _of_weights: "WeakKeyDictionary[HeadWeight, Scratch]" = WeakKeyDictionary()

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        self.rows, self.columns, self.device = rows, columns, device
        self.buffers: dict[str, Tensor] = {}

    @classmethod
    def of(cls, weight: HeadWeight, rows: int) -> "Scratch":
        """Buffers for chunks of `rows` rows of a weight's logits; a CPU's live as long as the weight.

        A GPU's allocator caches freed memory itself.
        """
        device = weight.weight.device
        scratch = cls._of_weights.get(weight)
        if scratch is None or scratch.rows < rows:
            scratch = cls(rows, weight.padded, device)
            if device.type == "cpu":
                cls._of_weights[weight] = scratch
        return scratch

    @classmethod
    def forget(cls, weight: HeadWeight) -> None:
        """Free the buffers of a weight."""
        cls._of_weights.pop(weight, None)

    def __call__(self, name: str, rows: int, dtype: torch.dtype) -> Tensor:
        """The first `rows` rows of the buffer of that name, whatever its content."""
        if name not in self.buffers:
            self.buffers[name] = torch.empty(self.rows, self.columns, dtype=dtype, device=self.device)
        return self.buffers[name][:rows]


class Factors(NamedTuple):
    """What one head adds to the logits, or its gradients, or which of them are wanted; what is absent is None."""

    down: Tensor | None = None  # (G, R, C)
    up: Tensor | None = None  # (G, V, R), its gradient (G, R, V)
    bias: Tensor | None = None  # (G, V)
    mix: Tensor | None = None  # (G, R)


@dataclass
class ChunkFactors:
    """What one head adds to one chunk's logits, in the matmul format; R' = R × groups present."""

    down: Tensor | None = None  # (R', C)
    up: Tensor | None = None  # (Vp, R')
    own: Tensor | None = None  # (n, R') one in the slots of the row's group, or its mixture; None: rows alike
    bias: Tensor | None = None  # (n, Vp), or (1, Vp) where there is one group
    ids: Tensor | None = None  # (groups present,) their indices
    local: Tensor | None = None  # (n,) each row's position in ids
    aligned_up: Tensor | None = None  # (Vp, a multiple of 8) up with zero columns, as GPU products want it


class HeadTask:
    """One head during one pass: its factors chunk by chunk, and the sums of its gradients."""

    def __init__(
        self, factors: Factors, group: RowGroups | None, weight: HeadWeight, scale: float, wanted=Factors()
    ) -> None:
        self.all, self.wanted, self.scale, self.weight = factors, wanted, scale, weight
        self.scratch: Scratch | None = None  # set by the pass
        down, _, bias, mix = factors
        self.mix_of = (
            group.index if group is not None and mix is not None else None
        )  # (M,) each row's mixture
        self.group = None if mix is not None or (down is None and bias is None) else group
        self._whole: ChunkFactors | None = None
        self.gradients = Factors()

    @property
    def whole(self) -> ChunkFactors:
        """The factors of a head whose rows all use the same ones, laid out once per pass."""
        self._whole = self._whole or self._lay_out(self.all)
        return self._whole

    def start_sums(self) -> None:
        """Zeros for the gradients that are `wanted`."""
        dtype, up = self.weight.accumulate, self.all.up
        like = self.all._replace(up=None if up is None else up.transpose(1, 2))
        self.gradients = Factors(
            *(x.new_zeros(x.shape, dtype=dtype) if want else None for x, want in zip(like, self.wanted))
        )

    def _lay_out(self, some: Factors) -> ChunkFactors:
        """The factors of g groups side by side and padded."""
        weight, laid = self.weight, ChunkFactors()
        if some.down is not None:
            laid.down = some.down.to(weight.weight.dtype).flatten(0, 1)  # (g·R, C)
            laid.up = weight.weight.new_zeros(weight.padded, laid.down.shape[0])  # (Vp, g·R)
            laid.up[: weight.vocab].unflatten(1, some.down.shape[:2]).copy_(some.up.transpose(0, 1))
        if some.bias is not None:
            laid.bias = some.bias.new_zeros(len(some.bias), weight.padded, dtype=weight.accumulate)
            laid.bias[:, : weight.vocab] = some.bias
        return laid

    def factors(self, rows: slice) -> ChunkFactors:
        """The factors that the chunk's rows need."""
        if self.all.mix is not None:
            own = self.all.mix.to(self.weight.weight.dtype)  # (G, R)
            return replace(self.whole, own=own if self.mix_of is None else own[self.mix_of[rows]])  # (n, R)
        if self.group is None:
            return self.whole
        ids, local = torch.unique(self.group.index[rows], return_inverse=True)
        device = self.weight.weight.device
        ids, local = ids.to(device), local.to(device)
        laid = self._lay_out(Factors(*(None if x is None else x[ids] for x in self.all)))
        laid.ids, laid.local = ids, local
        if laid.down is not None:
            own = torch.nn.functional.one_hot(local, len(ids)).to(laid.down.dtype)  # (n, groups)
            laid.own = own.repeat_interleave(self.all.down.shape[1], dim=1)  # (n, R')
        laid.bias = None if laid.bias is None else laid.bias[local]
        return laid

    def add(self, name: str, part: Tensor, ids: Tensor | None = None) -> None:
        """Add a chunk's gradient of down (R', C), up (R', V), bias (groups, V) or mix (G, R) to its sum."""
        total = getattr(self.gradients, name)
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
    if task.gradients.bias is not None:
        counts = (target != IGNORED).to(p.dtype).unsqueeze(0)  # (1, n)
        if part.ids is not None:
            counts = counts * torch.nn.functional.one_hot(part.local, len(part.ids)).T  # (groups, n)
        task.add("bias", (counts @ p)[:, : weight.vocab] / shift, part.ids)


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
        if task.gradients.up is not None:
            up = product((z * counts).T, g)[:rank, : task.weight.vocab]  # (R', V)
            task.add("up", up / shift, part.ids)
        gz = product(g, part.up if part.aligned_up is None else part.aligned_up)[:, :rank]  # (n, R')
        down_gradients(hc, gz * counts, part, task, rows, gh, shift)
    if gh is not None:
        gh += product(g, task.weight.weight) * counts / shift


def down_gradients(
    hc: Tensor, gz: Tensor, part: ChunkFactors, task: HeadTask, rows: slice, gh: Tensor | None, shift: float
) -> None:
    """From gz (n, R') = shift · dloss/dz / α: the gradients of down and mix, and their part of gh (n, C)."""
    if task.gradients.mix is not None:
        mix = (hc @ part.down.T).to(gz.dtype) * gz * (task.scale / shift)  # (n, R)
        if task.mix_of is None:
            mix = mix.sum(0, True)
        else:  # summed by a product: adding at an index would not repeat itself on a GPU
            mix = torch.nn.functional.one_hot(task.mix_of[rows], len(task.all.mix)).to(mix.dtype).T @ mix
        task.add("mix", mix)
    gz = gz if part.own is None else gz * part.own
    gz = gz * (task.scale / shift)
    if task.gradients.down is not None:
        task.add("down", gz.T @ hc.to(gz.dtype), part.ids)
    if gh is not None:
        gh += gz @ part.down.to(gz.dtype)


class TorchPass:
    """A pass by PyTorch's own operations, one head after the other; runs anywhere."""

    def __init__(self, weight: HeadWeight, tasks: list[HeadTask]) -> None:
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
