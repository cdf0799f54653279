"""The methods that learn with a memory, as rows of a table, and streams read side by side.

    a lane: an order of documents, the slots that each reads, a rate ─┐
    a lane: …                                                         ├─ one Memory ─▶ nats of every lane
    a lane: …                                                         ┘

Lanes share nothing but the pass: each has slots of its own. So the rates of a tuning stream go through side
by side, and afterwards the orders of the stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chameleon_lite.heads import matched_rank
from chameleon_lite.loss import HeadWeight
from chameleon_lite.streams.memory import HEAD, LearnSettings, Memory, Shapes, fresh_start
from chameleon_lite.streams.online import layer_shapes

from .material import Material

RANK = 4
RATES = {"head": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), "layers": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)}
WIDE_RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)  # of heads with many parameters, or trained ones


@dataclass(frozen=True)
class Method:
    """One learning method. `groups`: "" for one memory, else the labels that choose a slot.

    `shared`: on top of a global slot. `start`: the trained head that every slot begins as; `base`: the
    trained head that stays below. A rank of 0 means the matched one.
    """

    name: str
    kind: str  # "head" or "layers"
    groups: str = ""
    shared: bool = True
    rank: int = RANK
    start: str = ""
    base: str = ""

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that the tuning stream chooses from."""
        return WIDE_RATES if self.start or not self.rank else RATES[self.kind]


# name | kind | groups | what is not the default
TABLE = """
S1 | head | |
S1-R1 | head | | start=R1
S1-R2 | head | | start=R2 rank=0
S1+R2 | head | | base=R2
S1-R2-other | head | | start=R2-other rank=0
S1-wide | head | | rank=0
S2-hidden-4 | head | hidden-4 |
S2-hidden-16 | head | hidden-16 |
S2-hidden-64 | head | hidden-64 |
S2-hidden-16-alone | head | hidden-16 | alone
S2-embedding-16 | head | embedding-16 |
S2-random-16 | head | random-16 |
S2-oracle | head | oracle |
S2-online-16 | head | online-16 |
S3 | layers | |
S3-hidden-16 | layers | hidden-16 |
S3-hidden-16-alone | layers | hidden-16 | alone
S3-embedding-16 | layers | embedding-16 |
S3-random-16 | layers | random-16 |
S3-oracle | layers | oracle |
"""


def _method(row: str) -> Method:
    name, kind, groups, more = (cell.strip() for cell in row.split("|"))
    options = dict(word.partition("=")[::2] for word in more.split() if "=" in word)
    if "rank" in options:
        options["rank"] = int(options["rank"])
    return Method(name, kind, groups, "alone" not in more.split(), **options)


METHODS = {method.name: method for method in map(_method, TABLE.strip().splitlines())}
STATICS = {  # trained before the stream, and then fixed: (kind, rank, part); a rank of 0 is the matched one
    "R1": ("head", RANK, "train"),
    "R2": ("head", 0, "train"),
    "R2-other": ("head", 0, "other"),
    "R16": ("layers", RANK, "train"),
}


@dataclass(frozen=True)
class Lane:
    """One stream that is read: documents (n,) in their order, and the slots (n, U) that each reads."""

    rows: Tensor
    slots: Tensor


def shapes_of(material: Material, kind: str, rank: int) -> Shapes:
    """The factors of one slot; those of the layers go together with a head of the same rank."""
    width, vocab = material.backbone.width, material.backbone.vocab
    rank = rank or matched_rank(width, vocab, RANK)
    head = {HEAD: (rank, width, vocab)}
    return head | layer_shapes(material.backbone, rank) if kind == "layers" else head


def new_memory(
    material: Material, kind: str, rank: int, rates: Tensor, start: Tensor | None = None, **how
) -> Memory:
    """A memory of a slot per rate that begins as `start` (1, P), or with nothing; how: LearnSettings."""
    shapes = shapes_of(material, kind, rank)
    start = fresh_start(shapes, torch.Generator().manual_seed(0)) if start is None else start
    return Memory(shapes, start.to(material.backbone.device), rates, LearnSettings(**how))


def lane_of(method: Method, material: Material, part: str, rows: Tensor, batch: int) -> tuple[Lane, int]:
    """A method's lane over documents rows (n,), slots counted from 0, and how many slots it needs."""
    nothing = torch.zeros(len(rows), 1, dtype=torch.int64)
    if not method.groups:
        return Lane(rows, nothing), 1
    labels, count = material.labels(method.groups, part, rows, batch)
    own = labels[rows][:, None]
    if not method.shared:
        return Lane(rows, own), count
    return Lane(rows, torch.cat([nothing, 1 + own], 1)), 1 + count


def read_lanes(
    memory: Memory, data, weight: HeadWeight, lanes: Sequence[Lane], batch: int, learns: bool = True
) -> list[Tensor]:
    """Sums of nats (n,) float64 of every lane; all take a batch, then learn, until all are through."""
    parts: list[list[Tensor]] = [[] for _ in lanes]
    for first in range(0, max(len(lane.rows) for lane in lanes), batch):
        at = slice(first, first + batch)
        open_lanes = [i for i, lane in enumerate(lanes) if len(lane.rows) > first]
        rows = [lanes[i].rows[at] for i in open_lanes]
        slots = torch.cat([lanes[i].slots[at] for i in open_lanes])
        nll = memory.read(data, weight, torch.cat(rows), slots, learns)
        for i, part in zip(open_lanes, nll.split([len(r) for r in rows])):
            parts[i].append(part)
    return [torch.cat(part).cpu() for part in parts]


def side_by_side(lanes: Sequence[Lane], slots: int) -> list[Lane]:
    """Lanes with slots of their own, one lane's behind the other's."""
    return [Lane(lane.rows, lane.slots + i * slots) for i, lane in enumerate(lanes)]


def merged(weight: Tensor, bias: Tensor | None, start: Tensor, width: int) -> HeadWeight:
    """The frozen head's weight (V, C) with a trained head (1, P) added."""
    rank = start.shape[1] // (width + len(weight))
    down, up = start[0].to(weight.device).split([rank * width, len(weight) * rank])
    return HeadWeight(weight.float() + up.view(-1, rank) @ down.view(rank, width), bias)
