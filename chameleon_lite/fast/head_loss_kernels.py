"""The GPU kernels of the head loss: they read 16-bit logits where they lie, for many heads in one launch.

    stats   (tiles × column parts)   running maximum and sum of exp of a tile's rows: reads only
    merge   (heads × rows)           the parts of a row to its log-sum-exp, and with the target's logit to its loss
    grads   (items × column blocks)  g = exp(logit − lse) − onehot in registers; gᵀ z summed over an item's rows
                                     there, g up by column block; g is written only where a product needs it

Heads share the base logits (n, Vp). Each (head, group) pair owns one of S slots of stacked factors. A table built on
the host assigns each program its rows and slot: a tile or an item is a stretch of rows that use one slot of one head.
Programs that read the same logits for different heads are neighbours, so the logits come from memory once.
The update z upᵀ is added in registers, in float32. All sums are in a fixed order: the same inputs, the same bits.
"""

import triton
import triton.language as tl

VARYING = ["n"]  # from step to step; a kernel compiled for each kind of number would not pay


@triton.jit
def _up(up, cols, slot, vocab, RANK: tl.constexpr, INNER: tl.constexpr):
    """Columns of one slot's up (INNER, BV), zero beyond rank and vocabulary."""
    ranks = tl.arange(0, INNER)
    at = (slot * RANK + ranks[:, None]) * vocab + cols[None, :]
    return tl.load(up + at, mask=(cols < vocab)[None, :] & (ranks < RANK)[:, None], other=0.0)


@triton.jit
def _low_rank(z, rows, row_ok, head, padded, RANK: tl.constexpr, INNER: tl.constexpr):
    """z of one head's rows (BM, INNER), zero beyond the rank."""
    ranks = tl.arange(0, INNER)
    at = (head * RANK + ranks[None, :]) * padded + rows[:, None]
    return tl.load(z + at, mask=row_ok[:, None] & (ranks < RANK)[None, :], other=0.0)


@triton.jit
def _tile(
    base,
    zt,
    up_t,
    bias,
    frozen,
    rows,
    row_ok,
    cols,
    slot,
    vocab,
    stride,
    RANK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_FROZEN: tl.constexpr,
):
    """Adapted logits of one tile in float32; beyond the vocabulary the base holds minus infinity."""
    where = rows[:, None].to(tl.int64) * stride + cols[None, :]
    x = tl.load(base + where, mask=row_ok[:, None] & (cols < stride)[None, :], other=float("-inf")).to(
        tl.float32
    )
    if RANK > 0:
        x += tl.dot(zt, up_t)
    if HAS_BIAS:
        x += tl.load(bias + slot * vocab + cols, mask=cols < vocab, other=0.0)[None, :]
    if HAS_FROZEN:
        x += tl.load(frozen + cols, mask=cols < vocab, other=0.0)[None, :]
    return x


@triton.jit(do_not_specialize=VARYING)
def stats(
    base,
    z,
    up,
    bias,
    frozen,
    tiles,
    part_max,
    part_sum,
    n,
    padded,
    vocab,
    stride,
    part_columns,
    RANK: tl.constexpr,
    INNER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_FROZEN: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
    BV: tl.constexpr,
):
    """part_max, part_sum (K, n, PARTS): maximum and sum of exp(· − maximum) of a row's part."""
    tile, part = tiles + tl.program_id(0) * 4, tl.program_id(1)
    head, slot = tl.load(tile), tl.load(tile + 1).to(tl.int64)
    rows = tl.load(tile + 2) + tl.arange(0, BM)
    row_ok = rows < tl.load(tile + 3)
    zt = rows  # any value: _tile reads it for RANK > 0 only, and up_t
    if RANK > 0:
        zt = _low_rank(z, rows, row_ok, head, padded, RANK, INNER)
    top = tl.full((BM,), -1e30, tl.float32)  # finite, so that an empty part gives 0 and not NaN
    total = tl.zeros((BM,), tl.float32)
    first = part * part_columns
    for start in range(first, tl.minimum(first + part_columns, vocab), BV):
        cols = start + tl.arange(0, BV)
        up_t = cols
        if RANK > 0:
            up_t = _up(up, cols, slot, vocab, RANK, INNER)
        x = _tile(
            base, zt, up_t, bias, frozen, rows, row_ok, cols, slot, vocab, stride, RANK, HAS_BIAS, HAS_FROZEN
        )
        new = tl.maximum(top, tl.max(x, 1))
        total = total * tl.exp(top - new) + tl.sum(tl.exp(x - new[:, None]), 1)
        top = new
    at = (head * n + rows) * PARTS + part
    tl.store(part_max + at, top, mask=row_ok)
    tl.store(part_sum + at, total, mask=row_ok)


