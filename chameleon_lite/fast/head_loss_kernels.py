"""The GPU kernels of the head loss: they read 16-bit logits where they lie, for many heads in one launch.

    stats   (tiles × column parts)   running maximum and sum of exp of a tile's rows: reads only
    merge   (rows × heads)           a row's parts to its log-sum-exp, and with the target's logit to its loss
    grads   (items × column blocks)  g = exp(logit − lse) − onehot in registers; gᵀ z summed over an item's
                                     rows, g up by column block; g is written only where a product needs it

Heads share the base logits (n, Vp). Each (head, group) pair owns one of S slots of stacked factors. A table
built on the host assigns each program its rows and slot: a tile or an item is a stretch of rows that use one
slot of one head. Programs that read the same logits for different heads are neighbours: logits come from
memory once. The update z upᵀ is added in registers, in float32. All sums are in a fixed order: the same
inputs, the same bits. An argument that is absent is None: a kernel is compiled for each combination that
occurs.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import text
from . import head_loss_torch

# Tiles of logits, and how often a row is cut: an H100's 132 processors are fastest with several programs.
STATS_ROWS, STATS_COLUMNS, PARTS = tl.constexpr(16), tl.constexpr(256), tl.constexpr(16)
GRADS_ROWS, GRADS_COLUMNS = tl.constexpr(64), tl.constexpr(128)
MERGE_ROWS = tl.constexpr(64)
ROW_ALIGNED = tl.constexpr(16)  # to which z's rows are padded: a vector load needs to know where they begin
IGNORED, FP16_SHIFT = tl.constexpr(text.IGNORED), tl.constexpr(head_loss_torch.FP16_SHIFT)
VARYING = ["n"]  # from step to step; a kernel compiled for each kind of number would not pay


class Terms(NamedTuple):
    """What H heads add to n rows of base logits, packed (see `Bundle`); absent factors are None."""

    z: Tensor | None  # (H, R, Np) α h downᵀ in the matmul format, rows padded to a multiple of ROW_ALIGNED
    up: Tensor | None  # (S, R, V)
    bias: Tensor | None  # (S, V) float32
    frozen: Tensor | None  # (Vp,) the base weight's own bias, float32


def padded(n: int) -> int:
    """Np, the rows of z with padding."""
    return triton.cdiv(n, ROW_ALIGNED.value) * ROW_ALIGNED.value


def losses(base: Tensor, terms: Terms, vocab: int, slot, tiles, target: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and log-sum-exp (H, n) of the rows; slot (H, n) int64, any strides; tiles as in `Layout`."""
    (n, Vp), heads, rank = base.shape, len(slot), 0 if terms.z is None else terms.z.shape[1]
    parts = base.new_empty(heads, n, 2, PARTS.value, dtype=torch.float32)
    out = base.new_empty(2, heads, n, dtype=torch.float32)
    columns = triton.cdiv(vocab, PARTS.value * STATS_COLUMNS.value) * STATS_COLUMNS.value  # of one part
    stats[(len(tiles), PARTS.value)](base, *terms, tiles, parts, n, vocab, Vp, columns, rank)
    grid = (triton.cdiv(n, MERGE_ROWS.value), heads)
    merge[grid](base, *terms, slot, *slot.stride(), parts, target, out, n, vocab, Vp, rank)
    return out[0], out[1]


def gradients(base, terms, vocab, items, target, lse, *, out=None, want_bias=False, scale=1.0) -> tuple:
    """gᵀ z (items, R, V), scale · g up (H, R, n), Σ g (items, V); items (I, 4) as in `Layout`.

    `out` (n, Vp) receives g times `shift_of` its format, for one head; it may be the base.
    """
    (n, Vp), gu, gz, g_bias, rank = base.shape, None, None, None, 0
    blocks = triton.cdiv(Vp, GRADS_COLUMNS.value)
    if terms.z is not None:
        rank = terms.z.shape[1]
        gu = base.new_empty(len(items), rank, vocab, dtype=torch.float32)
        gz = base.new_empty(len(lse), blocks, rank, padded(n), dtype=torch.float32)
    if want_bias:
        g_bias = base.new_empty(len(items), vocab, dtype=torch.float32)
    given = (target, lse, items, out, gu, gz, g_bias, n, vocab, Vp, scale, rank)
    grads[(len(items), blocks)](base, *terms, *given)
    return gu, None if gz is None else gz.sum(1)[:, :, :n], g_bias


@triton.jit
def _ranks(RANK: tl.constexpr):
    """Numbers of a slot's ranks, filled up to the 16 or 32 (INNER) that matrix units take."""
    return tl.arange(0, 16 if RANK <= 16 else 32)


