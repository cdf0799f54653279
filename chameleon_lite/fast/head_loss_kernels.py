"""The GPU kernels of the head loss: they read 16-bit logits where they lie, for many heads in one launch.

    stats   (tiles × column parts)   running maximum m, Σ exp2(· − m) and Σ exp2(· − m) up of a tile's rows
    merge   (rows × heads)           a row's parts to its log-sum-exp, loss and g up, with the target's logit
    grads   (items × column blocks)  g = softmax − onehot in registers; gᵀ z summed over an item's rows by
                                     column; g is written only where a product needs it

Heads share the base logits (n, Vp). Each (head, group) pair owns one of S slots of stacked factors. A table
built on the host assigns each program its rows and slot: a tile or an item is a stretch of rows that use one
slot of one head. Programs that read the same logits for different heads are neighbours: logits come from
memory once. The update z upᵀ is added in registers, in float32. Columns come in whole tiles: whatever lies
along the vocabulary is as wide as the padded weight. All sums are in a fixed order: the same inputs, the same
bits. An argument that is absent is None: a kernel is compiled for each combination that occurs.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr

from .. import text
from . import head_loss_torch

# Tiles of logits, and how often a row is cut: every warp has rows of its own, and several programs a processor.
STATS_ROWS, GRADS_ROWS, MERGE_ROWS = constexpr(64), constexpr(128), constexpr(32)
GRADS_COLUMNS, STAGES, PARTS = constexpr(64), constexpr(3), constexpr(16)
IGNORED, LOG2_E = constexpr(text.IGNORED), constexpr(math.log2(math.e))
FP16_SHIFT = constexpr(head_loss_torch.FP16_SHIFT)
VARYING = ["n"]  # from step to step; a kernel compiled for each kind of number would not pay


class Terms(NamedTuple):
    """What H heads add to n rows of base logits, packed (see `Bundle`); absent factors are None."""

    z: Tensor | None  # (n, H, INNER) α h downᵀ in the matmul format, INNER: the next multiple of 16
    up: Tensor | None  # (S, R, Vp), zero beyond the vocabulary, as what follows
    bias: Tensor | None  # (S, Vp) float32
    fixed: Tensor | None  # (Vp,) the base weight's own bias, float32


def losses(base: Tensor, terms: Terms, slot, tiles, target: Tensor, want_z=False) -> tuple:
    """Loss (H, n) of the rows, their lse as `grads` takes it, and g up (H, R, n) if wanted, times `shift_of`.

    slot (H, n) int64, any strides; tiles as in `Layout`.
    """
    (n, Vp), heads, rank = base.shape, len(slot), 0 if terms.up is None else terms.up.shape[1]
    gz = base.new_empty(heads, rank, n) if rank and want_z else None
    parts = base.new_empty(heads, n, 2 if gz is None else 2 + rank, PARTS.value, dtype=torch.float32)
    out = base.new_empty(2, heads, n, dtype=torch.float32)
    stats[(len(tiles), PARTS.value)](base, *terms, tiles, parts, n, heads, rank, gz is not None, Vp)
    grid = (triton.cdiv(n, MERGE_ROWS.value), heads)
    merge[grid](base, *terms, slot, *slot.stride(), parts, target, out, gz, n, rank, Vp)
    return out[0], out[1], gz


def gradients(base, terms, vocab, items, target, lse, *, out=None, want_up=False, want_bias=False) -> tuple:
    """gᵀ z (items, R, V) and Σ g (items, V), if wanted; items (I, 4) as in `Layout`.

    `out` (n, Vp) receives g times `shift_of` its format, for one head; it may be the base.
    """
    (n, Vp), gu, g_bias, rank = base.shape, None, None, 0 if terms.up is None else terms.up.shape[1]
    if want_up:
        gu = base.new_empty(len(items), rank, vocab, dtype=torch.float32)
    if want_bias:
        g_bias = base.new_empty(len(items), vocab, dtype=torch.float32)
    given = (target, lse, items, out, gu, g_bias, n, len(lse), vocab, rank, Vp)
    grads[(len(items), Vp // GRADS_COLUMNS.value)](base, *terms, *given)
    return gu, g_bias


@triton.jit
def _ranks(RANK: constexpr):
    """Numbers of a slot's ranks, filled up to INNER."""
    return tl.arange(0, 16 if RANK <= 16 else 32)


@triton.jit
def _up(up, cols, slot, RANK: constexpr, VP: constexpr):
    """Columns of one slot's up (INNER, BV), zero beyond the rank."""
    ranks = _ranks(RANK)
    at = (slot * RANK + ranks[:, None]) * VP + cols[None, :]
    return tl.load(up + at, mask=(ranks < RANK)[:, None], other=0.0)


