"""Learning rates: every rate of a grid on sweep seeds, the best on validation counts.

choose_rates ─ rounds of (regime, rate) ─▶ SweepJob (one seed and order, at most COHORT heads) ─▶ losses ─▶ rates

Every loss is stored under `sweeps/` as soon as its job ends, so that a killed sweep goes on.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from chameleon_lite import files

from .cohort import Context, Trial, order_of, train_seed
from .config import Experiment
from .regimes import REGIMES, Regime

SWEEP_SEEDS_FROM = 1_000
# heads side by side in a sweep: large enough to share the product h·Wᵀ, small enough to distribute over processes
COHORT = 24

# (regime, rate, sweep seed) ▶ best validation loss, nats per token
Losses = dict[tuple[str, float, int], float]


@dataclass(frozen=True)
class SweepJob:
    """Heads of one order, each a regime's name and a rate, to train side by side with one seed."""

    settings: Experiment
    corpus: str
    seed: int
    heads: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        order = order_of(self.settings, REGIMES[self.heads[0][0]])
        return f"learning rates, seed {self.seed}, {order} order: {len(self.heads)} heads"

    @property
    def keys(self) -> list[tuple[str, float, int]]:
        """The keys of its losses."""
        return [(*head, self.seed) for head in self.heads]

    def without(self, known: Losses) -> "SweepJob":
        """What is left of it where some losses are known."""
        return replace(self, heads=tuple(h for h, key in zip(self.heads, self.keys) if key not in known))

    def run(self, context: Context) -> Iterator[tuple[tuple[str, float, int], float]]:
        """Train the heads; yields each one's key of Losses and its loss."""
        trials = [Trial(REGIMES[name], rate) for name, rate in self.heads]
        for trial in train_seed(context, trials, self.seed):
            yield (trial.regime.name, trial.learning_rate, self.seed), trial.member.best


def choose_rates(
    settings: Experiment, regimes: list[Regime], measured: Callable[[list[tuple[str, float]]], Losses]
) -> tuple[dict[str, float], dict[str, dict]]:
    """A learning rate for each regime, the given one or the best of the sweep (mean over its seeds), and all losses.

    A regime with `rate_of` takes the other's, which is swept for it where it is not among `regimes`. `measured`
    returns the losses of (regime, rate) pairs under every sweep seed.
    """
    sweep, rates = settings.sweep, dict(settings.learning_rates)
    lenders = dict.fromkeys(r.rate_of or r.name for r in regimes if r.name not in rates)
    swept = [name for name in lenders if name not in rates]
    results: dict[str, dict[float, dict[str, float]]] = {name: {} for name in swept}
    pending = {name: list(sweep.grid) for name in swept}
    for _ in range(sweep.extend + 1):
        wanted = [(name, rate) for name in swept for rate in pending[name]]
        if not wanted:
            break
        for (name, rate, seed), best in measured(wanted).items():
            results[name].setdefault(rate, {})[str(seed)] = best
        pending = {name: _beyond_edge(results[name]) for name in swept}
    for name in swept:
        rates[name] = min(results[name], key=lambda rate: _mean(results[name][rate].values()))
    rates |= {r.name: rates[r.rate_of] for r in regimes if r.name not in rates}
    by_rate = {name: sorted(tried.items()) for name, tried in results.items()}
    trials = {name: {f"{rate:g}": of for rate, of in tried} for name, tried in by_rate.items()}
    return rates, trials


def sweep_jobs(settings: Experiment, corpus: str, wanted: list[tuple[str, float]]) -> list[SweepJob]:
    """The jobs that measure (regime, rate) pairs under every sweep seed, one order of documents after another."""
    jobs, orders = [], [order_of(settings, REGIMES[name]) for name, _ in wanted]
    for order in sorted(set(orders)):
        pairs = [pair for pair, of_pair in zip(wanted, orders) if of_pair == order]
        cohorts = [tuple(pairs[i : i + COHORT]) for i in range(0, len(pairs), COHORT)]
        seeds = range(SWEEP_SEEDS_FROM, SWEEP_SEEDS_FROM + settings.sweep.seeds)
        jobs += [SweepJob(settings, corpus, seed, cohort) for seed in seeds for cohort in cohorts]
    return jobs


@dataclass(frozen=True)
class SweepFiles:
    """The losses on disk of one corpus, in files named after everything that a loss depends on."""

    folder: Path
    settings: Experiment
    corpus: str  # its own name
    corpus_hash: str
    backbone_hash: str

    def path(self, regime: str, rate: float, seed: int) -> Path:
        """The file of one loss."""
        s = self.settings
        parts = [part.key() for part in (s.tokens, s.data, s.clusters, s.train)]
        parts += [self.corpus_hash, self.backbone_hash, str(order_of(s, REGIMES[regime]))]
        key = hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]
        return self.folder / f"{regime}--{self.corpus}--{key}--{rate:g}--seed{seed}.json"

    def read(self, jobs: list[SweepJob]) -> Losses:
        """What is known of the jobs' losses."""
        paths = {key: self.path(*key) for job in jobs for key in job.keys}
        return {key: json.loads(path.read_text())["best"] for key, path in paths.items() if path.is_file()}

    def write(self, key: tuple[str, float, int], best: float) -> None:
        """Keep one loss."""
        with files.atomic(self.path(*key)) as part:
            part.write_text(json.dumps({"trial": f"{key[0]}@{key[1]:g}", "best": best}))


def _beyond_edge(tried: dict[float, dict[str, float]]) -> list[float]:
    """The next rate to try when the best one lies on the edge of those tried; empty when it does not."""
    if len(tried) < 2:
        return []
    best = min(tried, key=lambda lr: _mean(tried[lr].values()))
    if best == max(tried):
        return [best * 3]
    return [best / 3] if best == min(tried) else []


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def estimate(context: Context, regimes: list[Regime]) -> str:
    """The cost in one line: the steps of a head at most, the heads of the sweep and of the reported seeds."""
    settings = context.settings
    steps = -(-len(context.material.tables["train"]) // settings.train.rows_per_step) * settings.train.epochs
    swept = {r.rate_of or r.name for r in regimes} - set(settings.learning_rates)
    sweep = len(swept) * len(settings.sweep.grid) * settings.sweep.seeds
    heads = sweep + len(regimes) * settings.seeds
    return f"cost: {steps} steps × {heads} heads ({sweep} of the sweep) at most, before early stopping"
