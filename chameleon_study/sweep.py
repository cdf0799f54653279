"""Learning rates: every rate of a grid on sweep seeds, the best on validation counts.

choose_rates ─ rounds of (regime, rate) ─▶ SweepJob (one seed and order, at most COHORT heads) ─▶ losses ─▶ rates

Every loss is stored under `sweeps/` as soon as its job ends, so that a killed sweep goes on.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from .config import Experiment
from .evaluate import Context, order_of, train_seed
from .regimes import REGIMES, Regime

SWEEP_SEEDS_FROM = 1_000
# heads side by side in a sweep: large enough to share the product h·Wᵀ, small enough to distribute over processes
COHORT = 24

Key = tuple[str, float, int]  # regime, rate, sweep seed
Losses = dict[Key, float]  # best validation loss, nats per token


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
    def keys(self) -> list[Key]:
        """The keys of its losses."""
        return [(*head, self.seed) for head in self.heads]

    def without(self, known: Losses) -> "SweepJob":
        """What is left of it where some losses are known."""
        return replace(self, heads=tuple(h for h, key in zip(self.heads, self.keys) if key not in known))

    def run(self, context: Context) -> Iterator[tuple[Key, float]]:
        """Train the heads; yields each one's key of Losses and its loss."""
        members = train_seed(context, [(REGIMES[name], rate) for name, rate in self.heads], self.seed)
        yield from ((key, member.best) for key, member in zip(self.keys, members))


def choose_rates(
    settings: Experiment, regimes: list[Regime], measured: Callable[[list[tuple[str, float]]], Losses]
) -> tuple[dict[str, float], dict[str, dict]]:
    """A learning rate for each regime, the given one or the best of the sweep (mean over its seeds), and all losses.

    A regime with `rate_of` takes the other's, which is swept for it where it is not among `regimes`. `measured`
    returns the losses of (regime, rate) pairs under every sweep seed.
    """
    rates = dict(settings.learning_rates)
    lenders = dict.fromkeys(r.rate_of or r.name for r in regimes if r.name not in rates)
    tried: dict[str, dict[float, dict[str, float]]] = {name: {} for name in lenders if name not in rates}
    pending = {name: settings.sweep.grid for name in tried}
    for _ in range(settings.sweep.extend + 1):
        wanted = [(name, rate) for name, more in pending.items() for rate in more]
        if not wanted:
            break
        for (name, rate, seed), loss in measured(wanted).items():
            tried[name].setdefault(rate, {})[str(seed)] = loss
        pending = {name: _beyond_edge(of_name) for name, of_name in tried.items()}
    rates |= {name: _best(of_name) for name, of_name in tried.items()}
    rates |= {r.name: rates[r.rate_of] for r in regimes if r.name not in rates}
    return rates, {
        name: {f"{rate:g}": of_name[rate] for rate in sorted(of_name)} for name, of_name in tried.items()
    }


def sweep_jobs(settings: Experiment, corpus: str, wanted: list[tuple[str, float]]) -> list[SweepJob]:
    """The jobs that measure (regime, rate) pairs under every sweep seed, one order of documents after another."""
    jobs, orders = [], [order_of(settings, REGIMES[name]) for name, _ in wanted]
    for order in sorted(set(orders)):
        pairs = [pair for pair, of_pair in zip(wanted, orders) if of_pair == order]
        cohorts = [tuple(pairs[i : i + COHORT]) for i in range(0, len(pairs), COHORT)]
        seeds = range(SWEEP_SEEDS_FROM, SWEEP_SEEDS_FROM + settings.sweep.seeds)
        jobs += [SweepJob(settings, corpus, seed, cohort) for seed in seeds for cohort in cohorts]
    return jobs


def loss_file(settings: Experiment, corpus: str, hashes: Iterable[str], key: Key) -> str:
    """The path below `runs` of one loss, which holds everything that it depends on; `hashes` of corpus and backbone."""
    regime, rate, seed = key
    parts = [part.key() for part in (settings.tokens, settings.data, settings.clusters, settings.train)]
    parts += [*hashes, order_of(settings, REGIMES[regime])]
    digits = hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]
    return f"sweeps/{regime}--{corpus}--{digits}--{rate:g}--seed{seed}.json"


def _beyond_edge(tried: dict[float, dict[str, float]]) -> list[float]:
    """The next rate to try when the best one lies on the edge of those tried; empty when it does not."""
    best = _best(tried)
    if len(tried) < 2 or min(tried) < best < max(tried):
        return []
    return [best * 3 if best == max(tried) else best / 3]


def _best(tried: dict[float, dict[str, float]]) -> float:
    """The rate with the lowest loss, a mean over sweep seeds."""
    return min(tried, key=lambda rate: sum(tried[rate].values()) / len(tried[rate]))
