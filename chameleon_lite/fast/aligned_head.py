"""The frozen head's product on a copy of its weight whose rows are padded to a multiple of 64.

    h (…, C) ── [W; 0]ᵀ (C, Vp) ─▶ (…, Vp) ── the first V columns, as a view ─▶ logits (…, V)

Matrix units need aligned columns. GPT-2's 50,257 as such make a 16-bit product several times slower, also for the few
rows of a decoding step, where nothing hides it: the next token waits for the logits. The copy costs V · C numbers of
device memory. A vocabulary that is aligned, 32-bit weights, and CPUs gain nothing and get no copy.
"""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..loss import ROW_MULTIPLE

_copies: "WeakKeyDictionary[nn.Linear, AlignedHead]" = WeakKeyDictionary()


def aligned(head: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The head, or without gradients its padded copy where that is faster; a copy lives as long as its head."""
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
    return weight.is_cuda and weight.dtype.itemsize == 2 and len(weight) % ROW_MULTIPLE > 0


class AlignedHead:
    """A head's logits by way of the padded copy; equal to the head's own but for the rounding of another summation."""

    def __init__(self, head: nn.Linear) -> None:
        weight, bias = head.weight.detach(), head.bias
        spare = -len(weight) % ROW_MULTIPLE
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
