"""Cohorts: the heads of one seed trained side by side, swept for a learning rate, and measured.

Trial (regime, learning rate) ─ train_seed: one cohort an order of documents ─▶ trained members
  ├ choose_rates: best on validation, sweep seeds ─▶ a rate a regime
  └ measure_split ─▶ per-document nll of every regime
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import Experiment
from ..model.heads.interface import Head
from ..training.loop import Member, Processes, evaluate, fit
from .material import Material, Seeded, seed_material, split_view
from .regimes import Regime

SWEEP_SEEDS_FROM = 1_000
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
    """What every run of one corpus shares."""

    settings: Experiment
    material: Material
    runs: Path
    processes: Processes
    command: str
    say: Say


def choose_rates(context: Context, regimes: list[Regime]) -> tuple[dict[str, float], dict[str, dict]]:
    """A learning rate for each regime: the given one, or the best of the sweep on validation (mean over its seeds)."""
    settings, sweep = context.settings, context.settings.sweep
    rates = dict(settings.learning_rates)
    open_regimes = [r for r in regimes if r.name not in rates]
    results: dict[str, dict[float, dict[str, float]]] = {r.name: {} for r in open_regimes}
    pending = {r.name: list(sweep.grid) for r in open_regimes}
    for _ in range(sweep.extend + 1):
        wanted = [(r, lr) for r in open_regimes for lr in pending[r.name]]
        if not wanted:
            break
        context.say(f"learning rates: {len(wanted)} heads × {sweep.seeds} sweep seeds")
        for seed in range(SWEEP_SEEDS_FROM, SWEEP_SEEDS_FROM + sweep.seeds):
            for trial in train_seed(context, [Trial(r, lr) for r, lr in wanted], seed):
                results[trial.regime.name].setdefault(trial.learning_rate, {})[str(seed)] = trial.member.best
        pending = {r.name: _beyond_edge(results[r.name]) for r in open_regimes}
    for r in open_regimes:
        rates[r.name] = min(results[r.name], key=lambda lr: _mean(results[r.name][lr].values()))
    trials = {name: {f"{lr:g}": by_seed for lr, by_seed in sorted(found.items())} for name, found in results.items()}
    return rates, trials


def train_seed(context: Context, trials: list[Trial], seed: int) -> list[Trial]:
    """Train every trial with one seed, those that share an order of documents in one cohort."""
    settings, material = context.settings, context.material
    seeded = seed_material(settings, material, seed)
    for order in sorted({order_of(settings, t.regime) for t in trials}):
        cohort = [t for t in trials if order_of(settings, t.regime) == order]
        train, valid = split_view(material, "train"), split_view(material, "validation")
        for trial in cohort:
            trial.member = _member(trial, context, seed, train, valid)
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


def measure_split(
    context: Context, seeded: Seeded, regimes: list[Regime], members: dict[str, Member], split: str
) -> dict[str, torch.Tensor]:
    """Per-document nll (N,) of every regime on one split, in float64 on the host; one pass an order of documents."""
    material, settings = context.material, context.settings
    out = {}
    for order in sorted({order_of(settings, r) for r in regimes}):
        cohort = [r for r in regimes if order_of(settings, r) == order]
        view, train = split_view(material, split), split_view(material, "train")
        view.arrangement = seeded.epoch(split, order, 0)
        heads = [
            (members[r.name].head if r.name in members else None, r.source(view, train) if r.source else None)
            for r in cohort
        ]
        nll = evaluate(
            heads,
            material.scored[split],
            view.arrangement.steps(settings.train.rows_per_step),
            material.weight,
            scale=settings.train.scale,
            processes=context.processes,
        )
        out |= {r.name: values.cpu() for r, values in zip(cohort, nll)}
    return out


def order_of(settings: Experiment, r: Regime) -> str:
    """The order a regime's documents are trained and read in: its own, or the clustered one shared by all."""
    return "clustered" if settings.shared_order else r.order


def _member(trial: Trial, context: Context, seed: int, train, valid) -> Member:
    """A freshly initialised head with its condition sources; the seed is of the head alone, whatever the cohort."""
    r, backbone = trial.regime, context.material.backbone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head: Head = r.head(backbone.width, backbone.vocab)
    head.to(context.material.scored["train"].device)
    sources = [r.source(split, train) if r.source else None for split in (train, valid)]
    return Member(trial.label, head, *sources, trial.learning_rate, seed=seed * 1_000_003)


def _beyond_edge(found: dict[float, dict[str, float]]) -> list[float]:
    """The next rate to try when the best one lies on the edge of those tried; empty when it does not."""
    if len(found) < 2:
        return []
    best = min(found, key=lambda lr: _mean(found[lr].values()))
    if best == max(found):
        return [best * 3]
    return [best / 3] if best == min(found) else []


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)
