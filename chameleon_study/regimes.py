"""The regimes by name: which head, in which order it is trained, and what conditions it.

A regime is data, not a branch: adding one means adding a row to TABLE and, if its condition is new, a class in
sources.py. Regimes that run the backbone anew (R14, R16, R17) name a procedure of layers.py instead of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from chameleon_lite.conditions import GroupMean
from chameleon_lite.errors import unknown
from chameleon_lite.heads import Head, HyperHead, LoraHead, matched_rank
from chameleon_lite.train import Source

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


@dataclass(frozen=True)
class Regime:
    """One row of the study's table. `order` is how training documents are arranged: "random" or "clustered".

    `source`: from the split to condition, the training split and the vocabulary to a condition source.
    `weights_of`: no training of its own, another regime's head under this one's condition.
    `rate_of`: takes the learning rate of another regime (the same head and optimiser, another group size).
    `leak`: breaks the information rule on purpose and is marked wherever it appears.
    `procedure`: a function's name in layers.py, for what cached hidden states cannot serve.
    """

    name: str
    title: str
    conditioned_on: str
    order: str
    head: Callable[[Parts], Head] | None = None
    source: Callable[[Split, Split, int], Source] | None = None
    weights_of: str | None = None
    rate_of: str | None = None
    leak: bool = False
    procedure: str | None = None

    @property
    def trained(self) -> bool:
        """Whether a head on cached states is trained for this regime."""
        return self.head is not None


def _unigram(p: Parts) -> Head:
    counts = p.train.tokens.flatten().cpu().bincount(minlength=p.vocab + 1)
    return UnigramBias(counts[: p.vocab].float())


HEADS: dict[str, Callable[[Parts], Head]] = {
    "hyper": lambda p: HyperHead(p.width, p.vocab, RANK),
    "no dropout": lambda p: HyperHead(p.width, p.vocab, RANK, dropout=0.0),
    "lora": lambda p: LoraHead(p.width, p.vocab, RANK),
    "matched": lambda p: LoraHead(p.width, p.vocab, matched_rank(p.width, p.vocab, RANK)),
    **{f"bank {k}": lambda p, k=k: BankHead(p.width, p.vocab, k, RANK) for k in (*BANK_SIZES, EXPERTS)},
    "factors": lambda p: FactorBankHead(p.width, p.vocab, EXPERTS, RANK),
    "routed": lambda p: RoutedHead(p.width, p.vocab, int(p.train.routing.max()) + 1, RANK),
    "oracle": lambda p: RoutedHead(p.width, p.vocab, int(p.train.domain.max()) + 1, RANK),
    "svf": lambda p: SvfBank(p.weight, EXPERTS),
    "unigram": _unigram,
}
SOURCES: dict[str, Callable[[Split, Split, int], Source]] = {
    **{f"group {n}": lambda s, train, vocab, n=n: GroupMean(s.vectors, n) for n in (1, *GROUP_SIZES, GROUP)},
    "length": lambda s, train, vocab: GroupMean(s.views["length"], GROUP),
    "row": lambda s, train, vocab: GroupMean(s.views["row"], GROUP),
    "padded": lambda s, train, vocab: GroupMean(s.views["padded"], GROUP),
    "others": lambda s, train, vocab: LeaveOneOut(s.vectors, GROUP),
    "cluster": lambda s, train, vocab: OtherCluster(s.vectors, GROUP),
    "own": lambda s, train, vocab: Own(s.vectors),
    "states": lambda s, train, vocab: Own(s.views["states"]),
    "routing": lambda s, train, vocab: Own(s.vectors, s.routing),
    "domain": lambda s, train, vocab: Own(s.vectors, s.domain),
    "constant": lambda s, train, vocab: Constant(train.vectors.mean(0)),
    "centroid": lambda s, train, vocab: TrainCentroid(s.centroids, s.cluster),
    "counts": lambda s, train, vocab: Counted(s.vectors, s.tokens, vocab),
    "stream": lambda s, train, vocab: StreamMean(s.vectors, s.cluster),
}
# name | order | head of HEADS | source of SOURCES | title | conditioned on | further fields of Regime
TABLE = """
R0  | random | - | - | frozen | nothing
R1  | random | lora | - | LoRA head, rank 4 | nothing
R2  | random | matched | - | LoRA head, parameter-matched | nothing
R3  | random | hyper | constant | hyper-network, constant input | a constant
R4  | clustered | hyper | group 32 | hyper-network, cluster batch | prefixes of a cluster batch
R5  | random | hyper | group 32 | hyper-network, random batch | prefixes of a random batch
R6  | clustered | hyper | own | hyper-network, per sample | the row's own prefix
R7  | clustered | - | cluster | R4's weights, another cluster's condition | prefixes of another cluster | weights_of R4
R7b | clustered | hyper | cluster | hyper-network trained on another cluster's condition | prefixes of another cluster
R8  | clustered | hyper | length | hyper-network, length only (leak) | mean length and padding of a cluster batch | leak
R9  | clustered | hyper | row | hyper-network, whole rows (leak) | whole rows of a cluster batch | leak
R10 | clustered | hyper | others | hyper-network, leave-one-out | prefixes of the batch's other rows
R11 | random | bank 33 | own | softmax bank of 33, blended as updates | the row's own prefix
R11b | random | factors | own | softmax bank of 33, blended in factor space | the row's own prefix
R12 | random | routed | routing | one LoRA a cluster, nearest centroid | the row's routing cluster
R12-oracle | random | oracle | domain | one LoRA a source, told which | the row's source | rate_of R12
R13 | random | hyper | states | hyper-network, mean final hidden state | hidden states of the row's prefix
R14 | clustered |-|-| no adapter, prefixes of the batch in context | prefixes of a cluster batch | procedure in_context
R15 | random | unigram | counts | context-unigram bias | token counts of the row's prefix
R16 | random | - | - | LoRA in the layers and on the head | nothing | procedure layers_static
R17 | clustered |-|-| LoRA in the layers, hyper-network head | prefixes of a cluster batch | procedure layers_hyper
R18 | random | hyper | centroid | hyper-network, train centroid, random batches | the row's training cluster
R19-R1 | clustered | lora | - | R1 trained in clustered order | nothing | rate_of R1
R19-R2 | clustered | matched | - | R2 trained in clustered order | nothing | rate_of R2
R20 | random | svf | own | bank of singular-value masks | the row's own prefix
R4-nodrop | clustered | no dropout | group 32 | R4 without dropout | prefixes of a cluster batch
R4-padded | clustered | hyper | padded | R4, pad embedding in the mean | prefixes of a cluster batch
R4-stream|random|-|stream|R4's weights, rows in order of arrival|prefixes of the step's rows of a cluster|weights_of R4
R3-clustered | clustered | hyper | constant | R3 trained in clustered order | a constant | rate_of R3
"""
# R4 and R5 with smaller conditioning groups, always 32 rows per optimiser step (claim 6); R11 with fewer experts
CLUSTER_ROW = "R4-g{0} | clustered | hyper | group {0} | hyper-network, cluster groups of {0}"
CLUSTER_ROW += " | prefixes of {0} rows of a cluster"
RANDOM_ROW = "R5-g{0} | random | hyper | group {0} | hyper-network, random groups of {0}"
RANDOM_ROW += " | prefixes of {0} random rows"
BANK_ROW = "R11-K{0} | random | bank {0} | own | softmax bank of {0} | the row's own prefix"


def _regime(row: str, rate_of: str | None = None) -> Regime:
    name, order, head, source, title, conditioned_on, *more = (cell.strip() for cell in row.split("|"))
    fields = {key: value or True for key, _, value in (cell.partition(" ") for cell in more)}
    fields |= {"head": HEADS.get(head), "source": SOURCES.get(source)}
    return Regime(name, title, conditioned_on, order, **{"rate_of": rate_of} | fields)


_ALL = [_regime(row) for row in TABLE.strip().splitlines()]
_ALL += [_regime(CLUSTER_ROW.format(g), "R4") for g in GROUP_SIZES]
_ALL += [_regime(RANDOM_ROW.format(g), "R5") for g in (1, *GROUP_SIZES)]
_ALL += [_regime(BANK_ROW.format(k), "R11") for k in BANK_SIZES]
REGIMES: dict[str, Regime] = {r.name: r for r in _ALL}


def regime(name: str) -> Regime:
    """A regime by its name; raises UserError with the nearest valid one."""
    if name not in REGIMES:
        raise unknown("regime", name, REGIMES)
    return REGIMES[name]
