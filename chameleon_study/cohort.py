"""Cohorts: the heads of one seed trained side by side, those of one order of documents together.

Trial (regime, learning rate) ─ train_seed ─▶ trained members
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from chameleon_lite.processes import Processes
from chameleon_lite.train import Member, Source, train_heads

from .config import Experiment
from .prepare import PreparedCorpus, SeedClusterings, seed_material, split_view
from .regimes import Parts, Regime

Say = Callable[[str], None]


@dataclass
class Trial:
    """One head to train: a regime at a learning rate."""

    regime: Regime
    learning_rate: float
    member: Member | None = None

    @property
    def label(self) -> str:
        return f"{self.regime.name}@{self.learning_rate:g}"


@dataclass
class Context:
    """What the runs of one corpus share in the process that computes them."""

    settings: Experiment
    material: PreparedCorpus  # or a ReleasedCorpus, where a protocol is followed
    processes: Processes
    command: str
    say: Say


def train_seed(context: Context, trials: list[Trial], seed: int) -> list[Trial]:
    """Train every trial with one seed, those that share an order of documents in one cohort."""
    settings, material = context.settings, context.material
    seeded = seed_material(settings, material, seed)
    for order in sorted({order_of(settings, t.regime) for t in trials}):
        cohort = [t for t in trials if order_of(settings, t.regime) == order]
        sources = {}  # by regime: its learning rates share them
        for r in {t.regime.name: t.regime for t in cohort}.values():
            sources[r.name] = [source_of(r, material, seeded, split) for split in ("train", "validation")]
        for trial in cohort:
            trial.member = _member(trial, material, seeded, sources[trial.regime.name])
        train_heads(
            [t.member for t in cohort],
            material.scored["train"],
            partial(seeded.epoch, "train", order),
            material.scored["validation"],
            seeded.epoch("validation", order, 0),
            material.weight,
            settings.train,
            context.processes,
        )
    return trials


def order_of(settings: Experiment, r: Regime) -> str:
    """The order a regime's documents are trained and read in: its own, or the clustered one shared by all."""
    return "clustered" if settings.shared_order else r.order


def source_of(r: Regime, material: PreparedCorpus, seeded, split: str, share: float = 0.0) -> Source | None:
    """A regime's condition source for a split, None without one; `share` of its vectors are foreign ones."""
    if r.source is None:
        return None
    view, train = split_view(material, seeded, split, share), split_view(material, seeded, "train")
    return r.source(view, train, material.backbone.vocab)


def _member(trial: Trial, material: PreparedCorpus, seeded: SeedClusterings, sources: list) -> Member:
    """A freshly initialised head with its sources; the seed is of the head alone, whatever the cohort."""
    backbone, seed = material.backbone, seeded.seed
    train = split_view(material, seeded, "train")
    parts = Parts(backbone.width, backbone.vocab, backbone.head.weight, train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = trial.regime.head(parts)
    head.to(material.scored["train"].device)
    return Member(trial.label, head, *sources, trial.learning_rate, seed=seed * 1_000_003)
