"""The layers' pass on packed rows, in training and in readings: documents one behind the other, hardly any padding.

rows (B,) of a step ─ first fit ─▶ pieces of packed rows ─ layers, on a GPU recorded ─▶ h (M, C), target (M,)

With each token's position in its own document, and a mask of what it may see, a model reads every document as if
it were alone.

A small model's step on a fast GPU takes as long as the host needs to launch its thousands of kernels.
Recorded once, they are launched together.
"""

import gc
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..backbone import Backbone
from ..lora import without_lora
from ..states import sent
from ..text import TokenTable, cumulative, ragged
from ..train_layers import READ_TOKENS, STEP_TOKENS, Layers, states_at
from .recorder import usable_after

Run = Callable[[Tensor, Tensor | None, Tensor], Tensor]  # ids, position (B, T), mask ─▶ h (B, T, C)

# Tokens of a packed row where no document is longer: longer rows only make attention more expensive.
ROW_LENGTH = 256
ROW_MULTIPLE = 16  # attention with a mask is fastest on a GPU where the mask's rows are aligned


@dataclass(frozen=True, eq=False)
class Packed:
    """D documents in B rows of T tokens, and their M scored tokens, one after another; all on the host."""

    ids: Tensor  # (B, T) int64
    position: Tensor  # (B, T) int64 inside the document
    document: Tensor  # (B, T) int64, counted in the order in which they lie; -1 for padding
    state: Tensor  # (M,) int64 flat place of the state that predicts each scored token
    target: Tensor  # (M,) int64
    owner: Tensor  # (M,) int64 document of each scored token, counted likewise


def first_fit(lengths: np.ndarray, capacity: int) -> list[np.ndarray]:
    """Lengths (N,) to rows of numbers: longest first, into the first row with room; ValueError for none."""
    lengths = np.asarray(lengths)
    if lengths.max(initial=0) > capacity:
        raise ValueError(f"a document of {lengths.max()} tokens has no room in rows of {capacity}")
    room, rows = np.full(len(lengths), capacity), [[] for _ in lengths]
    for n in np.argsort(-lengths, kind="stable"):
        row = int(np.argmax(room >= lengths[n]))
        room[row] -= lengths[n]
        rows[row].append(n)
    return [np.array(row) for row in rows if row]


def packed(table: TokenTable, rows: Sequence[np.ndarray], length: int, n_rows: int | None = None) -> Packed:
    """Rows of document numbers, of `first_fit`, to B rows of T = `length`; B is `n_rows`, if given."""
    sizes = np.array([len(row) for row in rows])
    order = np.concatenate(rows)  # (D,)
    lengths = table.lengths[order]
    before = cumulative(lengths)[:-1]  # (D,) tokens in front of each document, had the rows no gaps
    row_starts = before[cumulative(sizes)[:-1]]  # (rows,)
    start = before + np.repeat(np.arange(len(rows)) * length - row_starts, sizes)  # (D,) in the flat B · T
    flat, number = ragged(start, lengths), np.arange(len(order))  # (L,), (D,)
    shape = (n_rows or len(rows), length)
    ids, position, document = (np.full(shape, fill, dtype=np.int64) for fill in (table.pad_id, 0, -1))
    ids.flat[flat] = table.ids[ragged(table.offsets[order], lengths)]
    position.flat[flat] = ragged(np.zeros_like(start), lengths)
    document.flat[flat] = np.repeat(number, lengths)
    prefix = np.maximum(table.prefix[order], 1)  # nothing predicts a first token
    scored = np.maximum(lengths - prefix, 0)  # (D,)
    at = ragged(start + prefix, scored)  # (M,)
    arrays = (ids, position, document, at - 1, ids.flat[at], np.repeat(number, scored))
    return Packed(*map(torch.from_numpy, arrays))


def sees(document: Tensor) -> Tensor:
    """document (B, T) to mask (B, 1, T, T): whether a token (third axis) attends to another (last axis).

    It sees its own document up to itself. Padding sees the padding before it and itself: a position that saw
    nothing would be nan.
    """
    length = document.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=document.device).tril()
    return ((document[:, :, None] == document[:, None]) & causal)[:, None]


