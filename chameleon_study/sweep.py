"""What is tuned: every choice of a grid on sweep seeds, the best on validation counts.

choose ─ rounds of (regime, choice) ─▶ SweepJob (one seed and order, at most COHORT heads) ─▶ losses ─▶ choices

Every loss is stored under `sweeps/` as soon as its job ends, so that a killed sweep goes on.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from chameleon_lite import files
from chameleon_lite.app.outputs import writing
from chameleon_lite.errors import DamagedFile

from .config import Experiment, SweepSettings
from .evaluate import Context, order_of, train_seed
from .layers import trained_with_layers
from .prepare import seed_material
from .records import KEPT, file_part
from .regimes import DROPPING, REGIMES, Choice, Regime, trials

SWEEP_SEEDS_FROM = 1_000
# heads side by side in a sweep, and regimes of a job: enough to share h·Wᵀ, few enough to distribute over workers
COHORT = PART = 12

Key = tuple[str, Choice, int]  # regime, choice, sweep seed
Losses = dict[Key, float]  # best validation loss, nats per token


@dataclass(frozen=True)
class SweepJob:
    """Heads to train side by side: their keys have one order of documents and one seed.

    A head with LoRA in the layers, whose states are its own, is a job of its own.
    """

    settings: Experiment
    corpus: str
    keys: tuple[Key, ...]

    def __str__(self) -> str:
        name, _, seed = self.keys[0]
        return f"choices, seed {seed}, {order_of(self.settings, REGIMES[name])} order: {len(self.keys)} heads"

    def run(self, context: Context) -> Iterator[tuple[Key, float]]:
        """Train the heads; yields each one's key and its loss."""
        name, choice, seed = self.keys[0]
        if REGIMES[name].procedure:
            seeded = seed_material(self.settings, context.material, seed)
            members = [trained_with_layers(context, seeded, REGIMES[name], choice)[0]]
        else:
            members = train_seed(context, [(REGIMES[name], choice) for name, choice, _ in self.keys], seed)
        yield from zip(self.keys, (member.best for member in members))


def choose(settings: Experiment, regimes: list[Regime], measured: Callable) -> tuple[dict, dict]:
    """A choice for each regime, the given rate or the sweep's best, and all losses; `measured` gives those of keys."""
    chosen = {name: Choice(rate) for name, rate in settings.learning_rates.items()}
    seeds = range(SWEEP_SEEDS_FROM, SWEEP_SEEDS_FROM + settings.sweep.seeds)
    tried: dict[str, dict[Choice, dict[str, float]]] = {r.name: {} for r in regimes if r.name not in chosen}
    pending = {name: first_choices(settings.sweep, REGIMES[name]) for name in tried}
    for _ in range(settings.sweep.extend + 1):
        wanted = [(name, choice, seed) for name, more in pending.items() for choice in more for seed in seeds]
        if not wanted:
            break
        for (name, choice, seed), loss in measured(wanted).items():
            tried[name].setdefault(choice, {})[str(seed)] = loss
        grown = [name for name in tried if not (REGIMES[name].searched and settings.sweep.trials)]
        pending = {name: _beyond_edge(tried[name]) for name in grown}
    chosen |= {name: _best(of_name) for name, of_name in tried.items()}
    in_order = {name: sorted(of_name, key=lambda c: (c.rate, c.name)) for name, of_name in tried.items()}
    return chosen, {name: {c.name: tried[name][c] for c in order} for name, order in in_order.items()}


def first_choices(sweep: SweepSettings, r: Regime) -> list[Choice]:
    """What is tried first for a regime: the grid, times the dropouts of a hyper-network; or random choices."""
    if r.searched and sweep.trials:
        return trials(sweep.trials)
    dropouts = sweep.dropouts if r.head in DROPPING and sweep.dropouts else (None,)
    return [Choice(rate, dropout) for rate in sweep.grid for dropout in dropouts]


def sweep_jobs(settings: Experiment, corpus: str, keys: Iterable[Key]) -> list[SweepJob]:
    """The jobs that measure these losses, one order of documents after another."""
    groups: dict[tuple[str, int, str], list[Key]] = {}
    for key in keys:
        alone = str(key) if REGIMES[key[0]].procedure else ""
        groups.setdefault((order_of(settings, REGIMES[key[0]]), key[2], alone), []).append(key)
    in_order = [group for _, group in sorted(groups.items())]
    cohorts = [group[i : i + COHORT] for group in in_order for i in range(0, len(group), COHORT)]
    return [SweepJob(settings, corpus, tuple(cohort)) for cohort in cohorts]


def loss_file(settings: Experiment, corpus: str, hashes: Iterable[str], key: Key) -> str:
    """The path below `runs` of one loss, which holds everything that it depends on; `hashes` of corpus and backbone."""
    regime, choice, seed = key
    parts = [part.key() for part in (settings.tokens, settings.data, settings.clusters, settings.train)]
    longer = settings.sweep.model_dump().get("cosine_epochs")  # not written where it is the default
    cosine = [f"cosine over {longer}"] if longer and choice.schedule == "cosine" else []
    parts += [*hashes, order_of(settings, REGIMES[regime]), *cosine]
    digits = hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]
    return f"sweeps/{regime}--{file_part(corpus)}--{digits}--{choice.name.replace(' ', ',')}--seed{seed}.json"


def store_loss(path: Path, key: Key, loss: float) -> None:
    """Keep one loss in a file with a checksum, which also says whose it is."""
    with writing(path, KEPT):
        files.write_sealed(path, {"file": path.name, "trial": f"{key[0]}@{key[1].name}", "best": loss})


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


def _beyond_edge(tried: dict[Choice, dict[str, float]]) -> list[Choice]:
    """The best choice with the next rate, where its rate lies on the edge of those tried with it; else none."""
    best = _best(tried)
    rates = [choice.rate for choice in tried if replace(choice, rate=best.rate) == best]
    if len(rates) < 2 or min(rates) < best.rate < max(rates):
        return []
    return [replace(best, rate=best.rate * 3 if best.rate == max(rates) else best.rate / 3)]


def _best(tried: dict[Choice, dict[str, float]]) -> Choice:
    """The choice with the lowest loss, a mean over sweep seeds."""
    return min(tried, key=lambda choice: sum(tried[choice].values()) / len(tried[choice]))


def split_up(regimes: list[Regime]) -> list[list[Regime]]:
    """Parts of about PART regimes, each with those that borrow its heads: for several workers."""
    families: dict[str, list[Regime]] = {}
    for r in regimes:
        families.setdefault(r.weights_of or r.name, []).append(r)
    parts: list[list[Regime]] = [[]]
    for family in families.values():
        if len(parts[-1]) >= PART:
            parts.append([])
        parts[-1] += family
    return parts


def to_train(regimes: list[Regime]) -> list[Regime]:
    """The regimes of these that train a head, then the others whose heads these borrow."""
    borrowed = {r.weights_of for r in regimes if r.weights_of} - {r.name for r in regimes}
    return [r for r in regimes if r.head] + [REGIMES[name] for name in sorted(borrowed)]
