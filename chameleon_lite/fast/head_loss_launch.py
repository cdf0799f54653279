"""Launches of the head loss's GPU kernels (`head_loss_kernels.py`), and what they read: many heads packed."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from ..text import IGNORED
from . import head_loss_kernels as kernels

# Tiles of logits and how often a row is cut; an H100 is fastest with several programs per processor (132 of them).
STATS = {"BM": 16, "BV": 256, "num_warps": 4}
PARTS = 16  # parts of a row in `stats`
GRADS = {"BM": 64, "BV": 128, "num_warps": 4}
MERGE = {"BM": 64, "num_warps": 4}
ROW_ALIGNED = 16  # z's rows are padded to a multiple: a vector load needs to know where rows begin


@dataclass
class Many:
    """What K heads add to n rows of base logits, packed; see `Bundle`. Absent factors are None."""

    z: Tensor | None  # (K, R, Np) α h downᵀ in the matmul format, rows padded to a multiple of 16: read whole
    up: Tensor | None  # (S, R, V)
    bias: Tensor | None  # (S, V) float32
    slot: Tensor  # (K, n) int64, any strides: the slot each head's row uses
    frozen: Tensor | None  # (Vp,) the base weight's own bias, float32
    vocab: int

    @property
    def heads(self) -> int:
        return self.slot.shape[0]

    def arguments(self, nothing: Tensor) -> tuple:
        """The tensors as the kernels take them; `nothing` stands for what is absent and is never read."""
        return tuple(nothing if x is None else x for x in (self.z, self.up, self.bias, self.frozen))

    @property
    def padded(self) -> int:
        """Np, the rows of z with padding."""
        return ROW_ALIGNED if self.z is None else self.z.shape[2]

    @property
    def switches(self) -> dict:
        rank = 0 if self.z is None else self.z.shape[1]
        return {
            "RANK": rank,
            "INNER": 16 if rank <= 16 else 32,
            "HAS_BIAS": self.bias is not None,
            "HAS_FROZEN": self.frozen is not None,
        }


def losses(base: Tensor, many: Many, tiles: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and log-sum-exp (K, n) of each row under each head; tiles (T, 4) int32 head, slot, first row, end."""
    n, stride = base.shape
    part_max, part_sum = base.new_empty(2, many.heads, n, PARTS, dtype=torch.float32)
    nll, lse = base.new_empty(2, many.heads, n, dtype=torch.float32)
    part_columns = triton.cdiv(triton.cdiv(many.vocab, PARTS), STATS["BV"]) * STATS["BV"]
    given = many.arguments(base)
    kernels.stats[(len(tiles), PARTS)](
        base,
        *given,
        tiles,
        part_max,
        part_sum,
        n,
        many.padded,
        many.vocab,
        stride,
        part_columns,
        PARTS=PARTS,
        **many.switches,
        **STATS,
    )
    kernels.merge[(triton.cdiv(n, MERGE["BM"]), many.heads)](
        part_max,
        part_sum,
        base,
        *given,
        many.slot,
        target,
        nll,
        lse,
        n,
        many.padded,
        many.vocab,
        stride,
        *many.slot.stride(),
        IGNORED,
        PARTS=PARTS,
        **many.switches,
        **MERGE,
    )
    return nll, lse


def gradients(
    base: Tensor,
    many: Many,
    items: Tensor,
    target: Tensor,
    lse: Tensor,
    shift: float,
    *,
    out: Tensor | None = None,
    want_bias: bool = False,
    scale: float = 1.0,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """gᵀ z (items, R, V), scale · g up (K, R, n), Σ g (items, V) of items (I, 4) int32 head, slot, first row, end.

    `out` (n, Vp) receives shift · g, for one head; it may be the base.
    """
    n, stride = base.shape
    rank, blocks = many.switches["RANK"], triton.cdiv(stride, GRADS["BV"])
    gu = base.new_empty(len(items), rank, many.vocab, dtype=torch.float32) if rank else None
    gz = base.new_empty(many.heads, blocks, rank, many.padded, dtype=torch.float32) if rank else None
    g_bias = base.new_empty(len(items), many.vocab, dtype=torch.float32) if want_bias else None
    kernels.grads[(len(items), blocks)](
        base,
        *many.arguments(base),
        target,
        lse,
        items,
        *(lse if x is None else x for x in (out, gu, gz, g_bias)),
        n,
        many.padded,
        many.vocab,
        stride,
        blocks,
        IGNORED,
        shift,
        1 / shift,
        scale / shift,
        WRITE=out is not None,
        BIAS_GRAD=want_bias,
        **many.switches,
        **GRADS,
    )
    return gu, None if gz is None else gz.sum(1)[:, :, :n], g_bias