@triton.jit(do_not_specialize=VARYING)
def merge(
    part_max,
    part_sum,
    base,
    z,
    up,
    bias,
    frozen,
    slots,
    target,
    nll,
    lse,
    n,
    padded,
    vocab,
    stride,
    slot_head,
    slot_row,
    ignored,
    RANK: tl.constexpr,
    INNER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_FROZEN: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
):
    """nll, lse (K, n) from a row's parts and its target's logit; nll is 0 where the target is ignored."""
    rows, head = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1)
    row_ok = rows < n
    at = (head * n + rows)[:, None] * PARTS + tl.arange(0, PARTS)[None, :]
    tops = tl.load(part_max + at, mask=row_ok[:, None], other=0.0)
    sums = tl.load(part_sum + at, mask=row_ok[:, None], other=1.0)
    top = tl.max(tops, 1)
    total = top + tl.log(tl.sum(sums * tl.exp(tops - top[:, None]), 1))
    y = tl.load(target + rows, mask=row_ok, other=ignored)
    counts = row_ok & (y != ignored)
    hit = tl.load(base + rows.to(tl.int64) * stride + y, mask=counts, other=0.0).to(tl.float32)
    slot = tl.load(slots + head * slot_head + rows * slot_row, mask=row_ok, other=0)
    if RANK > 0:
        ranks = tl.arange(0, INNER)
        own = (slot[:, None] * RANK + ranks[None, :]) * vocab + y[:, None]
        up_y = tl.load(up + own, mask=counts[:, None] & (ranks < RANK)[None, :], other=0.0).to(tl.float32)
        hit += tl.sum(_low_rank(z, rows, row_ok, head, padded, RANK, INNER).to(tl.float32) * up_y, 1)
    if HAS_BIAS:
        hit += tl.load(bias + slot * vocab + y, mask=counts, other=0.0)
    if HAS_FROZEN:
        hit += tl.load(frozen + y, mask=counts, other=0.0)
    tl.store(lse + head * n + rows, total, mask=row_ok)
    tl.store(nll + head * n + rows, tl.where(counts, total - hit, 0.0), mask=row_ok)


@triton.jit(do_not_specialize=VARYING)
def grads(
    base,
    z,
    up,
    bias,
    frozen,
    target,
    lse,
    items,
    out,
    gu,
    gz_parts,
    g_bias,
    n,
    padded,
    vocab,
    stride,
    blocks,
    ignored,
    shift,
    back,
    back_z,
    RANK: tl.constexpr,
    INNER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_FROZEN: tl.constexpr,
    WRITE: tl.constexpr,
    BIAS_GRAD: tl.constexpr,
    BM: tl.constexpr,
    BV: tl.constexpr,
):
    """For one item and one block of columns, with g = shift · (softmax − onehot), 0 in ignored rows:

    gu (items, R, V) = back · (gᵀ z)ᵀ, gz_parts (K, blocks, R, Np) = back_z · (g up)ᵀ, g_bias (items, V) = back · Σ g,
    out (n, Vp) = g.
    """
    number, block = tl.program_id(0), tl.program_id(1)
    item = items + number * 4
    head, slot, end = tl.load(item), tl.load(item + 1).to(tl.int64), tl.load(item + 3)
    cols, ranks = block * BV + tl.arange(0, BV), tl.arange(0, INNER)
    inside = cols < vocab
    up_t = cols
    if RANK > 0:
        up_t = _up(up, cols, slot, vocab, RANK, INNER)
        gu_sum = tl.zeros((BV, INNER), tl.float32)
    bias_sum = tl.zeros((BV,), tl.float32)
    for start in range(tl.load(item + 2), end, BM):
        rows = start + tl.arange(0, BM)
        row_ok = rows < end
        y = tl.load(target + rows, mask=row_ok, other=ignored)
        zt = rows
        if RANK > 0:
            zt = _low_rank(z, rows, row_ok, head, padded, RANK, INNER)
        x = _tile(
            base, zt, up_t, bias, frozen, rows, row_ok, cols, slot, vocab, stride, RANK, HAS_BIAS, HAS_FROZEN
        )
        top = tl.load(lse + head * n + rows, mask=row_ok, other=0.0)
        g = tl.exp(x - top[:, None]) - tl.where(cols[None, :] == y[:, None], 1.0, 0.0)
        g = tl.where((y != ignored)[:, None], g, 0.0) * shift
        short = g.to(base.dtype.element_ty)
        if RANK > 0:
            gu_sum += tl.dot(tl.trans(short), zt)
            to = ((head * blocks + block).to(tl.int64) * RANK + ranks[None, :]) * padded + rows[:, None]
            gz = tl.dot(short, tl.trans(up_t)) * back_z
            tl.store(gz_parts + to, gz, mask=row_ok[:, None] & (ranks < RANK)[None, :])
        if BIAS_GRAD:
            bias_sum += tl.sum(g, 0)
        if WRITE:
            where = out + rows[:, None].to(tl.int64) * stride + cols[None, :]
            tl.store(where, short, mask=row_ok[:, None] & (cols < stride)[None, :])
    if RANK > 0:
        to = (number.to(tl.int64) * RANK + ranks[None, :]) * vocab + cols[:, None]
        tl.store(gu + to, gu_sum * back, mask=inside[:, None] & (ranks < RANK)[None, :])
    if BIAS_GRAD:
        tl.store(g_bias + number.to(tl.int64) * vocab + cols, bias_sum * back, mask=inside)
