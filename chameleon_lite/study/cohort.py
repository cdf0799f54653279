"""Cohorts: the heads of one seed trained side by side, those of one order of documents together.

Trial (regime, learning rate) ─ train_seed ─▶ trained members
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..config import Experiment
from ..heads import Head
from ..training.loop import Member, Processes, fit
from .material import Material, seed_material, split_view
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
    material: Material  # or a ReleasedMaterial, where a protocol is followed
    processes: Processes
    command: str
    say: Say


def train_seed(context: Context, trials: list[Trial], seed: int) -> list[Trial]:
    """Train every trial with one seed, those that share an order of documents in one cohort."""
    settings, material = context.settings, context.material
    seeded = seed_material(settings, material, seed)
    for order in sorted({order_of(settings, t.regime) for t in trials}):
        cohort = [t for t in trials if order_of(settings, t.regime) == order]
        train, valid = split_view(material, seeded, "train"), split_view(material, seeded, "validation")
        sources: dict[str, list] = {}  # one pair a regime, shared by its learning rates
        for trial in cohort:
            trial.member = _member(trial, context, seed, train, valid, sources)
        valid.arrangement = seeded.epoch("validation", order, 0)

        def epochs(number: int, order=order, train=train):
            train.arrangement = seeded.epoch("train", order, number)
            return train.arrangement.steps(settings.train.rows_per_step)

        fit(
            [t.member for t in cohort],
            material.scored["train"],
            epochs,
            material.scored["validation"],
            valid.arrangement.steps(settings.train.rows_per_step),
            material.weight,
            settings.train,
            context.processes,
        )
    return trials


def order_of(settings: Experiment, r: Regime) -> str:
    """The order a regime's documents are trained and read in: its own, or the clustered one shared by all."""
    return "clustered" if settings.shared_order else r.order


def _member(trial: Trial, context: Context, seed: int, train, valid, sources: dict[str, list]) -> Member:
    """A freshly initialised head with its condition sources; the seed is of the head alone, whatever the cohort."""
    r, backbone = trial.regime, context.material.backbone
    parts = Parts(backbone.width, backbone.vocab, backbone.head.weight, train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head: Head = r.head(parts)
    head.to(context.material.scored["train"].device)
    if r.name not in sources:
        sources[r.name] = [
            r.source(split, train, backbone.vocab) if r.source else None for split in (train, valid)
        ]
    return Member(trial.label, head, *sources[r.name], trial.learning_rate, seed=seed * 1_000_003)
