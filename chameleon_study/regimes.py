"""The regimes by name: which head, in which order it is trained, and what it is told.

A regime is data, not a branch: adding one means adding an entry here and, if it knows something new, a class in
`sources.py`. Regimes that need the backbone un-cached (R14, R16, R17) name a procedure of `layers.py` instead.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from chameleon_lite.conditions import GroupMean, Source
from chameleon_lite.errors import unknown
from chameleon_lite.heads import Head, HyperHead, LoraHead, matched_rank

from .heads import BankHead, FactorBankHead, RoutedHead, SvfBank, UnigramBias
from .sources import Constant, Counted, LeaveOneOut, OtherCluster, Own, Split, StreamMean, TrainCentroid

RANK = 4  # the paper's, for every low-rank regime but the matched one
GROUP = 32  # rows a conditioning batch holds at most (paper: batch 32 on WikiText-2)
EXPERTS = 33  # pairs of factors that the paper's hyper-network stores
GROUP_SIZES = (2, 4, 8, 16)  # besides 1 and GROUP (claim 6)
BANK_SIZES = (2, 4, 8, 16)  # besides EXPERTS (claim 10)
CLUSTERED, RANDOM = "clustered", "random"


@dataclass(frozen=True)
class Parts:
    """What a head may be built from: the frozen head's geometry and weight, and the training split."""

    width: int  # C
    vocab: int  # V
    weight: Tensor  # (V, C)
    train: Split


MakeHead = Callable[[Parts], Head]
# the split to condition, the training split, the vocabulary
MakeSource = Callable[[Split, Split, int], Source]


@dataclass(frozen=True)
class Regime:
    """One row of the study's table. `order` is how training documents are arranged: "random" or "clustered".

    `weights_of`: no training of its own, another regime's head under this one's condition.
    `rate_of`: takes the learning rate found for another regime (the same head and optimiser, another group size).
    `leak`: breaks the information rule on purpose and is marked wherever it appears.
    `procedure`: a function's name in uncached.py, for what cached hidden states cannot serve.
    """

    name: str
    title: str
    conditioned_on: str
    head: MakeHead | None = None
    order: str = RANDOM
    source: MakeSource | None = None
    weights_of: str | None = None
    rate_of: str | None = None
    leak: bool = False
    procedure: str | None = None

    @property
    def trained(self) -> bool:
        """Whether a head on cached states is trained for this regime."""
        return self.head is not None


def _hyper(parts: Parts, dropout: float = 0.5) -> Head:
    return HyperHead(parts.width, parts.vocab, RANK, dropout=dropout)


def _lora(parts: Parts) -> Head:
    return LoraHead(parts.width, parts.vocab, RANK)


def _matched(parts: Parts) -> Head:
    return LoraHead(parts.width, parts.vocab, matched_rank(parts.width, parts.vocab, RANK))


def _bank(parts: Parts, experts: int = EXPERTS) -> Head:
    return BankHead(parts.width, parts.vocab, experts, RANK)


def _factor_bank(parts: Parts) -> Head:
    return FactorBankHead(parts.width, parts.vocab, EXPERTS, RANK)


def _routed(parts: Parts) -> Head:
    return RoutedHead(parts.width, parts.vocab, int(parts.train.routing.max()) + 1, RANK)


def _oracle(parts: Parts) -> Head:
    return RoutedHead(parts.width, parts.vocab, int(parts.train.domain.max()) + 1, RANK)


def _svf(parts: Parts) -> Head:
    return SvfBank(parts.weight, EXPERTS)


def _unigram(parts: Parts) -> Head:
    tokens = parts.train.tokens.flatten().cpu()
    return UnigramBias(tokens.bincount(minlength=parts.vocab + 1)[: parts.vocab].float())


def _group(size: int = GROUP, view: str = "prefix", kind: type = GroupMean) -> MakeSource:
    return lambda split, train, vocab: kind(split.views[view], size)


def _own(view: str = "prefix") -> MakeSource:
    return lambda split, train, vocab: Own(split.views[view])


def _constant(split: Split, train: Split, vocab: int) -> Source:
    return Constant(train.vectors.mean(0))


def _centroid(split: Split, train: Split, vocab: int) -> Source:
    return TrainCentroid(split.centroids, split.cluster)


def _counted(split: Split, train: Split, vocab: int) -> Source:
    return Counted(split.vectors, split.tokens, vocab)


def _routing(split: Split, train: Split, vocab: int) -> Source:
    return Own(split.vectors, split.routing)


def _domain(split: Split, train: Split, vocab: int) -> Source:
    return Own(split.vectors, split.domain)


def _stream(split: Split, train: Split, vocab: int) -> Source:
    return StreamMean(split.vectors, split.cluster)


OWN, BATCH = "the row's own prefix", "prefixes of a cluster batch"
OTHER = "prefixes of another cluster"
# hyper-networks trained on clustered and on random batches
_clustered = partial(Regime, head=_hyper, order=CLUSTERED)
_random = partial(Regime, head=_hyper, order=RANDOM)

