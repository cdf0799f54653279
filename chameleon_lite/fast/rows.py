"""Layers that learn from a stream, in pieces of few shapes, on a GPU recorded; see layers.py for why.

rows of a step, by length ─▶ pieces of budget // T rows of T tokens ─ layers, each row's own factors ─▶ h

A piece is filled up with pads; what a row without a document reads changes nothing, as nobody reads its states.
"""

import warnings
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..streams.online import LayerStates
from .layers import sees, takes_packed
from .recorder import usable_after

BUDGET = 8_192  # padded tokens of a piece: a recording holds its activations' memory as long as it is kept
LENGTHS = 64  # a piece's rows have a multiple of so many tokens


class RowsPass:
    """The layers' pass for a piece of documents. A backward pass must have been made before the next piece."""

    def __init__(self, live: LayerStates) -> None:
        self.live, self.budget = live, min(live.piece_tokens, BUDGET)
        gpu = live.device.type == "cuda"
        # One memory for all shapes: no two passes are under way at one time.
        self.pool = torch.cuda.graph_pool_handle() if gpu else None
        self.kept: dict[tuple, object] = {}  # shape ─▶ its recording, or the plain pass

    def shape(self, longest: int) -> tuple[int, int]:
        """(rows, tokens) of a piece that begins with a document of `longest` tokens."""
        length = -(-longest // LENGTHS) * LENGTHS
        return max(1, self.budget // length), length

    def pieces(self, lengths: np.ndarray) -> list[Tensor]:
        """Lengths (B,) to the places of the documents of each piece, the longest first."""
        order, out = np.argsort(-lengths, kind="stable"), []
        while len(order):
            rows, _ = self.shape(int(lengths[order[0]]))
            out.append(torch.from_numpy(order[:rows]))
            order = order[rows:]
        return out

    def __call__(self, ids: Tensor, place: Tensor, values: Tensor, slots: Tensor, shapes):
        """ids (b, T), flat places in them (M,), slots (b, U) of values (S, P): h (B, T', C), places in that.

        On a GPU h is overwritten by the next call.
        """
        numbers = Taken.apply(values, slots).to(self.live.dtype)  # (b, U, P)
        (rows, length), (b, longest) = self.shape(ids.shape[1]), ids.shape
        ids = pad(ids, (0, length - longest, 0, rows - b), value=self.live.table.pad_id)
        numbers = pad(numbers, (0, 0, 0, 0, 0, rows - b))
        key = (rows, length, numbers.shape[1], numbers.dtype, *shapes.items())
        if key not in self.kept:
            self.kept[key] = self._recorded(partial(self._plain, shapes=dict(shapes)), ids, numbers)
        return self.kept[key](ids, numbers), place // longest * length + place % longest

    def _plain(self, ids: Tensor, numbers: Tensor, shapes) -> Tensor:
        position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return self.live.hidden(ids, numbers, shapes, sees(torch.zeros_like(ids)), position)

    def _recorded(self, plain, ids: Tensor, numbers: Tensor):
        """The pass for one shape as a CUDA graph forwards and one back; plain where that cannot be."""
        device = self.live.device
        if self.pool is None:
            return plain
        given = (ids.clone(), numbers.detach().clone().requires_grad_())
        try:
            # As for the layers of a step: this warning is of a stream that autograd waits for anyway.
            if quiet := getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None):
                quiet(False)
            with torch.cuda.device(device), usable_after(device, self.pool):
                return torch.cuda.make_graphed_callables(plain, given, pool=self.pool)
        except Exception as problem:  # as many kinds as models have operations
            self.pool, reason = None, (str(problem).splitlines() or [type(problem).__name__])[0]
            warnings.warn(
                f"{self.live.backbone.name}: its layers are launched one by one ({reason})", stacklevel=2
            )
            return plain


class Taken(torch.autograd.Function):
    """values (S, P) by slots (b, U) on the host: (b, U, P). Gradients are added slot by slot, rows in order.

    PyTorch's own way back adds the rows of a slot one after the other, with few threads where many rows read it.
    """

    @staticmethod
    def forward(ctx, values: Tensor, slots: Tensor) -> Tensor:
        """values (S, P) and slots (b, U) to (b, U, P)."""
        ctx.slots, ctx.count = slots, len(values)
        return values[slots.to(values.device)]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        """grad (b, U, P) to the gradient of values (S, P)."""
        flat = ctx.slots.flatten()
        order, lengths = flat.argsort(stable=True), torch.bincount(flat, minlength=ctx.count)
        by_slot = grad.flatten(0, 1).index_select(0, order.to(grad.device))
        how = {"lengths": lengths.to(grad.device), "axis": 0, "unsafe": True}  # unsafe: a check would wait
        return torch.segment_reduce(by_slot, "sum", **how), None


def rows_pass(live: LayerStates) -> RowsPass | None:
    """The pass for the documents of `live`; None if the model does not take such masks."""
    return RowsPass(live) if takes_packed(live.backbone, int(live.table.lengths.max())) else None
