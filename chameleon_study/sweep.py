"""Learning rates: every rate of a grid on sweep seeds, the best on validation counts.

choose_rates ─ rounds of (regime, rate) ─▶ SweepJob (one seed and order, at most COHORT heads) ─▶ losses ─▶ rates

Every loss is stored under `sweeps/` as soon as its job ends, so that a killed sweep goes on.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from chameleon_lite import files
from chameleon_lite.app.outputs import writing
from chameleon_lite.errors import DamagedFile

from .config import Experiment
from .evaluate import Context, order_of, train_seed
from .records import KEPT, file_part
from .regimes import REGIMES, Regime

SWEEP_SEEDS_FROM = 1_000
# heads side by side in a sweep: large enough to share the product h·Wᵀ, small enough to distribute over processes
COHORT = 24

Key = tuple[str, float, int]  # regime, rate, sweep seed
Losses = dict[Key, float]  # best validation loss, nats per token


@dataclass(frozen=True)
class SweepJob:
    """Heads to train side by side: their keys have one order of documents and one seed."""

    settings: Experiment
    corpus: str
    keys: tuple[Key, ...]

    def __str__(self) -> str:
        name, _, seed = self.keys[0]
        order = order_of(self.settings, REGIMES[name])
        return f"learning rates, seed {seed}, {order} order: {len(self.keys)} heads"

    def run(self, context: Context) -> Iterator[tuple[Key, float]]:
        """Train the heads; yields each one's key and its loss."""
        seed = self.keys[0][2]
        members = train_seed(context, [(REGIMES[name], rate) for name, rate, _ in self.keys], seed)
        yield from zip(self.keys, (member.best for member in members))


def choose_rates(
    settings: Experiment, regimes: list[Regime], measured: Callable[[list[Key]], Losses]
) -> tuple[dict[str, float], dict[str, dict]]:
    """A learning rate for each regime, the given one or the best of the sweep (mean over its seeds), and all losses.

    A regime with `rate_of` takes the other's, which is swept for it where it is not among `regimes`. `measured`
    returns the losses of some keys.
    """
    rates = dict(settings.learning_rates)
    seeds = range(SWEEP_SEEDS_FROM, SWEEP_SEEDS_FROM + settings.sweep.seeds)
    lenders = dict.fromkeys(r.rate_of or r.name for r in regimes if r.name not in rates)
    tried: dict[str, dict[float, dict[str, float]]] = {name: {} for name in lenders if name not in rates}
    pending = {name: settings.sweep.grid for name in tried}
    for _ in range(settings.sweep.extend + 1):
        wanted = [(name, rate, seed) for name, more in pending.items() for rate in more for seed in seeds]
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


def sweep_jobs(settings: Experiment, corpus: str, keys: Iterable[Key]) -> list[SweepJob]:
    """The jobs that measure these losses, one order of documents after another."""
    groups: dict[tuple[str, int], list[Key]] = {}
    for key in keys:
        groups.setdefault((order_of(settings, REGIMES[key[0]]), key[2]), []).append(key)
    cohorts = [
        group[i : i + COHORT] for _, group in sorted(groups.items()) for i in range(0, len(group), COHORT)
    ]
    return [SweepJob(settings, corpus, tuple(cohort)) for cohort in cohorts]


def loss_file(settings: Experiment, corpus: str, hashes: Iterable[str], key: Key) -> str:
    """The path below `runs` of one loss, which holds everything that it depends on; `hashes` of corpus and backbone."""
    regime, rate, seed = key
    parts = [part.key() for part in (settings.tokens, settings.data, settings.clusters, settings.train)]
    parts += [*hashes, order_of(settings, REGIMES[regime])]
    digits = hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]
    return f"sweeps/{regime}--{file_part(corpus)}--{digits}--{rate:g}--seed{seed}.json"


def store_loss(path: Path, key: Key, loss: float) -> None:
    """Keep one loss in a file with a checksum, which also says whose it is."""
    with writing(path, KEPT):
        files.write_sealed(path, {"file": path.name, "trial": f"{key[0]}@{key[1]:g}", "best": loss})


def stored_losses(paths: dict[Key, Path], say) -> Losses:
    """The losses that are there; a damaged file, or one copied from another, is named and counts as absent."""
    losses = {}
    for key, path in paths.items():
        try:
            content = files.read_sealed(path) if path.exists() else None
            if content and content["file"] != path.name:
                raise DamagedFile(f"{path} is a copy of {content['file']}")
        except (DamagedFile, OSError, KeyError) as error:
            say(f"{error}: it is measured again")
        else:
            losses |= {key: content["best"]} if content else {}
    return losses


def _beyond_edge(tried: dict[float, dict[str, float]]) -> list[float]:
    """The next rate to try when the best one lies on the edge of those tried; empty when it does not."""
    best = _best(tried)
    if len(tried) < 2 or min(tried) < best < max(tried):
        return []
    return [best * 3 if best == max(tried) else best / 3]


def _best(tried: dict[float, dict[str, float]]) -> float:
    """The rate with the lowest loss, a mean over sweep seeds."""
    return min(tried, key=lambda rate: sum(tried[rate].values()) / len(tried[rate]))