@triton.jit
def _low_rank(z, rows, row_ok, head, heads, RANK: constexpr):
    """z of one head's rows (BM, INNER), zero beyond the rank and in other rows."""
    ranks = _ranks(RANK)
    at = (rows[:, None] * heads + head) * ranks.shape[0] + ranks[None, :]
    return tl.load(z + at, mask=row_ok[:, None], other=0.0)


@triton.jit
def _adapted(x, zt, up_t, bias, fixed, cols, slot, RANK: constexpr, VP: constexpr):
    """Base logits x of one tile and what is added to them, in float32; beyond the vocabulary minus infinity."""
    x = x.to(tl.float32)
    if RANK > 0:
        x = tl.dot(zt, up_t, x)
    if bias is not None:
        x += tl.load(bias + slot * VP + cols)[None, :]
    if fixed is not None:
        x += tl.load(fixed + cols)[None, :]
    return x


@triton.jit(do_not_specialize=VARYING)
def stats(base, z, up, bias, fixed, tiles, parts, n, heads, RANK: constexpr, GZ: constexpr, VP: constexpr):
    """parts (H, n, 2 + RANK, PARTS): of each part of a row, for x = logits / log 2 and p = exp2(x − maximum),

    the maximum of x, Σ p, and with GZ also Σ p up.
    """
    COLUMNS: constexpr = 64 if VP % 128 else 128
    WIDTH: constexpr = (VP // COLUMNS + PARTS - 1) // PARTS * COLUMNS  # of a part
    tile, part = tiles + tl.program_id(0) * 4, tl.program_id(1)
    head, slot, end = tl.load(tile), tl.load(tile + 1).to(tl.int64), tl.load(tile + 3)
    if tl.load(tile + 2) >= end:
        return  # a spare tile of a recording
    rows = tl.load(tile + 2) + tl.arange(0, STATS_ROWS)
    row_ok, ranks = rows < end, _ranks(RANK)
    zt = rows  # any value: read for RANK > 0 only, and up_t
    if RANK > 0:
        zt = _low_rank(z, rows, row_ok, head, heads, RANK)
    if GZ:
        moments = tl.zeros((STATS_ROWS, ranks.shape[0]), tl.float32)
    top = tl.full((STATS_ROWS,), -1e30, tl.float32)  # finite, so that an empty part gives 0 and not NaN
    total = tl.zeros((STATS_ROWS,), tl.float32)
    where = base + tl.minimum(rows, end - 1)[:, None].to(tl.int64) * VP
    for start in tl.range(part * WIDTH, tl.minimum((part + 1) * WIDTH, VP), COLUMNS, num_stages=STAGES):
        cols = start + tl.arange(0, COLUMNS)
        up_t = cols
        if RANK > 0:
            up_t = _up(up, cols, slot, RANK, VP)
        x = _adapted(tl.load(where + cols[None, :]), zt, up_t, bias, fixed, cols, slot, RANK, VP)
        new = tl.maximum(top, tl.max(x, 1) * LOG2_E)
        p = tl.exp2(x * LOG2_E - new[:, None])
        back = tl.exp2(top - new)
        total = total * back + tl.sum(p, 1)
        if GZ:
            moments = tl.dot(p.to(up.dtype.element_ty), tl.trans(up_t), moments * back[:, None])
        top = new
    at = parts + (head * n + rows) * ((2 + RANK * GZ) * PARTS) + part
    tl.store(at, top, mask=row_ok)
    tl.store(at + PARTS, total, mask=row_ok)
    if GZ:
        to = at[:, None] + (2 + ranks[None, :]) * PARTS
        tl.store(to, moments, mask=row_ok[:, None] & (ranks < RANK)[None, :])


@triton.jit(do_not_specialize=VARYING)
def merge(
    base, z, up, bias, fixed, slot, by_head, by_row, parts, target, out, gz, n, RANK: constexpr, VP: constexpr
):
    """out (2, H, n): from a row's parts and its target's logit the loss, or 0, and what `grads` takes from

    x / log 2, infinity in ignored rows; gz (H, R, n) = SHIFT · (g up)ᵀ.
    """
    SHIFT: constexpr = FP16_SHIFT if base.dtype.element_ty == tl.float16 else 1.0
    KINDS: constexpr = 2 if gz is None else 2 + RANK
    head, heads = tl.program_id(1), tl.num_programs(1)
    rows = tl.program_id(0) * MERGE_ROWS + tl.arange(0, MERGE_ROWS)
    row_ok = rows < n
    at = parts + (head * n + rows)[:, None] * (KINDS * PARTS) + tl.arange(0, PARTS)[None, :]
    tops = tl.load(at, mask=row_ok[:, None], other=0.0)
    top = tl.max(tops, 1)
    back = tl.exp2(tops - top[:, None])
    total = tl.sum(tl.load(at + PARTS, mask=row_ok[:, None], other=1.0) * back, 1)
    lse = top + tl.log2(total / SHIFT)
    y = tl.load(target + rows, mask=row_ok, other=IGNORED)
    counts = row_ok & (y != IGNORED)
    hit = tl.load(base + rows.to(tl.int64) * VP + y, mask=counts, other=0.0).to(tl.float32)
    slot = tl.load(slot + head * by_head + rows * by_row, mask=row_ok, other=0)
    INNER: constexpr = 16 if RANK <= 16 else 32
    for r in tl.static_range(RANK):
        up_y = tl.load(up + (slot * RANK + r) * VP + y, mask=counts, other=0.0).to(tl.float32)
        hit += tl.load(z + (rows * heads + head) * INNER + r, mask=row_ok, other=0.0).to(tl.float32) * up_y
        if gz is not None:
            mean = tl.sum(tl.load(at + (2 + r) * PARTS, mask=row_ok[:, None], other=0.0) * back, 1) / total
            tl.store(
                gz + (head * RANK + r) * n + rows, tl.where(counts, (mean - up_y) * SHIFT, 0.0), mask=row_ok
            )
    if bias is not None:
        hit += tl.load(bias + slot * VP + y, mask=counts, other=0.0)
    if fixed is not None:
        hit += tl.load(fixed + y, mask=counts, other=0.0)
    tl.store(out + head * n + rows, tl.where(counts, (top + tl.log2(total)) / LOG2_E - hit, 0.0), mask=row_ok)
    tl.store(out + (heads + head) * n + rows, tl.where(counts, lse, float("inf")), mask=row_ok)


@triton.jit(do_not_specialize=VARYING)
def grads(
    base, z, up, bias, fixed, target, lse, items, out, gu, gb, n, heads, vocab, RANK: constexpr, VP: constexpr
):
    """For an item and a block of columns, g = SHIFT · (softmax − onehot), 0 in ignored rows: out (n, Vp) = g,

    gu (items, R, V) = (gᵀ z)ᵀ, gb (items, V) = Σ g, each over SHIFT.
    """
    SHIFT: constexpr = FP16_SHIFT if base.dtype.element_ty == tl.float16 else 1.0
    BACK: constexpr = 1.0 / SHIFT  # a product is exact, a GPU's fast division is not
    number, block, item = tl.program_id(0), tl.program_id(1), items + tl.program_id(0) * 4
    head, slot, end = tl.load(item), tl.load(item + 1).to(tl.int64), tl.load(item + 3)
    cols, ranks, first = block * GRADS_COLUMNS + tl.arange(0, GRADS_COLUMNS), _ranks(RANK), tl.load(item + 2)
    up_t = cols
    if RANK > 0:
        up_t = _up(up, cols, slot, RANK, VP)
        gu_sum = tl.zeros((GRADS_COLUMNS, ranks.shape[0]), tl.float32)
    bias_sum = tl.zeros((GRADS_COLUMNS,), tl.float32)
    step = (first + tl.arange(0, GRADS_ROWS))[:, None].to(tl.int64) * VP + cols[None, :]
    for start in tl.range(first, end, GRADS_ROWS, num_stages=STAGES):
        rows = start + tl.arange(0, GRADS_ROWS)
        row_ok = rows < end
        zt = rows
        if RANK > 0:
            zt = _low_rank(z, rows, row_ok, head, heads, RANK)
        x = tl.load(base + step, mask=row_ok[:, None], other=0.0)
        x = _adapted(x, zt, up_t, bias, fixed, cols, slot, RANK, VP)
        g = tl.exp2(x * LOG2_E - tl.load(lse + head * n + rows, mask=row_ok, other=float("inf"))[:, None])
        y = tl.load(target + rows, mask=row_ok, other=IGNORED).to(tl.int32)
        g = tl.where(cols[None, :] == y[:, None], g - SHIFT, g)
        short = g.to(base.dtype.element_ty)
        if gu is not None:
            gu_sum = tl.dot(tl.trans(short), zt, gu_sum)
        if gb is not None:
            bias_sum += tl.sum(g, 0)
        if out is not None:
            tl.store(out + step, short, mask=row_ok[:, None])
        step += GRADS_ROWS * VP
    if gu is not None:
        to = (number.to(tl.int64) * RANK + ranks[None, :]) * vocab + cols[:, None]
        tl.store(gu + to, gu_sum * BACK, mask=(cols < vocab)[:, None] & (ranks < RANK)[None, :])
    if gb is not None:
        tl.store(gb + number.to(tl.int64) * vocab + cols, bias_sum * BACK, mask=cols < vocab)
