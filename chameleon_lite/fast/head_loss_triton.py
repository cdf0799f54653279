"""The head loss on a GPU: heads of a small rank share launches, others go one by one (see `head_loss.py`).

    tasks ─┬ rank ≤ 32, each group its own factors ─▶ Bundle: S slots side by side, one launch for all heads
           └ larger, or a mixture of shared slots  ─▶ wide: z upᵀ added to a copy of the logits, two products

With few heads a GPU may be done with a chunk before the host has described the next, so the host does little:
where rows lie is worked out once per number of rows and heads, and scalings are left to products and kernels.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..heads import HeadUpdate
from ..loss import HeadWeight
from .head_loss_kernels import GRADS_COLUMNS, GRADS_ROWS, STATS_ROWS, Terms, gradients, losses, padded
from .head_loss_torch import Chunk, HeadTask, product, shift_of, torch_step
from .recorded_groups import RecordedGroups, tables
from .recorder import outliving

ROWS = 4_080  # per chunk: memory
SMALL_RANK = 32  # what the kernels add in registers
PROGRAMS = 1_024  # of `grads` that keep a large GPU busy; an only head's rows are cut in two below that
LAYOUTS = 4_096  # cached, of chunk sizes seen before; some kilobytes each on the device
PARTIAL_BYTES = 256 << 20  # of a bundle's sums by column block; more heads go into another bundle
COLUMNS = GRADS_COLUMNS.value


class TritonPass:
    """A pass by GPU kernels; the same results whatever heads share it."""

    rows = ROWS

    def __init__(self, weight: HeadWeight, tasks: list[HeadTask]) -> None:
        self.weight, self.tasks = weight, tasks
        self.bundles: list[Bundle] = []
        self.wide: list[int] = []
        self.heads: dict[tuple, list[int]] = {}
        for k, task in enumerate(tasks):
            down, _, bias, mix = task.update
            rank = 0 if down is None else down.shape[1]
            if mix is not None or rank > SMALL_RANK:
                self.wide.append(k)
                task.start_sums()
            else:
                self.heads.setdefault((rank, bias is not None, task.wanted), []).append(k)

    def _bundles(self, n: int, alone: bool) -> "list[Bundle]":
        """The bundles, made when the first chunk's rows are known."""
        if not self.bundles:
            for (rank, *_), heads in self.heads.items():
                bytes_per_head = 4 * n * rank * self.weight.padded // COLUMNS + 1
                size = 1 if alone else max(1, PARTIAL_BYTES // bytes_per_head)
                parts = [heads[i : i + size] for i in range(0, len(heads), size)]
                self.bundles += [Bundle(self.weight, {k: self.tasks[k] for k in part}) for part in parts]
        return self.bundles

    def chunk(self, chunk: Chunk, base: Tensor, gh: Tensor | None) -> Tensor:
        """Losses (H, n) of a chunk with base logits (n, Vp); gh (H, n, C) is set."""
        base[:, self.weight.vocab :] = -torch.inf
        bundles = self._bundles(len(base), alone=gh is not None)
        ghs = [None] * len(self.tasks) if gh is None else gh
        if len(bundles) == 1 and not self.wide:
            return bundles[0].chunk(chunk, base, ghs[0], reuse=True)
        nll = base.new_empty(len(self.tasks), len(base), dtype=torch.float32)
        for bundle in bundles:
            losses_of = bundle.chunk(chunk, base, ghs[bundle.heads[0]])
            torch._foreach_copy_([nll[k] for k in bundle.heads], list(losses_of))
        for k in self.wide:
            nll[k] = wide_step(self.tasks[k], chunk, base, ghs[k])
        return nll

    def finish(self) -> None:
        """Hand the bundles' sums to their tasks."""
        for bundle in self.bundles:
            bundle.finish()


class Bundle:
    """Heads of one small rank, packed: their factors side by side in S slots, one per head and group."""

    def __init__(self, weight: HeadWeight, members: dict[int, HeadTask]) -> None:
        self.weight, self.heads, self.tasks = weight, list(members), list(members.values())
        self.scale, self.wanted = self.tasks[0].scale, self.tasks[0].wanted
        updates = [task.update for task in self.tasks]
        down, _, bias, _ = updates[0]
        frozen = down is None and bias is None
        sizes = [1 if frozen else update.groups for update in updates]
        self.first = np.cumsum([0, *sizes])  # (H + 1,) each head's first slot
        self.down, self.up, self.bias = None, None, None
        if down is not None:
            self.down = torch.cat([u.down for u in updates]).to(weight.weight.dtype)  # (S, R, C)
            self.up = self.down.new_empty(int(self.first[-1]), down.shape[1], weight.vocab)  # (S, R, V)
            torch._foreach_copy_(list(self.up.split(sizes)), [u.up.transpose(1, 2) for u in updates])
        if bias is not None:
            self.bias = torch.cat([u.bias for u in updates]).float()  # (S, V)
        self.sums = HeadUpdate()  # down (S, R, C), up (S, R, V), bias (S, V)

    def chunk(self, chunk: Chunk, base: Tensor, gh: Tensor | None, reuse: bool = False) -> Tensor:
        """Losses (heads, n); gradients go to the sums, and gh (n, C) of an only head; `reuse`: base may go."""
        layout, vocab, wanted = self._layout(chunk.rows, len(base)), self.weight.vocab, self.wanted
        terms = Terms(self._states(chunk.h, layout.slot), self.up, self.bias, self.weight.bias)
        nll, lse = losses(base, terms, vocab, layout.slot, layout.tiles, chunk.target)
        if gh is None and not any(wanted):
            return nll
        g = None if gh is None else base if reuse else torch.empty_like(base)
        how = {"out": g, "want_bias": bool(wanted.bias), "scale": self.scale}
        gu, gz, g_bias = gradients(base, terms, vocab, layout.items, chunk.target, lse, **how)
        if wanted.up:
            self._add("up", layout.by_slot(gu))
        if wanted.bias:
            self._add("bias", layout.by_slot(g_bias))
        if gz is not None:
            self._add_down(chunk.h, gz, layout.slot, gh)
        if gh is not None:
            gh += product(g, self.weight.weight) / shift_of(base.dtype)
        return nll

    def _layout(self, rows: slice, n: int) -> "Layout":
        """Which slot each of the chunk's n rows uses, head by head."""
        device, groups = self.weight.weight.device, [task.group for task in self.tasks]
        blocks = -(-self.weight.padded // COLUMNS)
        if all(group is None for group in groups):
            return _alike(len(groups), n, _item_rows(len(groups), n, blocks), device)
        if any(isinstance(group, RecordedGroups) for group in groups):
            return Layout(*tables(groups, self.first.tolist(), rows, n, STATS_ROWS.value, device))
        distinct = list({id(group): group for group in groups}.values())  # heads often share one
        column = [next(i for i, g in enumerate(distinct) if g is group) for group in groups]
        runs = []
        for k, (group, first) in enumerate(zip(groups, self.first)):
            start, end, own = ([0], [n], [0]) if group is None else group.within(rows, n)
            runs.append(np.stack([np.full(len(own), k), first + np.asarray(own), start, end], axis=1))
        runs = np.concatenate(runs)
        offset = torch.from_numpy(np.stack([self.first[:-1], column])).to(device, non_blocking=True)  # (2, H)
        columns = torch.stack([offset.new_zeros(n) if g is None else g.index[rows] for g in distinct])
        most = _item_rows(len(runs), int((runs[:, 3] - runs[:, 2]).max()), blocks)
        return _lay_out(columns[offset[1]] + offset[0][:, None], runs, int(self.first[-1]), most)

    def _states(self, h: Tensor, slot: Tensor) -> Tensor | None:
        """z = α h downᵀ (H, R, Np), each row under its own slots, with room for the kernels' alignment."""
        if self.down is None:
            return None
        (slots, rank, _), n, heads = self.down.shape, len(h), len(self.tasks)
        z = self.down.new_empty(slots, rank, padded(n))
        z.flatten(0, 1)[:, :n].addmm_(self.down.flatten(0, 1), h.T, beta=0, alpha=self.scale)
        if slots == heads:
            return z
        out = z.new_empty(heads, *z.shape[1:])
        torch.gather(z[:, :, :n], 0, slot.unsqueeze(1).expand(-1, rank, -1), out=out[:, :, :n])
        return out

    def _add_down(self, h: Tensor, gz: Tensor, slot: Tensor, gh: Tensor | None) -> None:
        """From gz (H, R, n) = dloss/dz · α: the gradient of down, and its part of gh (n, C)."""
        (slots, rank, width), (heads, _, n) = self.down.shape, gz.shape
        if slots != heads:  # each row in the slots of its own groups, zero elsewhere
            own = slot.unsqueeze(1).expand(-1, rank, -1)
            gz = gz.new_zeros(slots, rank, n).scatter_(0, own, gz)
        flat = gz.reshape(slots * rank, n)
        if self.wanted.down:
            self._add("down", (flat @ h.to(flat.dtype)).view(slots, rank, width))
        if gh is not None:
            gh += flat.T @ self.down.flatten(0, 1).to(flat.dtype)

    def _add(self, name: str, part: Tensor) -> None:
        total = getattr(self.sums, name)
        self.sums = self.sums._replace(**{name: part if total is None else total.add_(part)})

    def finish(self) -> None:
        """Give each task the gradients of its own slots."""
        for task, first, end in zip(self.tasks, self.first, self.first[1:]):
            task.gradients = HeadUpdate(*(None if x is None else x[first:end] for x in self.sums))


class Layout(NamedTuple):
    """Where each slot's rows lie in a chunk, on the device; tables (·, 4) int32 of head, slot, first, end."""

    slot: Tensor  # (H, n) int64, the slot of each head's row
    tiles: Tensor  # (T, 4), heads that read the same logits side by side
    items: Tensor  # (I, 4), by slot
    each: int  # items of every slot, or 0 where they differ
    lengths: Tensor | None  # (S,) items of each slot, where they differ

    def by_slot(self, parts: Tensor) -> Tensor:
        """The items' sums (I, …) to the slots' (S, …)."""
        if self.lengths is None:
            return parts if self.each == 1 else parts.unflatten(0, (-1, self.each)).sum(1)
        # unsafe: without looking at the lengths, for which the host would wait
        return torch.segment_reduce(parts, "sum", lengths=self.lengths, axis=0, unsafe=True)


def _item_rows(runs: int, longest: int, blocks: int) -> int:
    """Rows an item may have: a whole run's, or about half where that would make too few programs."""
    size = GRADS_ROWS.value
    return longest if runs * blocks >= PROGRAMS else -(-longest // (2 * size)) * size


def _lay_out(slot: Tensor, runs: np.ndarray, slots: int, most: int) -> Layout:
    """From runs (·, 4) of rows of one slot: head, slot, first, end; items of at most `most` rows."""
    tiles = _cut(runs, STATS_ROWS.value)
    tiles = tiles[np.argsort(tiles[:, 2], kind="stable")]
    items = _cut(runs[np.argsort(runs[:, 1], kind="stable")], most)
    both = np.concatenate([tiles, items]).astype(np.int32)  # one copy to the device
    tables = torch.from_numpy(both).to(slot.device, non_blocking=True).split([len(tiles), len(items)])
    counts = np.bincount(items[:, 1], minlength=slots)
    each = int(counts[0]) if (counts == counts[0]).all() else 0
    lengths = None if each else torch.from_numpy(counts).to(slot.device, non_blocking=True)
    return Layout(slot, *tables, each, lengths)


def _alike(heads: int, n: int, most: int, device: torch.device) -> Layout:
    """The layout of heads that have one slot each for all n rows: the same in every chunk of that size."""
    return outliving(_cached_alike(heads, n, most, device))


@lru_cache(maxsize=LAYOUTS)
def _cached_alike(heads: int, n: int, most: int, device: torch.device) -> Layout:
    number = np.arange(heads)
    runs = np.stack([number, number, np.zeros_like(number), np.full_like(number, n)], axis=1)
    return _lay_out(torch.arange(heads, device=device)[:, None].expand(-1, n), runs, heads, most)


def _cut(runs: np.ndarray, size: int) -> np.ndarray:
    """Runs (·, 4) cut into pieces of at most `size` rows."""
    parts = -(-(runs[:, 3] - runs[:, 2]) // size)
    out = runs.repeat(parts, axis=0)
    within = np.arange(len(out)) - (np.cumsum(parts) - parts).repeat(parts)
    out[:, 2] += within * size
    out[:, 3] = np.minimum(out[:, 3], out[:, 2] + size)
    return out


def wide_step(task: HeadTask, chunk: Chunk, base: Tensor, gh: Tensor | None) -> Tensor:
    """Losses (n,) of a head of large rank or with mixtures; gradients go to the task's and to gh (n, C)."""
    if task.update.bias is not None and task.group is not None:
        return torch_step(task, chunk, base, gh, reuse=False)  # no place here for a bias per row
    part, weight = task.factors(chunk.rows), task.weight
    if part.aligned_up is None:
        part.aligned_up = _aligned(part.up)  # one head's factors serve all chunks
    z = _aligned(part.states(chunk.h, task.scale))  # (n, R')
    logits = torch.addmm(base, z, part.aligned_up.T)
    bias = None if part.bias is None else part.bias[:, : weight.vocab].contiguous()  # (1, V)
    layout = _alike(1, len(base), GRADS_ROWS.value, base.device)
    terms = Terms(None, None, bias, weight.bias)
    nll, lse = losses(logits, terms, weight.vocab, layout.slot, layout.tiles, chunk.target)
    if gh is None and not any(task.wanted):
        return nll[0]
    how = {"out": logits, "want_bias": bool(task.wanted.bias)}
    *_, g_bias = gradients(logits, terms, weight.vocab, layout.items, chunk.target, lse, **how)
    if task.wanted.bias:
        task.add("bias", layout.by_slot(g_bias))
    task.add_gradients(chunk, part, z, logits, gh)
    return nll[0]


def _aligned(x: Tensor) -> Tensor:
    """x (m, R) with zero columns up to a multiple of 8: matrix units are much slower on odd widths."""
    return torch.nn.functional.pad(x, (0, -x.shape[1] % 8))