@triton.jit
def _padded(n):
    return tl.cdiv(n, ROW_ALIGNED) * ROW_ALIGNED


@triton.jit
def _up(up, cols, slot, vocab, RANK: tl.constexpr):
    """Columns of one slot's up (INNER, BV), zero beyond rank and vocabulary."""
    ranks = _ranks(RANK)
    at = (slot * RANK + ranks[:, None]) * vocab + cols[None, :]
    return tl.load(up + at, mask=(cols < vocab)[None, :] & (ranks < RANK)[:, None], other=0.0)


@triton.jit
def _low_rank(z, rows, row_ok, head, n, RANK: tl.constexpr):
    """z of one head's rows (BM, INNER), zero beyond the rank."""
    ranks = _ranks(RANK)
    at = (head * RANK + ranks[None, :]) * _padded(n) + rows[:, None]
    return tl.load(z + at, mask=row_ok[:, None] & (ranks < RANK)[None, :], other=0.0)


@triton.jit
def _tile(base, zt, up_t, bias, frozen, rows, row_ok, cols, slot, vocab, Vp, RANK: tl.constexpr):
    """Adapted logits of one tile in float32; beyond the vocabulary the base holds minus infinity."""
    where = rows[:, None].to(tl.int64) * Vp + cols[None, :]
    x = tl.load(base + where, mask=row_ok[:, None] & (cols < Vp)[None, :], other=float("-inf"))
    x = x.to(tl.float32)
    if RANK > 0:
        x += tl.dot(zt, up_t)
    if bias is not None:
        x += tl.load(bias + slot * vocab + cols, mask=cols < vocab, other=0.0)[None, :]
    if frozen is not None:
        x += tl.load(frozen + cols, mask=cols < vocab, other=0.0)[None, :]
    return x


@triton.jit(do_not_specialize=VARYING)
def stats(base, z, up, bias, frozen, tiles, parts, n, vocab, Vp, part_columns, RANK: tl.constexpr):
    """parts (H, n, 2, PARTS): of each part of a row the maximum, and the sum of exp(· − maximum)."""
    tile, part = tiles + tl.program_id(0) * 4, tl.program_id(1)
    if tl.load(tile + 2) >= tl.load(tile + 3):
        return  # a spare tile of a recording
    head, slot = tl.load(tile), tl.load(tile + 1).to(tl.int64)
    rows = tl.load(tile + 2) + tl.arange(0, STATS_ROWS)
    row_ok = rows < tl.load(tile + 3)
    zt = rows  # any value: _tile reads it for RANK > 0 only, and up_t
    if RANK > 0:
        zt = _low_rank(z, rows, row_ok, head, n, RANK)
    top = tl.full((STATS_ROWS,), -1e30, tl.float32)  # finite, so that an empty part gives 0 and not NaN
    total = tl.zeros((STATS_ROWS,), tl.float32)
    first = part * part_columns
    for start in range(first, tl.minimum(first + part_columns, vocab), STATS_COLUMNS):
        cols = start + tl.arange(0, STATS_COLUMNS)
        up_t = cols
        if RANK > 0:
            up_t = _up(up, cols, slot, vocab, RANK)
        x = _tile(base, zt, up_t, bias, frozen, rows, row_ok, cols, slot, vocab, Vp, RANK)
        new = tl.maximum(top, tl.max(x, 1))
        total = total * tl.exp(top - new) + tl.sum(tl.exp(x - new[:, None]), 1)
        top = new
    at = parts + (head * n + rows) * (2 * PARTS) + part
    tl.store(at, top, mask=row_ok)
    tl.store(at + PARTS, total, mask=row_ok)


