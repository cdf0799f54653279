"""Cohorts: the heads of one seed trained side by side, those of one order of documents together.

(regime, learning rate) pairs ─ train_seed ─▶ trained members
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from chameleon_lite.conditions import Source
from chameleon_lite.heads import Head
from chameleon_lite.processes import Processes
from chameleon_lite.train import Member, train_heads

from .config import Experiment
from .prepare import PreparedCorpus, SeedClusterings, seed_material, split_view
from .regimes import Parts, Regime

Say = Callable[[str], None]


@dataclass
class Context:
    """What the runs of one corpus share in the process that computes them."""

    settings: Experiment
    material: PreparedCorpus  # or a ReleasedCorpus, where a protocol is followed
    processes: Processes
    command: str
    say: Say


def train_seed(context: Context, trials: Sequence[tuple[Regime, float]], seed: int) -> list[Member]:
    """A head for each (regime, learning rate), in that order, trained with one seed."""
    settings, material = context.settings, context.material
    seeded = seed_material(settings, material, seed)
    members, sources = [], {}  # sources by regime: its learning rates share them
    for r, rate in trials:
        if r.name not in sources:
            sources[r.name] = [source_of(r, material, seeded, split) for split in ("train", "validation")]
        head, name = _new_head(r, material, seeded), f"{r.name}@{rate:g}"
        members.append(Member(name, head, *sources[r.name], rate, seed=seed * 1_000_003))
    orders = [order_of(settings, r) for r, _ in trials]
    for order in sorted(set(orders)):
        train_heads(
            [m for m, of_member in zip(members, orders) if of_member == order],
            material.scored["train"],
            partial(seeded.epoch, "train", order),
            material.scored["validation"],
            seeded.epoch("validation", order, 0),
            material.weight,
            settings.train,
            context.processes,
        )
    return members


def order_of(settings: Experiment, r: Regime) -> str:
    """The order a regime's documents are trained and read in: its own, or the clustered one shared by all."""
    return "clustered" if settings.shared_order else r.order


def source_of(r: Regime, material: PreparedCorpus, seeded, split: str, share: float = 0.0) -> Source | None:
    """A regime's condition source for a split, None without one; `share` of its vectors are foreign ones."""
    if r.source is None:
        return None
    view, train = split_view(material, seeded, split, share), split_view(material, seeded, "train")
    return r.source(view, train, material.backbone.vocab)


def _new_head(r: Regime, material: PreparedCorpus, seeded: SeedClusterings) -> Head:
    """A freshly initialised head on the device; the seed is of the head alone, whatever the cohort."""
    backbone = material.backbone
    parts = Parts(backbone.width, backbone.vocab, backbone.head.weight, split_view(material, seeded, "train"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded.seed)
        return r.head(parts).to(backbone.device)