_REGIMES = (
    Regime("R0", "frozen", "nothing"),
    Regime("R1", "LoRA head, rank 4", "nothing", _lora),
    Regime("R2", "LoRA head, parameter-matched", "nothing", _matched),
    _random("R3", "hyper-network, constant input", "a constant", source=_constant),
    _clustered("R4", "hyper-network, cluster batch", BATCH, source=_group()),
    _random("R5", "hyper-network, random batch", "prefixes of a random batch", source=_group()),
    _clustered("R6", "hyper-network, per sample", OWN, source=_own()),
    _clustered(
        "R7",
        "R4's weights, another cluster's condition",
        OTHER,
        head=None,
        source=_group(kind=OtherCluster),
        weights_of="R4",
    ),
    _clustered(
        "R7b", "hyper-network trained on another cluster's condition", OTHER, source=_group(kind=OtherCluster)
    ),
    _clustered(
        "R8",
        "hyper-network, length only (leak)",
        "mean length and padding of a cluster batch",
        source=_group(view="length"),
        leak=True,
    ),
    _clustered(
        "R9",
        "hyper-network, whole rows (leak)",
        "whole rows of a cluster batch",
        source=_group(view="row"),
        leak=True,
    ),
    _clustered(
        "R10",
        "hyper-network, leave-one-out",
        "prefixes of the batch's other rows",
        source=_group(kind=LeaveOneOut),
    ),
    Regime("R11", "softmax bank of 33, blended as updates", OWN, _bank, source=_own()),
    Regime("R11b", "softmax bank of 33, blended in factor space", OWN, _factor_bank, source=_own()),
    Regime(
        "R12", "one LoRA a cluster, nearest centroid", "the row's routing cluster", _routed, source=_routing
    ),
    Regime(
        "R12-oracle",
        "one LoRA a source, told which",
        "the row's source",
        _oracle,
        source=_domain,
        rate_of="R12",
    ),
    _random(
        "R13",
        "hyper-network, mean final hidden state",
        "hidden states of the row's prefix",
        source=_own("states"),
    ),
    Regime(
        "R14", "no adapter, prefixes of the batch in context", BATCH, order=CLUSTERED, procedure="in_context"
    ),
    Regime("R15", "context-unigram bias", "token counts of the row's prefix", _unigram, source=_counted),
    Regime("R16", "LoRA in the layers and on the head", "nothing", procedure="layers_static"),
    Regime("R17", "LoRA in the layers, hyper-network head", BATCH, order=CLUSTERED, procedure="layers_hyper"),
    _random(
        "R18", "hyper-network, train centroid, random batches", "the row's training cluster", source=_centroid
    ),
    Regime("R19-R1", "R1 trained in clustered order", "nothing", _lora, CLUSTERED, rate_of="R1"),
    Regime("R19-R2", "R2 trained in clustered order", "nothing", _matched, CLUSTERED, rate_of="R2"),
    Regime("R20", "bank of singular-value masks", OWN, _svf, source=_own()),
    _clustered("R4-nodrop", "R4 without dropout", BATCH, head=partial(_hyper, dropout=0.0), source=_group()),
    _clustered("R4-padded", "R4, pad embedding in the mean", BATCH, source=_group(view="padded")),
    _random(
        "R4-stream",
        "R4's weights, rows in order of arrival",
        "prefixes of the step's rows of a cluster",
        head=None,
        source=_stream,
        weights_of="R4",
    ),
    _clustered("R3-clustered", "R3 trained in clustered order", "a constant", source=_constant, rate_of="R3"),
)
# R4 and R5 with smaller conditioning groups, always 32 rows per optimiser step (claim 6)
_SIZES = [
    _clustered(
        f"R4-g{g}",
        f"hyper-network, cluster groups of {g}",
        f"prefixes of {g} rows of a cluster",
        source=_group(g),
        rate_of="R4",
    )
    for g in GROUP_SIZES
] + [
    _random(
        f"R5-g{g}",
        f"hyper-network, random groups of {g}",
        f"prefixes of {g} random rows",
        source=_group(g),
        rate_of="R5",
    )
    for g in (1, *GROUP_SIZES)
]
# R11 with fewer experts (claim 10's Pareto front)
_BANKS = [
    Regime(f"R11-K{k}", f"softmax bank of {k}", OWN, partial(_bank, experts=k), source=_own(), rate_of="R11")
    for k in BANK_SIZES
]

REGIMES: dict[str, Regime] = {r.name: r for r in (*_REGIMES, *_SIZES, *_BANKS)}


def regime(name: str) -> Regime:
    """A regime by its name; raises UserError with the nearest valid one."""
    if name not in REGIMES:
        raise unknown("regime", name, REGIMES)
    return REGIMES[name]
