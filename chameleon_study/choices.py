"""What is tuned on validation for each regime: a learning rate, and for hyper-networks more.

Choice(0.003)                                              "0.003", a rate alone
Choice(0.003, dropout=0.1, start="released", view="states")   "0.003 dropout=0.1 start=released view=states"
"""

import random
from copy import copy
from dataclasses import dataclass, fields, replace
from itertools import product

from torch import Tensor, nn

from chameleon_lite import Backbone, Head, HyperHead, Member
from chameleon_lite.errors import unknown

from .regimes import RANK, Regime
from .sources import Split

COSINE_EPOCHS = 5  # over which a cosine falls to zero, or over all there are
RATES = tuple(float(f"{3e-4 * 10 ** (i / 4):.2g}") for i in range(9))  # 3e-4 … 3e-2
OPTIONS = {"dropout": (0.0, 0.1, 0.5), "start": ("", "released", "normal"), "view": ("prefix", "states")}
OPTIONS |= {"transform": ("", "centred", "standardised"), "schedule": ("constant", "cosine")}


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
            if (value := getattr(self, name)) not in OPTIONS[name]:
                raise unknown(name, value, OPTIONS[name])

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