@triton.jit(do_not_specialize=VARYING)
def merge(
    base, z, up, bias, frozen, slots, by_head, by_row, parts, target, out, n, vocab, Vp, RANK: tl.constexpr
):
    """out (2, H, n): from a row's parts and its target's logit the loss, or 0, and the log-sum-exp."""
    rows, head = tl.program_id(0) * MERGE_ROWS + tl.arange(0, MERGE_ROWS), tl.program_id(1)
    row_ok = rows < n
    at = (head * n + rows)[:, None] * (2 * PARTS) + tl.arange(0, PARTS)[None, :]
    tops = tl.load(parts + at, mask=row_ok[:, None], other=0.0)
    sums = tl.load(parts + at + PARTS, mask=row_ok[:, None], other=1.0)
    top = tl.max(tops, 1)
    total = top + tl.log(tl.sum(sums * tl.exp(tops - top[:, None]), 1))
    y = tl.load(target + rows, mask=row_ok, other=IGNORED)
    counts = row_ok & (y != IGNORED)
    hit = tl.load(base + rows.to(tl.int64) * Vp + y, mask=counts, other=0.0).to(tl.float32)
    slot = tl.load(slots + head * by_head + rows * by_row, mask=row_ok, other=0)
    if RANK > 0:
        ranks = _ranks(RANK)
        own = (slot[:, None] * RANK + ranks[None, :]) * vocab + y[:, None]
        up_y = tl.load(up + own, mask=counts[:, None] & (ranks < RANK)[None, :], other=0.0).to(tl.float32)
        hit += tl.sum(_low_rank(z, rows, row_ok, head, n, RANK).to(tl.float32) * up_y, 1)
    if bias is not None:
        hit += tl.load(bias + slot * vocab + y, mask=counts, other=0.0)
    if frozen is not None:
        hit += tl.load(frozen + y, mask=counts, other=0.0)
    tl.store(out + head * n + rows, tl.where(counts, total - hit, 0.0), mask=row_ok)
    tl.store(out + (tl.num_programs(1) + head) * n + rows, total, mask=row_ok)


@triton.jit(do_not_specialize=VARYING)
def grads(
    base, z, up, bias, frozen, target, lse, items, out, gu, gz, gb, n, vocab, Vp, scale, RANK: tl.constexpr
):
    """For an item and a block of columns, g = SHIFT · (softmax − onehot), 0 in ignored rows: out (n, Vp) = g,

    gu (items, R, V) = (gᵀ z)ᵀ, gz (H, blocks, R, Np) = scale · (g up)ᵀ, gb (items, V) = Σ g, each over SHIFT.
    """
    SHIFT: tl.constexpr = FP16_SHIFT if base.dtype.element_ty == tl.float16 else 1.0
    BACK: tl.constexpr = 1.0 / SHIFT  # a product is exact, a GPU's fast division is not
    number, block, item = tl.program_id(0), tl.program_id(1), items + tl.program_id(0) * 4
    head, slot, end = tl.load(item), tl.load(item + 1).to(tl.int64), tl.load(item + 3)
    cols, ranks = block * GRADS_COLUMNS + tl.arange(0, GRADS_COLUMNS), _ranks(RANK)
    up_t = cols
    if RANK > 0:
        up_t = _up(up, cols, slot, vocab, RANK)
        gu_sum = tl.zeros((GRADS_COLUMNS, ranks.shape[0]), tl.float32)
    bias_sum = tl.zeros((GRADS_COLUMNS,), tl.float32)
    for start in range(tl.load(item + 2), end, GRADS_ROWS):
        rows = start + tl.arange(0, GRADS_ROWS)
        row_ok = rows < end
        y = tl.load(target + rows, mask=row_ok, other=IGNORED)
        zt = rows
        if RANK > 0:
            zt = _low_rank(z, rows, row_ok, head, n, RANK)
        x = _tile(base, zt, up_t, bias, frozen, rows, row_ok, cols, slot, vocab, Vp, RANK)
        total = tl.load(lse + head * n + rows, mask=row_ok, other=0.0)
        g = tl.exp(x - total[:, None]) - tl.where(cols[None, :] == y[:, None], 1.0, 0.0)
        g = tl.where((y != IGNORED)[:, None], g, 0.0) * SHIFT
        short = g.to(base.dtype.element_ty)
        if RANK > 0:
            gu_sum += tl.dot(tl.trans(short), zt)
            to = ((head * tl.num_programs(1) + block).to(tl.int64) * RANK + ranks[None, :]) * _padded(n)
            part = tl.dot(short, tl.trans(up_t)) * (scale * BACK)
            tl.store(gz + to + rows[:, None], part, mask=row_ok[:, None] & (ranks < RANK)[None, :])
        if gb is not None:
            bias_sum += tl.sum(g, 0)
        if out is not None:
            where = out + rows[:, None].to(tl.int64) * Vp + cols[None, :]
            tl.store(where, short, mask=row_ok[:, None] & (cols < Vp)[None, :])
    if RANK > 0:
        to = (number.to(tl.int64) * RANK + ranks[None, :]) * vocab + cols[:, None]
        tl.store(gu + to, gu_sum * BACK, mask=(cols < vocab)[:, None] & (ranks < RANK)[None, :])
    if gb is not None:
        tl.store(gb + number.to(tl.int64) * vocab + cols, bias_sum * BACK, mask=cols < vocab)
