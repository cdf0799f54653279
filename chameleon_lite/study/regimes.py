"""The regimes by name: which head, in which order it is trained, and what it is told.

A regime is data, not a branch: adding one means adding an entry here and, if it knows something new, a class in
`conditions.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..errors import unknown
from ..model.heads.hyper import HyperHead, matched_rank
from ..model.heads.interface import Head
from ..model.heads.static import LoraHead
from .conditions import Constant, GroupMean, Split

RANK = 4  # the paper's, for every low-rank regime but the matched one
GROUP = 32  # rows a conditioning batch holds at most (paper: batch 32 on WikiText-2)

MakeHead = Callable[[int, int], Head]  # width C, vocabulary V
MakeSource = Callable[[Split, Split], Callable]  # the split to condition, the training split


@dataclass(frozen=True)
class Regime:
    """One row of the study's table. `order` is how training documents are arranged: "random" or "clustered"."""

    name: str
    title: str
    conditioned_on: str
    head: MakeHead | None
    order: str = "random"
    source: MakeSource | None = None

    @property
    def trained(self) -> bool:
        return self.head is not None


def _hyper(width: int, vocab: int) -> HyperHead:
    return HyperHead(width, vocab, RANK)


def _lora(width: int, vocab: int) -> LoraHead:
    return LoraHead(width, vocab, RANK)


def _matched(width: int, vocab: int) -> LoraHead:
    return LoraHead(width, vocab, matched_rank(width, vocab, RANK))


def _group(size: int) -> MakeSource:
    return lambda split, train: GroupMean(split, size)


def _constant(split: Split, train: Split) -> Constant:
    mean: Tensor = train.vectors.mean(0)
    return Constant(split, mean)


REGIMES: dict[str, Regime] = {
    r.name: r
    for r in (
        Regime("R0", "frozen", "nothing", None),
        Regime("R1", "LoRA head, rank 4", "nothing", _lora),
        Regime("R2", "LoRA head, parameter-matched", "nothing", _matched),
        Regime("R3", "hyper-network, constant input", "a constant", _hyper, "random", _constant),
        Regime(
            "R4", "hyper-network, cluster batch", "prefixes of a cluster batch", _hyper, "clustered", _group(GROUP)
        ),
        Regime("R5", "hyper-network, random batch", "prefixes of a random batch", _hyper, "random", _group(GROUP)),
        Regime("R6", "hyper-network, per sample", "the row's own prefix", _hyper, "clustered", _group(1)),
    )
}


def regime(name: str) -> Regime:
    """A regime by its name; raises UserError with the nearest valid one."""
    if name not in REGIMES:
        raise unknown("regime", name, REGIMES)
    return REGIMES[name]
