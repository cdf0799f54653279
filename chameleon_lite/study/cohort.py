"""Cohorts: the heads of one seed trained side by side, swept for a learning rate, and measured.

Trial (regime, learning rate) ─ train_seed: one cohort an order of documents ─▶ trained members
  └ choose_rates: best on validation, sweep seeds ─▶ a rate a regime

Every result of a sweep is kept under `sweeps/` as soon as its seed is through, so that a killed sweep goes on.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from .. import cache
from ..conditions import Source
from ..config import Experiment
from ..training.loop import Member, Processes, fit
from .deadline import Deadline
from .material import Material, Seeded, seed_material, seed_materials, split_view
from .regimes import REGIMES, Parts, Regime

SWEEP_SEEDS_FROM = 1_000
COHORT = 24  # heads trained side by side in a sweep
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
    resume: bool = True
    deadline: Deadline = field(default_factory=lambda: Deadline(None))


def choose_rates(context: Context, regimes: list[Regime]) -> tuple[dict[str, float], dict[str, dict]]:
    """A learning rate for each regime: the given one, or the best of the sweep on validation (mean over its seeds).

    A regime with `rate_of` takes the other's, which is swept for it where it is not among `regimes`.
    """
    settings, sweep = context.settings, context.settings.sweep
    rates = dict(settings.learning_rates)
    asked = {
        r.rate_of or r.name: REGIMES[r.rate_of] if r.rate_of else r for r in regimes if r.name not in rates
    }
    open_regimes = [r for r in asked.values() if r.name not in rates]
    if (
        open_regimes
    ):  # the reported seeds' clusterings are made when their turn comes: processes may share them out
        seeds = range(SWEEP_SEEDS_FROM, SWEEP_SEEDS_FROM + sweep.seeds)
        seed_materials(settings, context.material, seeds)
    results: dict[str, dict[float, dict[str, float]]] = {r.name: {} for r in open_regimes}
    pending = {r.name: list(sweep.grid) for r in open_regimes}
    for _ in range(sweep.extend + 1):
        wanted = [(r, lr) for r in open_regimes for lr in pending[r.name]]
        if not wanted:
            break
        for r, lr, seed, best in _swept(context, wanted, seeds):
            results[r.name].setdefault(lr, {})[str(seed)] = best
        pending = {r.name: _beyond_edge(results[r.name]) for r in open_regimes}
    for r in open_regimes:
        rates[r.name] = min(results[r.name], key=lambda lr: _mean(results[r.name][lr].values()))
    rates |= {r.name: rates[r.rate_of] for r in regimes if r.name not in rates}
    trials = {
        name: {f"{lr:g}": by_seed for lr, by_seed in sorted(found.items())} for name, found in results.items()
    }
    return rates, trials


def _swept(context: Context, wanted: list[tuple[Regime, float]], seeds: Iterable[int]) -> list[tuple]:
    """(regime, rate, sweep seed, best validation loss) of every pair and seed, from disk where it is known.

    A job is a seed and at most COHORT heads of one order: enough to share a product, few enough to share out.
    """
    jobs = []
    for order in sorted({order_of(context.settings, r) for r, _ in wanted}):
        pairs = [(r, lr) for r, lr in wanted if order_of(context.settings, r) == order]
        cohorts = [pairs[i : i + COHORT] for i in range(0, len(pairs), COHORT)]
        jobs += [[(*pair, seed) for pair in cohort] for seed in seeds for cohort in cohorts]
    for job in shared(context, jobs, lambda job: f"{_sweep_file(context, *job[0]).stem}-and-{len(job) - 1}"):
        todo = [trial for trial in job if not _sweep_file(context, *trial).is_file()]
        if not todo:
            continue
        order = order_of(context.settings, todo[0][0])
        context.deadline.check(f"the sweep's seed {todo[0][2]} in {order} order")
        context.say(f"learning rates, seed {todo[0][2]}, {order} order: {len(todo)} heads")
        for trial in train_seed(context, [Trial(r, lr) for r, lr, _ in todo], todo[0][2]):
            with cache.atomic(_sweep_file(context, trial.regime, trial.learning_rate, todo[0][2])) as part:
                part.write_text(json.dumps({"trial": trial.label, "best": trial.member.best}))
        context.deadline.done()
    return [
        (*trial, json.loads(_sweep_file(context, *trial).read_text())["best"])
        for job in jobs
        for trial in job
    ]


def shared(context: Context, jobs: list, name: Callable) -> Iterable:
    """The jobs, shared out among processes that run the same experiment into the same folder.

    Processes that compute together (torchrun) walk all jobs side by side instead.
    """
    if context.processes.count > 1:
        return iter(jobs)
    return cache.turns(jobs, lambda job: context.runs / "locks" / name(job))


def _sweep_file(context: Context, r: Regime, lr: float, seed: int) -> Path:
    """Named after everything a trial's result depends on."""
    settings = context.settings
    parts = [part.key() for part in (settings.tokens, settings.data, settings.clusters, settings.train)]
    parts += [context.material.corpus.hash, context.material.backbone.hash, str(order_of(settings, r))]
    key = hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]
    return (
        context.runs / "sweeps" / f"{r.name}--{context.material.corpus.name}--{key}--{lr:g}--seed{seed}.json"
    )


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
        fit(
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


def source_of(r: Regime, material: Material, seeded: Seeded, split: str, share: float = 0.0) -> Source | None:
    """A regime's condition source for a split, None without one; `share` of its vectors are foreign ones."""
    if r.source is None:
        return None
    view, train = split_view(material, seeded, split, share), split_view(material, seeded, "train")
    return r.source(view, train, material.backbone.vocab)


def _member(trial: Trial, material: Material, seeded: Seeded, sources: list[Source | None]) -> Member:
    """A freshly initialised head with its sources; the seed is of the head alone, whatever the cohort."""
    backbone, seed = material.backbone, seeded.seed
    train = split_view(material, seeded, "train")
    parts = Parts(backbone.width, backbone.vocab, backbone.head.weight, train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = trial.regime.head(parts)
    head.to(material.scored["train"].device)
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