def layer_pass(
    backbone: Backbone, table: TokenTable, record=True, reads=False, tokens: int | None = None
) -> "PackedPass | None":
    """The packed pass for a table's documents, on a GPU recorded if `record`; None if the model cannot.

    `reads`: that of readings without gradients, in the backbone's own number format, rounded to 16 bits.
    `tokens`: of a piece; more are faster on a large GPU and take more of its memory.
    """
    longest, budgets = int(table.lengths.max()), READ_TOKENS if reads else STEP_TOKENS
    if not takes_packed(backbone, longest):
        return None
    budget = tokens or budgets.get(backbone.device.type, budgets["cpu"])
    length = row_length(longest, budget)
    if reads:

        def read(ids: Tensor, position: Tensor | None, mask: Tensor) -> Tensor:
            return backbone.hidden(ids, mask, position).half()

        return PackedPass(read, backbone.device, table, budget, length)
    n_rows = max(1, budget // length)
    if record and (run := recorded(backbone, n_rows, length)):
        return PackedPass(run, backbone.device, table, budget, length, n_rows)
    return PackedPass(Layers(backbone), backbone.device, table, budget, length)


class PackedPass:
    """Documents in packed rows of `length` tokens, at most `budget` tokens or one row at a time.

    `n_rows`: every piece has as many rows, some of them empty, as a recorded pass needs it. Documents longer
    than `length` come last, in pieces of longer rows.
    """

    def __init__(self, run: Run, device, table: TokenTable, budget: int, length: int, n_rows=None) -> None:
        self.run, self.device, self.table, self.budget = run, device, table, budget
        self.length, self.n_rows = length, n_rows
        self.longest = _aligned(int(table.lengths.max(initial=1)))

    def pieces(self, rows: Tensor) -> list[Tensor]:
        """Places in rows (B,) of the documents of each piece, ascending."""
        lengths, out = self.table.lengths[rows.numpy()], []
        short = lengths <= self.length
        for chosen, length, n_rows in ((short, self.length, self.n_rows), (~short, self.longest, None)):
            places = np.flatnonzero(chosen)
            fitted = first_fit(lengths[places], length)
            at_once = n_rows or max(1, self.budget // length)
            groups = [fitted[low : low + at_once] for low in range(0, len(fitted), at_once)]
            out += [torch.from_numpy(np.sort(places[np.concatenate(group)])) for group in groups]
        return out

    def packed(self, rows: Tensor) -> tuple[Packed, Tensor]:
        """Documents rows (B,) of one piece in packed rows, and for each, in that order, its place in `rows`.

        First fit gives the documents of some rows, taken in the same order, the same rows again.
        """
        lengths = self.table.lengths[rows.numpy()]
        short = lengths.max() <= self.length
        fitted = first_fit(lengths, self.length if short else self.longest)
        length, n_rows = self.length, self.n_rows if short else None
        if n_rows is None:  # no shape is required: not longer than the fullest row
            length = _aligned(max(int(lengths[row].sum()) for row in fitted))
        in_rows = [rows.numpy()[row] for row in fitted]
        return packed(self.table, in_rows, length, n_rows), torch.from_numpy(np.concatenate(fitted))

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Documents rows (B,) of a piece to states (M, C), targets (M,), and rows (M,), in a reading ascending."""
        piece, place = self.packed(rows)
        owner, order = place[piece.owner], slice(None)  # (M,)
        if not torch.is_grad_enabled():
            owner, order = owner.sort(stable=True)
        ids, position, document = sent(torch.stack([piece.ids, piece.position, piece.document]), self.device)
        state, target = sent(torch.stack([piece.state[order], piece.target[order]]), self.device)
        return states_at(self.run(ids, position, sees(document)), state), target, owner

    def close(self) -> None:
        """Give back what a recorded pass holds."""
        if isinstance(self.run, RecordedLayers):
            self.run.release()


def row_length(longest: int, budget: int) -> int:
    """Tokens of a packed row: the longest document's if the budget allows, and not fewer than ROW_LENGTH."""
    return max(ROW_LENGTH, min(_aligned(longest), budget // ROW_MULTIPLE * ROW_MULTIPLE))


@torch.no_grad()
def takes_packed(backbone: Backbone, longest: int) -> bool:
    """Whether states of packed documents of up to `longest` tokens are those of each alone; LoRA is off.

    Tried at that length, since a layer's sliding window only matters in documents longer than it.
    """
    if "position_ids" not in inspect.signature(backbone.body.forward).parameters:
        return False
    vocab, device, half = backbone.embedding.shape[0], backbone.device, longest // 2
    ids = torch.arange(2 * longest, device=device).view(2, longest) * 7_919 % vocab  # (2, T)
    document = torch.zeros_like(ids)
    document[1, half:] = 1  # the second row holds two
    position = torch.arange(longest, device=device) - half * document
    real = torch.ones_like(ids, dtype=torch.bool)
    with without_lora(backbone):
        alone = backbone.hidden(ids, real).float()  # (2, T, C)
        alone[1, half:] = backbone.hidden(ids[1:, half:], real[1:, half:])[0].float()
        try:
            gap = (backbone.hidden(ids, sees(document), position).float() - alone).norm() / alone.norm()
        except Exception:  # whatever a model raises that reads masks in another way
            return False
    return bool(gap < math.sqrt(torch.finfo(backbone.head.weight.dtype).eps))


def _aligned(length: int) -> int:
    return -(-length // ROW_MULTIPLE) * ROW_MULTIPLE


class RecordedLayers:
    """`Layers` for one shape (rows, length), recorded for replay: a CUDA graph forwards and one back.

    Other shapes take the plain pass. A pass forwards must have had its pass backwards, or need none, before
    the next one: both use the same memory, in which activations stay until `release`. The graphs read the
    LoRA factors where they lie, so they must not outlive a move of the model; dropout draws anew in every
    replay.
    """

    def __init__(self, backbone: Backbone, rows: int, length: int) -> None:
        """Raises what recording raises: out of memory, or an operation that waits for the host."""
        self.plain, self.shape = Layers(backbone), (rows, length)
        self.factors = list(self.plain.parameters())
        self.sums = [torch.zeros_like(p) for p in self.factors]
        self.modules = list(self.plain.body.modules())  # walking through all of them takes milliseconds
        self.mode = self._mode()
        # The graph adds to gradients on its own stream. Autograd synchronises; this silences its warning.
        if quiet := getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None):
            quiet(False)
        ids = torch.zeros(self.shape, dtype=torch.int64, device=backbone.device)
        position = torch.zeros_like(ids)  # a model may have fewer positions than a row has tokens
        pool = torch.cuda.graph_pool_handle()
        with torch.cuda.device(backbone.device), usable_after(backbone.device, pool):
            self.replay: Run = torch.cuda.make_graphed_callables(
                Layers(backbone), (ids, position, sees(ids)), allow_unused_input=True, pool=pool
            )

    def __call__(self, ids: Tensor, position: Tensor | None, mask: Tensor) -> Tensor:
        """Hidden states (B, T, C), overwritten by the next call."""
        fits = position is not None and ids.shape == self.shape and torch.is_grad_enabled()
        if not fits or self.mode != self._mode():
            return self.plain(ids, position, mask)
        self._keep_gradients_apart()
        return self.replay(ids, position, mask)

    def _mode(self) -> list[bool]:
        """Which modules are in training mode: dropout is recorded as it was, on or off."""
        return [module.training for module in self.modules]

    def _keep_gradients_apart(self) -> None:
        """Give every factor without a gradient zeros of its own to add to.

        A replay leaves gradients where the last one left them. As a factor's first gradient such a tensor
        would be kept, not copied, and the next piece would write over the sum.
        """
        without = [(p, total) for p, total in zip(self.factors, self.sums) if p.grad is None]
        if without:
            torch._foreach_zero_([total for _, total in without])
            for p, total in without:
                p.grad = total

    def release(self) -> None:
        """Give the recording's memory back; from then on every pass is plain."""
        self.shape, self.replay, self.sums = None, None, []
        gc.collect()  # a graph lies in reference cycles


def recorded(backbone: Backbone, rows: int, length: int) -> RecordedLayers | None:
    """The layers' pass for (rows, length), recorded; None without a GPU or, with a warning, if it fails."""
    if backbone.device.type != "cuda":
        return None
    try:
        return RecordedLayers(backbone, rows, length)
    except Exception as problem:  # as many kinds as models have operations
        first = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        slower = "its layers cannot be recorded and are launched one by one"
        warnings.warn(f"{backbone.name}: {slower} ({first})", stacklevel=2)
        return None
