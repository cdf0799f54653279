"""The regimes by name: which head, in which order it is trained, what conditions it; and what is tuned for each.

A regime is data, not a branch: adding one means adding a row to regimes.csv and, if its condition is new, a source in
sources.py. On validation a learning rate is tuned for each, and for hyper-networks more:

    Choice(0.003)                                                 "0.003", a rate alone
    Choice(0.003, dropout=0.1, start="released", view="states")   "0.003 dropout=0.1 start=released view=states"
"""

import csv
import random
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from itertools import product

from torch import Tensor, nn

from chameleon_lite import Backbone, Head, HyperHead, LoraHead, Member, matched_rank
from chameleon_lite.conditions import GroupMean
from chameleon_lite.errors import known
from chameleon_lite.train import Source

from . import heads, sources
from .sources import Own, Split

RANK = 4  # the paper's, for every low-rank regime but the matched one
GROUP = 32  # rows a conditioning batch holds at most (paper: batch 32 on WikiText-2)
EXPERTS = 33  # pairs of factors that the paper's hyper-network stores
SIZES = (2, 4, 8, 16)  # of groups, besides 1 and GROUP (claim 6)
BANKS = (*SIZES, EXPERTS)  # experts of a bank (claim 10)
CLUSTERED = "clustered"
RATES = tuple(float(f"{3e-4 * 10 ** (i / 4):.2g}") for i in range(9))  # 3e-4 … 3e-2
OPTIONS = {"dropout": (0.0, 0.1, 0.5), "start": ("", "released", "normal"), "view": ("prefix", "states")}
OPTIONS |= {"transform": ("", "centred", "standardised"), "schedule": ("constant", "cosine")}
NewHead = Callable[[Backbone, Split], Head]  # from the backbone and the training split
NewSource = Callable[[Split, Split], Source]  # from the split to condition and the training split


@dataclass(frozen=True)
class Regime:
    """One row of the study's table. `order` is how training documents are arranged: "random" or "clustered".

    `weights_of`: no training of its own, another regime's head under this one's condition.
    `procedure`: a function's name in layers.py, for what cached hidden states cannot serve.
    `leak`: breaks the information rule on purpose and is marked wherever it appears.
    `searched`: takes the best of many random choices (see Choice), as many as every other such regime.
    """

    name: str
    order: str
    head: NewHead | None  # to be trained; None: the frozen one, or another regime's
    source: NewSource | None
    title: str
    conditioned_on: str
    weights_of: str | None
    procedure: str | None
    leak: bool
    searched: bool


HEADS: dict[str, NewHead] = {
    "hyper": lambda b, train: HyperHead(b.width, b.vocab, RANK),
    "no dropout": lambda b, train: HyperHead(b.width, b.vocab, RANK, dropout=0.0),
    "lora": lambda b, train: LoraHead(b.width, b.vocab, RANK),
    "matched": lambda b, train: LoraHead(b.width, b.vocab, matched_rank(b.width, b.vocab, RANK)),
    **{f"bank {k}": lambda b, train, k=k: heads.BankHead(b.width, b.vocab, k, RANK) for k in BANKS},
    "factors": lambda b, train: heads.FactorBankHead(b.width, b.vocab, EXPERTS, RANK),
    "routed": lambda b, train: heads.LibraryHead(b.width, b.vocab, int(train.routing.max()) + 1, RANK),
    "oracle": lambda b, train: heads.LibraryHead(b.width, b.vocab, int(train.domain.max()) + 1, RANK),
    "svf": lambda b, train: heads.SvfBank(b.head.weight, EXPERTS),
    "unigram": lambda b, train: heads.UnigramBias(
        train.views.tokens.flatten().cpu().bincount(minlength=b.vocab + 1)[: b.vocab].float()
    ),
    "codes": lambda b, train: heads.CodeHead(b.width, b.vocab, int(train.routing.max()) + 1, RANK),
    "weight-made": lambda b, train: heads.WeightMadeHead(b.head.weight, RANK),
    "constrained": lambda b, train: heads.ConstrainedHead(b.width, b.vocab, RANK),
    "prompt": lambda b, train: heads.PromptHead(b.head.weight, RANK),
    "sparse": lambda b, train: heads.SparseHead(b.width, b.vocab, RANK),
}
DROPPING = (HEADS["hyper"], HEADS["codes"])  # dropout is tuned for them
SOURCES: dict[str, NewSource] = {
    **{f"group {n}": lambda s, train, n=n: GroupMean(s.vectors, n) for n in (1, *SIZES, GROUP)},
    "length": lambda s, train: GroupMean(s.views["length"], GROUP),
    "random group": lambda s, train: sources.RandomMean(s.vectors, GROUP),
    "prompt": lambda s, train: GroupMean(s.views["prompt"], GROUP),
    "row": lambda s, train: GroupMean(s.views["row"], GROUP),
    "padded": lambda s, train: GroupMean(s.views["padded"], GROUP),
    "others": lambda s, train: sources.LeaveOneOut(s.vectors, GROUP),
    "cluster": lambda s, train: sources.OtherCluster(s.vectors, GROUP),
    "own": lambda s, train: Own(s.vectors),
    "states": lambda s, train: Own(s.views["states"]),
    "routing": lambda s, train: Own(s.vectors, s.routing),
    "domain": lambda s, train: Own(s.vectors, s.domain),
    "constant": lambda s, train: sources.constant(train.vectors.mean(0)),
    "centroid": lambda s, train: sources.train_centroid(s.centroids, s.cluster),
    "counts": lambda s, train: sources.counted(s.views),
    "stream": lambda s, train: sources.stream_mean(s.vectors, s.cluster),
    "blend": heads.blended,
}


