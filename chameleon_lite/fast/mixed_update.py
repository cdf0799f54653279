"""Several conditions in one batch: the large product once, each group's own low-rank update on top of it.

    h (B, T, C) ── frozen head ─▶ base (B, T, V)                   one product for all rows
    rows of one group ── (h downᵀ) upᵀ ─▶ added to their base       groups of equal size in one baddbmm

Which rows belong together is worked out once; decoding then repeats nothing but the arithmetic.

The frozen head multiplies by a copy of its weight whose rows are padded to a multiple of 64: matrix units
need aligned columns. GPT-2's 50,257 as such make a 16-bit product several times slower, also for the few rows
of a decoding step, where nothing hides it. The copy costs V · C numbers of device memory. A vocabulary that
is aligned, 32-bit weights, and CPUs gain nothing and get no copy.
"""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..heads import HeadUpdate
from ..loss import VOCAB_MULTIPLE


def update_logits(update: HeadUpdate, group: Tensor, rows: int | None = None) -> "MixedUpdate":
    """`heads.update_logits`."""
    return MixedUpdate(update, group)


class MixedUpdate:
    """An update of G groups, ready for batches whose row b belongs to group `group[b]`, (B,) int64.

    Rows that are repeated one after another (beams, several samples per prompt) need no new layout: a batch
    of k · B rows is taken as k copies of each. Groups that own no row are left out.
    """

    mix: Tensor | None = None  # (B, R) a row's weights of the shared slots, in the rows' order

    def __init__(self, update: HeadUpdate, group: Tensor) -> None:
        if update.mix is not None:  # one shared pair of factors: a row's part is R numbers, nothing to group
            self.mix = update.mix[group.to(update.mix.device)]  # (B, R)
            update, group = HeadUpdate(update.down, update.up), torch.zeros_like(group)
        ids, local, sizes = torch.unique(group.cpu(), return_inverse=True, return_counts=True)
        by_size = torch.argsort(sizes, stable=True)  # (G',) groups of equal size side by side
        place = torch.argsort(torch.argsort(by_size)[local], stable=True)  # (B,) rows, group after group
        sizes, groups = torch.unique_consecutive(sizes[by_size], return_counts=True)
        self.rows, self.place, self.back = len(group), None, None
        device = (update.down if update.down is not None else update.bias).device
        if not torch.equal(place, torch.arange(self.rows)):
            self.place, self.back = place.to(device), torch.argsort(place).to(device)
        if len(ids) < update.groups or not torch.equal(by_size, torch.arange(len(ids))):
            own = ids[by_size].to(device)
            update = HeadUpdate(*(None if x is None else x[own] for x in update))
        self.update, ends = update, groups.cumsum(0).tolist()
        self.runs = list(zip(groups.tolist(), sizes.tolist(), ends))  # groups, rows in each, groups' end
        self._cast: dict[tuple, list[tuple]] = {}  # by the formats of states and logits

    def __call__(self, head: Callable[[Tensor], Tensor], h: Tensor, scale: float = 1.0) -> Tensor:
        """h (B, T, C) to adapted logits (B, T, V), in the head's place; ValueError unless B fits the layout's."""
        if len(h) % self.rows:
            raise ValueError(f"{len(h)} rows, but the conditions are for {self.rows}")
        copies, place, back = len(h) // self.rows, self.place, self.back
        if place is not None and copies > 1:
            inner = torch.arange(copies, device=h.device)
            place, back = ((x[:, None] * copies + inner).flatten() for x in (place, back))
        h = h if place is None else h[place]
        out = self._add(aligned(head)(h), h, copies, scale)  # (B, T, V), rows in the layout's order
        return out if back is None else out[back]

    def _add(self, base: Tensor, h: Tensor, copies: int, scale: float) -> Tensor:
        """base (B, T, V) plus each run's updates; in place unless gradients are recorded."""
        in_place, parts, row = not torch.is_grad_enabled(), [], 0
        for groups, size, down, up, bias in self._factors(h.dtype, base.dtype):
            rows = slice(row, row + groups * size * copies)
            row = rows.stop
            part = base[rows].view(groups, -1, base.shape[-1])  # (g, M, V)
            if down is not None:
                z = torch.bmm(h[rows].reshape(groups, -1, h.shape[-1]), down)  # (g, M, R)
                if self.mix is not None:  # then there is one run, of all rows
                    z = z * self.mix.to(z.dtype).repeat_interleave(z.shape[1] // self.rows, dim=0)
                part = (part.baddbmm_ if in_place else part.baddbmm)(z, up, alpha=scale)
            if bias is not None:
                part = part + bias
                if in_place:
                    base[rows] = part.view_as(base[rows])
            parts.append(part.view(-1, *base.shape[1:]))
        return base if in_place else torch.cat(parts)

    def _factors(self, states: torch.dtype, logits: torch.dtype) -> list[tuple]:
        """(groups, rows in each, down (g, C, R), up (g, R, V), bias (g, 1, V)) of each run.

        Cached from token to token; not where gradients are recorded: one backward pass uses up their graph.
        """
        key = states, logits
        if key in self._cast and not torch.is_grad_enabled():
            return self._cast[key]
        runs = []
        for groups, size, end in self.runs:
            down, up, bias, _ = (None if x is None else x[end - groups : end] for x in self.update)
            down = None if down is None else down.to(states).transpose(1, 2)
            up = None if up is None else up.to(logits).transpose(1, 2)
            runs.append((groups, size, down, up, None if bias is None else bias.to(logits).unsqueeze(1)))
        if not torch.is_grad_enabled():
            self._cast[key] = runs
        return runs


_copies: "WeakKeyDictionary[nn.Linear, AlignedHead]" = WeakKeyDictionary()


def aligned(head: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The head, or without gradients its padded copy where that is faster; it lives as long as its head."""
    if not gains(head):
        return head
    if torch.is_grad_enabled():
        _copies.pop(head, None)  # training needs the memory
        return head
    if head not in _copies or not _copies[head].serves(head):
        _copies[head] = AlignedHead(head)
    return _copies[head]


def gains(head: Callable[[Tensor], Tensor]) -> bool:
    """Whether a padded copy makes this head faster."""
    if type(head) is not nn.Linear:  # another kind may do more than multiply
        return False
    weight = head.weight
    return weight.is_cuda and weight.dtype.itemsize == 2 and len(weight) % VOCAB_MULTIPLE > 0


class AlignedHead:
    """A head's logits by way of the padded copy: the head's own but for the rounding of another summation."""

    def __init__(self, head: nn.Linear) -> None:
        weight, bias = head.weight.detach(), head.bias
        spare = -len(weight) % VOCAB_MULTIPLE
        self.vocab, self.copied = len(weight), _identity(head)
        self.weight = F.pad(weight, (0, 0, 0, spare))  # (Vp, C)
        self.bias = None if bias is None else F.pad(bias.detach(), (0, spare))  # (Vp,)

    def __call__(self, h: Tensor) -> Tensor:
        """h (…, C) to logits (…, V), a view of the padded ones."""
        return F.linear(h, self.weight, self.bias)[..., : self.vocab]

    def serves(self, head: nn.Linear) -> bool:
        """Whether the copy still is this head's: same storage, format and content."""
        return self.copied == _identity(head)


def _identity(head: nn.Linear) -> tuple:
    """What changes when a weight is replaced or written to."""
    parts = [x for x in (head.weight, head.bias) if x is not None]
    return tuple((x.data_ptr(), 0 if x.is_inference() else x._version, x.dtype) for x in parts)
