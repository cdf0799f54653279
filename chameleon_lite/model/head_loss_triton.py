"""The chunk step of the head loss as three GPU kernels that read 16-bit logits where they lie (see `head_loss.py`).

    stats   (row blocks × column parts)   running maximum and sum of exp, and the target's logit: reads only
    merge   (row blocks)                  the parts of a row to its loss and its log-sum-exp
    grads   (column blocks × row parts)   g = exp(logit − lse) − onehot in registers; gᵀ z summed over a part's rows
                                          there, g up by column block; g is written only where a product needs it

The update z upᵀ is added in registers, float32, while its rank is at most 32; a larger one (rank 133, or many
groups side by side) is first added to a copy of the logits by an ordinary product. All sums are in a fixed order:
the same inputs give the same bits.
"""
import torch
import triton
import triton.language as tl
from torch import Tensor

from .head_loss_pass import (
    FP16_SHIFT,
    IGNORED,
    ChunkFactors,
    HeadTask,
    add_gradients,
    down_gradients,
    low_rank_states,
    torch_step,
)

# Tiles of logits and how often an axis is cut; the H100 wants several programs a processor (132 of them) in flight.
STATS = {"BM": 32, "BV": 128, "num_warps": 4}
GRADS = {"BM": 128, "BV": 128, "num_warps": 8}
PARTS = 16  # parts of a row in `stats`
ROW_PARTS = 2  # parts of the rows in `grads`
FUSED_RANKS = (16, 32)  # inner sizes that the matrix units take; smaller ranks are padded with zeros


