"""One pass over the rows for all heads by PyTorch's own operations (see `head_loss.py`).

    chunk of n rows ─ one product h Wᵀ (n, Vp) ─┬─ head 1: + z upᵀ ─ softmax ─ loss, gradients
                                                └─ head 2: …               z = α h downᵀ (n, R)

A head with G updates is done as one head of a larger rank: the factors of the groups present in the chunk lie
side by side, R' = groups · R, and z is zero except in the slots of the row's own group. A head with one pair
of factors and G mixtures of their R slots does the same with the row's own mixture: z ∘ mix.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..heads import HeadUpdate
from ..loss import HeadWeight
from ..text import IGNORED
from .recorded_groups import RecordedGroups

CPU_ROWS, CUDA_ROWS = 128, 510  # rows per chunk: last-level cache; memory
# Probabilities below 6e-8 vanish in float16 and those below 6e-5 lose digits; this shift by 2^10 keeps them.
FP16_SHIFT = 1_024.0
DIGITS_FROM = 1e-30  # of a float32 probability; below 1e-38 it loses digits, below 1e-45 it is zero

_buffers: "WeakKeyDictionary[HeadWeight, dict[str, Tensor]]" = WeakKeyDictionary()


def buffer(weight: HeadWeight, name: str, rows: int, dtype: torch.dtype) -> Tensor:
    """Memory (rows, Vp) for a chunk's numbers, whatever its content; on a CPU it lives as long as the weight.

    There memory of tens of megabytes goes back to the system when freed and is cleared page by page when it
    comes again: several times as long as the softmax written into it. A GPU's allocator keeps freed memory.
    """
    device = weight.weight.device
    buffers = _buffers.setdefault(weight, {}) if device.type == "cpu" else {}
    if name not in buffers or len(buffers[name]) < rows:
        with torch.inference_mode(False):  # or no later pass outside of that mode could write into it
            buffers[name] = torch.empty(rows, weight.padded, dtype=dtype, device=device)
    return buffers[name][:rows]


def forget_buffers(weight: HeadWeight) -> None:
    """Free the buffers of a weight."""
    _buffers.pop(weight, None)


def shift_of(dtype: torch.dtype) -> float:
    """The factor by which dloss/dlogits is larger in this format, so that it keeps its digits."""
    return FP16_SHIFT if dtype == torch.float16 else 1.0


@dataclass(frozen=True)
class RowGroups:
    """The group of each of M rows, on the device and as runs on the host: stretches of rows of one group.

    An index on the host costs no wait: it is read there and sent. One on the device is waited for once.
    """

    index: Tensor  # (M,) int64 on the rows' device
    first: np.ndarray  # (runs,) each run's first row
    group: np.ndarray  # (runs,) each run's group

    @classmethod
    def of(cls, index: Tensor, device: torch.device) -> "RowGroups":
        """From the index (M,), on the host or on `device`."""
        values = index.detach().cpu().numpy()
        starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
        return cls(index.to(device, non_blocking=True), starts, values[starts])

    @property
    def ordered(self) -> bool:
        """Whether every group's rows lie side by side, in ascending order of the groups."""
        return bool((np.diff(self.group) > 0).all())

    def within(self, rows: slice, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The runs of a chunk of `count` rows, as (first, end, group) counted from its start."""
        low = max(0, int(np.searchsorted(self.first, rows.start, side="right")) - 1)
        high = int(np.searchsorted(self.first, rows.start + count, side="left"))
        first = np.maximum(self.first[low:high] - rows.start, 0)
        return first, np.append(first[1:], count), self.group[low:high]


class Chunk(NamedTuple):
    """n rows of a pass."""

    h: Tensor  # (n, C) in the matmul format
    target: Tensor  # (n,)
    rows: slice  # their place among all rows


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

    def states(self, h: Tensor, scale: float) -> Tensor | None:
        """z = α h downᵀ (n, R') of h (n, C), zero outside the row's own group."""
        if self.down is None:
            return None
        z = h @ self.down.T  # (n, R')
        if scale != 1.0:
            z = z * scale
        return z if self.own is None else z * self.own


class HeadTask:
    """One head during one pass: its factors chunk by chunk, and the sums of its gradients.

    `wanted` has True for each factor whose gradient is summed in `gradients`; that of up is (G, R, V) there.
    """

    def __init__(self, update, group: RowGroups | None, weight: HeadWeight, scale, wanted=HeadUpdate()):
        self.update, self.wanted, self.scale, self.weight = update, wanted, scale, weight
        mixes, adds = update.mix is not None, update.down is not None or update.bias is not None
        self.mix_of = group.index if mixes and group is not None else None  # (M,) each row's mixture
        self.group = group if adds and not mixes else None
        self.gradients = HeadUpdate()
        self._whole: ChunkFactors | None = None

    def start_sums(self) -> None:
        """Zeros for the gradients that are `wanted`."""
        dtype, up = self.weight.accumulate, self.update.up
        like = self.update._replace(up=None if up is None else up.transpose(1, 2))
        zeros = (x.new_zeros(x.shape, dtype=dtype) if want else None for x, want in zip(like, self.wanted))
        self.gradients = HeadUpdate(*zeros)

    def factors(self, rows: slice) -> ChunkFactors:
        """The factors that the chunk's rows need."""
        if self.group is None:
            self._whole = self._whole or self._lay_out(self.update)  # the same for all chunks
            if self.update.mix is None:
                return self._whole
            own = self.update.mix.to(self.weight.weight.dtype)  # (G, R)
            return replace(self._whole, own=own if self.mix_of is None else own[self.mix_of[rows]])  # (n, R)
        local = self.group.index[rows]
        if isinstance(self.group, RecordedGroups):  # all groups: which are present is not looked at
            ids = torch.arange(self.update.groups, device=local.device)
        else:
            ids, local = torch.unique(local, return_inverse=True)
        laid = self._lay_out(HeadUpdate(*(None if x is None else x[ids] for x in self.update)))
        laid.ids, laid.local = ids, local
        if laid.down is not None:
            own = F.one_hot(local, len(ids)).to(laid.down.dtype)  # (n, groups)
            laid.own = own.repeat_interleave(self.update.down.shape[1], dim=1)  # (n, R')
        laid.bias = None if laid.bias is None else laid.bias[local]
        return laid

    def _lay_out(self, some: HeadUpdate) -> ChunkFactors:
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

    def add(self, name: str, part: Tensor, ids: Tensor | None = None) -> None:
        """Add a chunk's gradient of down (R', C), up (R', V), bias (groups, V) or mix (G, R) to its sum."""
        total = getattr(self.gradients, name)
        part = part.reshape(-1, *total.shape[1:])
        total.add_(part) if ids is None else total.index_add_(0, ids, part)

    def add_gradients(self, chunk: Chunk, part: ChunkFactors, z: Tensor | None, g: Tensor, gh) -> None:
        """The products of g (n, Vp) = shift · dloss/dlogits; ignored rows are left out of small factors."""
        shift, counts = shift_of(g.dtype), (chunk.target != IGNORED).unsqueeze(1)  # (n, 1)
        if z is not None:
            rank = part.down.shape[0]  # R'; z and the aligned up may be wider by columns of zeros
            if self.gradients.up is not None:
                up = product((z * counts).T, g)[:rank, : self.weight.vocab]  # (R', V)
                self.add("up", up / shift, part.ids)
            gz = product(g, part.up if part.aligned_up is None else part.aligned_up)[:, :rank]  # (n, R')
            self._add_down(chunk, part, gz * counts, shift, gh)
        if gh is not None:
            gh += product(g, self.weight.weight) * counts / shift

    def _add_down(self, chunk: Chunk, part: ChunkFactors, gz: Tensor, shift: float, gh) -> None:
        """From gz (n, R') = shift · dloss/dz / α: gradients of down and mix, and their part of gh (n, C)."""
        if self.gradients.mix is not None:
            mix = (chunk.h @ part.down.T).to(gz.dtype) * gz * (self.scale / shift)  # (n, R)
            if self.mix_of is None:
                mix = mix.sum(0, True)
            else:  # summed by a product: adding at an index would not repeat itself on a GPU
                mix = F.one_hot(self.mix_of[chunk.rows], len(self.update.mix)).to(mix.dtype).T @ mix
            self.add("mix", mix)
        gz = gz if part.own is None else gz * part.own
        gz = gz * (self.scale / shift)
        if self.gradients.down is not None:
            self.add("down", gz.T @ chunk.h.to(gz.dtype), part.ids)
        if gh is not None:
            gh += gz @ part.down.to(gz.dtype)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, with the result in float32 at least."""
    if a.dtype.itemsize > 2:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float() if a.dtype == torch.bfloat16 else a.float() @ b.float()


def torch_step(task: HeadTask, chunk: Chunk, base: Tensor, gh: Tensor | None, reuse: bool) -> Tensor:
    """Losses (n,) of one head on a chunk; gradients go to task and gh (n, C); `reuse`: base is overwritten."""
    weight, part, n = task.weight, task.factors(chunk.rows), len(chunk.h)
    if reuse and base.dtype == weight.accumulate:
        logits = base
    else:
        logits = buffer(weight, "logits", n, weight.accumulate).copy_(base)  # (n, Vp)
    logits[:, weight.vocab :] = -torch.inf
    z = part.states(chunk.h, task.scale)
    if z is not None:
        logits += torch.mm(z, part.up.T, out=buffer(weight, "update", n, z.dtype))
    for bias in (weight.bias, part.bias):
        if bias is not None:
            logits += bias
    p = torch.softmax(logits, dim=1, out=buffer(weight, "p", n, weight.accumulate))
    index = chunk.target.clamp_min(0).unsqueeze(1)  # (n, 1)
    nll = _nll(logits, p, index)
    if gh is not None or any(x is not None for x in task.gradients):
        p.scatter_add_(1, index, p.new_full(index.shape, -1.0))  # now dloss/dlogits
        shift, dtype = shift_of(weight.weight.dtype), weight.weight.dtype
        g = p.mul_(shift) if shift != 1.0 else p
        g = g if g.dtype == dtype else buffer(weight, "g", n, dtype).copy_(g)  # (n, Vp)
        task.add_gradients(chunk, part, z, g, gh)
        if task.gradients.bias is not None:
            counts = (chunk.target != IGNORED).to(p.dtype).unsqueeze(0)  # (1, n)
            if part.ids is not None:
                counts = counts * F.one_hot(part.local, len(part.ids)).T  # (groups, n)
            task.add("bias", (counts @ p)[:, : weight.vocab] / shift, part.ids)
    return nll.masked_fill(chunk.target == IGNORED, 0.0)


def _nll(logits: Tensor, p: Tensor, index: Tensor) -> Tensor:
    """−log p of the targets (n,), from p itself, or from the row's maximum where p has too few digits.

    On a CPU logsumexp over this many columns takes ten times as long as softmax, and even a maximum shows.
    """
    picked = p.gather(1, index).squeeze(1)
    if p.device.type == "cpu" and bool((picked > DIGITS_FROM).all()):
        return -picked.log()
    return logits.amax(1) - p.amax(1).log() - logits.gather(1, index).squeeze(1)


class TorchPass:
    """A pass by PyTorch's own operations, one head after the other; runs anywhere."""

    def __init__(self, weight: HeadWeight, tasks: list[HeadTask]) -> None:
        self.tasks, self.rows = tasks, CPU_ROWS if weight.weight.device.type == "cpu" else CUDA_ROWS
        for task in tasks:
            task.start_sums()

    def chunk(self, chunk: Chunk, base: Tensor, gh: Tensor | None) -> Tensor:
        """Losses (H, n) of a chunk with base logits (n, Vp), which it may overwrite; gh (H, n, C) is set."""
        last, ghs = len(self.tasks) - 1, [None] * len(self.tasks) if gh is None else gh
        steps = enumerate(zip(self.tasks, ghs))
        return torch.stack([torch_step(task, chunk, base, own, reuse=k == last) for k, (task, own) in steps])

    def finish(self) -> None:
        """All chunks are through: the tasks hold their gradients."""