def _regime(row: dict[str, str]) -> Regime:
    values: dict = {key: value or None for key, value in row.items()}
    values |= {n: kinds[row[n]] for n, kinds in {"head": HEADS, "source": SOURCES}.items() if row[n]}
    return Regime(**values | {name: row[name] == "yes" for name in ("leak", "searched")})


_TABLE = (files(__package__) / "regimes.csv").read_text(encoding="utf-8")
REGIMES = {row["name"]: _regime(row) for row in csv.DictReader(_TABLE.splitlines())}


@dataclass(frozen=True)
class Choice:
    """How a regime's head is made, conditioned and trained; the defaults are the regime's own."""

    rate: float  # AdamW's
    dropout: float | None = None  # of the hyper-network; None: the head's own
    start: str = ""  # the no-op; "released": Xavier, last layer N(0, 1e-3²); "normal": only last.weight so
    view: str = "prefix"  # the vectors: mean token embeddings, or mean final hidden "states" of the span
    transform: str = ""  # of the vectors by their mean (and deviation) over train: "centred", "standardised"
    schedule: str = "constant"  # or "cosine": the rate falls to zero, where training ends

    def __post_init__(self) -> None:
        for name in ("start", "view", "transform", "schedule"):
            known(name, [getattr(self, name)], OPTIONS[name])

    @property
    def others(self) -> dict[str, float | str]:
        """All but the rate, where it is not the default."""
        parts = {f.name: (getattr(self, f.name), f.default) for f in fields(self)[1:]}
        return {name: value for name, (value, default) in parts.items() if value != default}

    @property
    def name(self) -> str:
        """Of a trial, in records and files."""
        parts = [f"{k}={v if isinstance(v, str) else format(v, 'g')}" for k, v in self.others.items()]
        return " ".join([f"{self.rate:g}", *parts])


@dataclass
class Chosen(Member):
    """A member and the choice that it was made by."""

    choice: Choice | None = None


def trials(count: int) -> list[Choice]:
    """`count` different choices from the whole product, always the same; more hold those that fewer hold."""
    every = [Choice(*values) for values in product(RATES, *OPTIONS.values())]
    random.Random(17).shuffle(every)
    return every[:count]


def new_head(r: Regime, choice: Choice, backbone: Backbone, train: Split) -> Head:
    """A regime's head as chosen, on the host, from torch's generator."""
    if choice.start == "released":
        head = HyperHead(backbone.width, backbone.vocab, RANK, released_init="wikitext")
    else:
        head = r.head(backbone, train)
    if choice.start == "normal":
        nn.init.normal_(head.last.weight, std=1e-3)
    for layer in head.modules():
        if isinstance(layer, nn.Dropout) and choice.dropout is not None:
            layer.p = choice.dropout
    return head


def seen(split: Split, train: Split, choice: Choice) -> Split:
    """A split whose vectors, for all sources, are those of the choice; transforms are fitted on train."""
    if (choice.view, choice.transform) == ("prefix", ""):
        return split
    views = copy(split.views)
    views["prefix"] = transformed(split.views[choice.view], train.views[choice.view], choice.transform)
    return replace(split, views=views)


def transformed(x: Tensor, train: Tensor, how: str) -> Tensor:
    """Vectors x (N, C) minus the mean of train (M, C), over its deviation if standardised; train's mean norm is 1."""
    if not how:
        return x
    scale = train.std(0).clamp_min(1e-6) if how == "standardised" else 1.0
    norm = ((train - train.mean(0)) / scale).norm(dim=1).mean()
    return (x - train.mean(0)) / scale / norm