@triton.jit
def _tile(base, zt, up, bias, rows, cols, row_ok, vocab, stride,
          RANK: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Adapted logits of one tile in float32, minus infinity beyond the vocabulary; zt (rows, RANK)."""
    ok = row_ok[:, None] & (cols[None, :] < vocab)
    x = tl.load(base + rows[:, None].to(tl.int64) * stride + cols[None, :], mask=ok, other=0.0).to(tl.float32)
    if RANK > 0:
        ranks = tl.arange(0, RANK)
        up_t = tl.load(up + cols[None, :] * RANK + ranks[:, None], mask=(cols < vocab)[None, :], other=0.0)
        x += tl.dot(zt, up_t)
    if HAS_BIAS:
        x += tl.load(bias + cols, mask=cols < vocab, other=0.0)[None, :]
    return tl.where((cols < vocab)[None, :], x, float("-inf"))


@triton.jit
def _stats(base, z, up, bias, target, part_max, part_sum, part_hit, n, vocab, stride, part_columns,
           RANK: tl.constexpr, HAS_BIAS: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr):
    """part_max, part_sum, part_hit (n, PARTS): maximum, sum of exp(· − maximum), target's logit of a row's part."""
    rows, part = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1)
    row_ok = rows < n
    y = tl.load(target + rows, mask=row_ok, other=-1)
    if RANK > 0:
        zt = tl.load(z + rows[:, None] * RANK + tl.arange(0, RANK)[None, :], mask=row_ok[:, None], other=0.0)
    else:
        zt = y  # any value: _tile reads it for RANK > 0 only
    top = tl.full((BM,), -1e30, tl.float32)  # finite, so that an empty part gives 0 and not NaN
    total = tl.zeros((BM,), tl.float32)
    hit = tl.zeros((BM,), tl.float32)
    first = part * part_columns
    for start in range(first, tl.minimum(first + part_columns, vocab), BV):
        cols = start + tl.arange(0, BV)
        x = _tile(base, zt, up, bias, rows, cols, row_ok, vocab, stride, RANK, HAS_BIAS)
        new = tl.maximum(top, tl.max(x, 1))
        total = total * tl.exp(top - new) + tl.sum(tl.exp(x - new[:, None]), 1)
        top = new
        hit += tl.sum(tl.where(cols[None, :] == y[:, None], x, 0.0), 1)
    tl.store(part_max + rows * PARTS + part, top, mask=row_ok)
    tl.store(part_sum + rows * PARTS + part, total, mask=row_ok)
    tl.store(part_hit + rows * PARTS + part, hit, mask=row_ok)


@triton.jit
def _merge(part_max, part_sum, part_hit, target, nll, lse, n, ignored,
           PARTS: tl.constexpr, BM: tl.constexpr):
    """The parts (n, PARTS) of each row to its log-sum-exp and its loss (n,), 0 where the target is ignored."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    row_ok = rows < n
    at = rows[:, None] * PARTS + tl.arange(0, PARTS)[None, :]
    tops = tl.load(part_max + at, mask=row_ok[:, None], other=0.0)
    sums = tl.load(part_sum + at, mask=row_ok[:, None], other=1.0)
    hits = tl.load(part_hit + at, mask=row_ok[:, None], other=0.0)
    top = tl.max(tops, 1)
    total = top + tl.log(tl.sum(sums * tl.exp(tops - top[:, None]), 1))
    y = tl.load(target + rows, mask=row_ok, other=0)
    tl.store(lse + rows, total, mask=row_ok)
    tl.store(nll + rows, tl.where(y == ignored, 0.0, total - tl.sum(hits, 1)), mask=row_ok)


@triton.jit
def _grads(base, z, up, bias, target, lse, out, gu, gz_parts, g_bias, n, part_rows, vocab, stride, ignored, shift,
           RANK: tl.constexpr, HAS_BIAS: tl.constexpr, WRITE: tl.constexpr, BIAS_GRAD: tl.constexpr,
           BM: tl.constexpr, BV: tl.constexpr):
    """For one block of columns and one part of the n rows, with g = shift · (softmax − onehot), 0 in ignored rows:

    gu (parts, Vp, RANK) = gᵀ z, gz_parts (column blocks, n, RANK) = g up, g_bias (parts, Vp) = Σ g, out (n, Vp) = g.
    """
    block, part = tl.program_id(0), tl.program_id(1)
    cols = block * BV + tl.arange(0, BV)
    ranks = tl.arange(0, RANK if RANK > 0 else 16)
    if RANK > 0:
        up_rows = tl.load(up + cols[:, None] * RANK + ranks[None, :], mask=(cols < vocab)[:, None], other=0.0)
        gu_sum = tl.zeros((BV, RANK), tl.float32)
    bias_sum = tl.zeros((BV,), tl.float32)
    last = tl.minimum((part + 1) * part_rows, n)
    for start in range(part * part_rows, last, BM):
        rows = start + tl.arange(0, BM)
        row_ok = rows < last
        y = tl.load(target + rows, mask=row_ok, other=ignored)
        if RANK > 0:
            zt = tl.load(z + rows[:, None] * RANK + ranks[None, :], mask=row_ok[:, None], other=0.0)
        else:
            zt = y
        x = _tile(base, zt, up, bias, rows, cols, row_ok, vocab, stride, RANK, HAS_BIAS)
        top = tl.load(lse + rows, mask=row_ok, other=0.0)
        g = tl.exp(x - top[:, None]) - tl.where(cols[None, :] == y[:, None], 1.0, 0.0)
        g = tl.where((y != ignored)[:, None], g, 0.0) * shift
        short = g.to(base.dtype.element_ty)
        if RANK > 0:
            gu_sum += tl.dot(tl.trans(short), zt)
            gz = tl.dot(short, up_rows)
            to = gz_parts + (block.to(tl.int64) * n + rows[:, None]) * RANK + ranks[None, :]
            tl.store(to, gz, mask=row_ok[:, None])
        if BIAS_GRAD:
            bias_sum += tl.sum(g, 0)
        if WRITE:
            where = out + rows[:, None].to(tl.int64) * stride + cols[None, :]
            tl.store(where, short, mask=row_ok[:, None] & (cols < stride)[None, :])
    if RANK > 0:
        to = gu + (part.to(tl.int64) * stride + cols[:, None]) * RANK + ranks[None, :]
        tl.store(to, gu_sum, mask=(cols < stride)[:, None])
    if BIAS_GRAD:
        tl.store(g_bias + part * stride + cols, bias_sum, mask=cols < stride)


def triton_step(hc: Tensor, base: Tensor, target: Tensor, task: HeadTask, rows: slice, gh: Tensor | None,
                reuse: bool) -> Tensor:
    """As `torch_step`: losses (n,) of one head on one chunk, gradients added; base (n, Vp) overwritten if `reuse`."""
    if task.bias is not None and task.group is not None:
        return torch_step(hc, base, target, task, rows, gh, reuse)  # a bias a row has no place in the kernels
    part = task.factors(rows)
    z = low_rank_states(hc, part, task.scale)  # (n, R')
    logits, rank = base, next((r for r in FUSED_RANKS if z is not None and z.shape[1] <= r), 0)
    if z is not None and not rank:
        logits = torch.addmm(base, z, part.up.T, out=base) if reuse else torch.addmm(base, z, part.up.T)
        reuse = True  # the copy is ours
    bias = _sum_of_biases(task, part)
    if rank and part.fused_up is None:
        part.fused_up = _padded(part.up, rank)  # kept: one head's factors serve all chunks
    small = (_padded(z, rank), part.fused_up) if rank else (logits, logits)
    nll, lse = _losses(logits, small, bias, target, task.weight.vocab, rank)
    if gh is not None or any(g is not None for g in task.gradients):
        _gradients(hc, logits, small, bias, target, lse, z, part, task, rows, gh, rank, reuse)
    return nll


def _sum_of_biases(task: HeadTask, part: ChunkFactors) -> Tensor | None:
    """The frozen head's bias and the update's, (Vp,) float32, or None."""
    own = None if part.bias is None else part.bias[0]
    frozen = task.weight.padded_bias
    return own if frozen is None else frozen if own is None else own + frozen


def _padded(x: Tensor, rank: int) -> Tensor:
    """x (m, R) with zero columns up to the kernel's rank."""
    return torch.nn.functional.pad(x, (0, rank - x.shape[1])).contiguous()


def _losses(logits: Tensor, small: tuple[Tensor, Tensor], bias: Tensor | None, target: Tensor, vocab: int,
            rank: int) -> tuple[Tensor, Tensor]:
    """Loss and log-sum-exp (n,) of each row."""
    n, stride = logits.shape
    parts = logits.new_empty(3, n, PARTS, dtype=torch.float32)
    nll, lse = logits.new_empty(2, n, dtype=torch.float32)
    part_columns = triton.cdiv(triton.cdiv(vocab, PARTS), STATS["BV"]) * STATS["BV"]
    blocks = triton.cdiv(n, STATS["BM"])
    _stats[(blocks, PARTS)](
        logits, *small, logits if bias is None else bias, target, *parts, n, vocab, stride, part_columns,
        RANK=rank, HAS_BIAS=bias is not None, PARTS=PARTS, **STATS)
    _merge[(blocks,)](*parts, target, nll, lse, n, IGNORED, PARTS=PARTS, BM=STATS["BM"])
    return nll, lse


def _gradients(hc: Tensor, logits: Tensor, small: tuple[Tensor, Tensor], bias: Tensor | None, target: Tensor,
               lse: Tensor, z: Tensor | None, part: ChunkFactors, task: HeadTask, rows: slice, gh: Tensor | None,
               rank: int, reuse: bool) -> None:
    """Add the head's gradients to the task's sums and to gh (n, C)."""
    n, stride = logits.shape
    vocab, blocks = task.weight.vocab, triton.cdiv(stride, GRADS["BV"])
    row_parts = max(1, min(ROW_PARTS, triton.cdiv(n, GRADS["BM"])))
    part_rows = triton.cdiv(triton.cdiv(n, row_parts), GRADS["BM"]) * GRADS["BM"]
    shift = FP16_SHIFT if logits.dtype == torch.float16 else 1.0
    write = gh is not None or (z is not None and not rank)
    want_bias = task.gradients[2] is not None
    g = (logits if reuse else torch.empty_like(logits)) if write else logits
    gu = logits.new_empty(row_parts, stride, rank, dtype=torch.float32) if rank else lse
    gz_parts = logits.new_empty(blocks, n, rank, dtype=torch.float32) if rank else lse
    g_bias = logits.new_empty(row_parts, stride, dtype=torch.float32) if want_bias else lse
    _grads[(blocks, row_parts)](
        logits, *small, logits if bias is None else bias, target, lse, g, gu, gz_parts, g_bias, n, part_rows, vocab,
        stride, IGNORED, shift, RANK=rank, HAS_BIAS=bias is not None, WRITE=write, BIAS_GRAD=want_bias, **GRADS)
    if want_bias:
        task.add(2, g_bias.sum(0)[:vocab] / shift, part.ids)
    if rank:
        own = z.shape[1]
        if task.gradients[1] is not None:
            task.add(1, gu.sum(0)[:vocab, :own].T / shift, part.ids)
        down_gradients(hc, gz_parts.sum(0)[:, :own], part, task, rows, gh, shift)
        z = None  # done; what remains is the frozen weight's share of gh
    if write:
        add_gradients(hc, g, z, part, target, task, rows, gh, shift)
