"""One YAML file in, records out: the only file that sees the whole line.

    Experiment ─ a corpus at a time: prepare ─ a seed at a time: cluster, arrange ─ cohorts of heads: fit, measure
                                                                         └▶ a folder a run under `runs/`

Regimes that share an order of documents train side by side (one base product a step); a regime without a
given learning rate is swept first, on validation, with seeds of its own. A run whose folder is complete is
not run again unless asked.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..config import Experiment
from ..errors import RunFailed
from ..model.backbones import Backbone, load_backbone
from ..training.loop import Processes
from .cohort import Context, Say, Trial, choose_rates, shared, train_seed
from .cost import estimate
from .deadline import Deadline
from .generation import check_room, generated, writing
from .material import Seeded, prepare, seed_material
from .measure import measure
from .outcome import Outcome, default_command, documents_frame, name_of, record_of, reset_peak
from .protocol import mended
from .records import Record, read_run, write_run
from .regimes import REGIMES, Regime, regime
from .released import run_released
from .spans import noted


def run_experiment(
    settings: Experiment,
    *,
    runs: Path,
    data_dir: Path | None = None,
    device: str | None = None,
    resume: bool = True,
    command: str | None = None,
    backbone: Backbone | None = None,
    minutes: float | None = None,
    say: Say = lambda text: None,
) -> list[Record]:
    """Run (or find) every regime × corpus × seed of an experiment; returns the records in that order.

    `resume=True` keeps runs that are complete; False runs everything again. `minutes` stops before a seed that
    would not end in time. Raises UserError for settings that cannot be run, RunFailed when a whole cohort
    diverges or time is up; what was finished before stays on disk. An experiment whose protocol has a `mend` list
    runs once for each of its stops, the records of a stop together.
    """
    deadline = Deadline(minutes)
    regimes = [regime(name) for name in settings.regimes]
    writing(settings)  # refuses, before anything is trained, what could not write
    processes = Processes()
    device = device or str(processes.device)
    backbone = backbone or load_backbone(settings.backbone, device=device)
    records: list[Record] = []
    for settings, corpus in [(stop, corpus) for stop in stops(settings) for corpus in settings.corpora]:
        found = _found(settings, regimes, corpus, runs) if resume else {}
        if len(found) < len(regimes) * settings.seeds:
            work = Work(
                backbone, runs, data_dir, processes, command or default_command(), deadline, say, resume
            )
            with noted(settings.name, corpus, str(backbone.device), runs):
                found |= _missing(settings, regimes, corpus, found, work)
        records += [found[r.name, seed] for r in regimes for seed in range(settings.seeds)]
    return records


@dataclass
class Work:
    """What every corpus of an experiment is worked on with."""

    backbone: Backbone
    runs: Path
    data_dir: Path | None
    processes: Processes
    command: str
    deadline: Deadline
    say: Say
    resume: bool


def _missing(settings: Experiment, regimes: list[Regime], corpus: str, found: dict, work: Work) -> dict:
    """Run what is missing of one corpus, on the honest study's line or on the released tables'."""
    if not is_honest(settings):
        missing = {s: [r.name for r in regimes if (r.name, s) not in found] for s in range(settings.seeds)}
        return run_released(
            settings,
            work.backbone,
            corpus,
            missing,
            lambda r, s: name_of(settings, regime(r), corpus, s),
            runs=work.runs,
            data_dir=work.data_dir,
            processes=work.processes,
            command=work.command,
            deadline=work.deadline,
            say=work.say,
            resume=work.resume,
        )
    material = prepare(settings, work.backbone, corpus, data_dir=work.data_dir, say=work.say)
    check_room(settings, material)
    context = Context(
        settings, material, work.runs, work.processes, work.command, work.say, work.resume, work.deadline
    )
    return _run_corpus(context, regimes, found, corpus)


def expected_names(settings: Experiment) -> list[str]:
    """The names of all runs an experiment consists of, in its records' order."""
    return [
        name_of(stop, regime(r), c, s)
        for stop in stops(settings)
        for c in settings.corpora
        for r in settings.regimes
        for s in range(settings.seeds)
    ]


def stops(settings: Experiment) -> list[Experiment]:
    """The experiment at each stop of its protocol's `mend` list; the experiment itself where there is none."""
    return [settings.model_copy(update={"protocol": step}) for _, step in mended(settings.protocol)]


def is_honest(settings: Experiment) -> bool:
    """Whether this is the honest study's own line; anything else goes through `released.py`."""
    return settings.protocol.preset == "honest" and not settings.protocol.switches


def _run_corpus(context: Context, regimes: list[Regime], found: dict, corpus: str) -> dict:
    """Sweep what needs sweeping, then train and measure the missing runs seed by seed."""
    settings = context.settings
    seeds = range(settings.seeds)
    missing = [r for r in regimes if any((r.name, s) not in found for s in seeds)]
    trained = [r for r in missing if r.trained]
    if trained:
        context.say(estimate(context, trained))
    rates, trials = choose_rates(context, trained)
    out = {}
    job = name_of(settings, regimes[0], corpus, 0)
    for seed in shared(context, list(seeds), lambda seed: f"{job}-{len(regimes)}-of-{seed}"):
        out |= _found(settings, missing, corpus, context.runs, [seed]) if context.resume else {}
        todo = [r for r in missing if (r.name, seed) not in found and (r.name, seed) not in out]
        if not todo:
            continue
        context.deadline.check(f"{corpus}, seed {seed}")
        context.say(f"{corpus}, seed {seed}: {', '.join(r.name for r in todo)}")
        for record, documents in measure_seed(context, todo, rates, seed, corpus):
            record.learning_rate_trials = trials.get(REGIMES[record.regime].rate_of or record.regime, {})
            if context.processes.index == 0:
                write_run(context.runs, record, documents)
            out[record.regime, seed] = record
            if record.failure:
                left = (
                    "its best state before that is kept"
                    if record.status == "done"
                    else "lower its learning rate"
                )
                context.say(f"{record.regime}, seed {seed}: {record.failure}; {left}")
        context.deadline.done()
    return out


def measure_seed(
    context: Context, regimes: list[Regime], rates: dict[str, float], seed: int, corpus: str
) -> Iterable[tuple[Record, pd.DataFrame]]:
    """Train what is trained, then read the test split once for every regime; yields records with documents' losses."""
    cached = [r for r in regimes if r.procedure is None]
    if cached:
        for r, found in _cached_outcomes(context, cached, rates, seed).items():
            yield (
                record_of(context, REGIMES[r], found, seed, corpus),
                documents_frame(context.material, found),
            )
    for r in regimes:
        if r.procedure is not None:
            from . import uncached

            found = getattr(uncached, r.procedure)(
                context, seed_material(context.settings, context.material, seed), r
            )
            yield record_of(context, r, found, seed, corpus), documents_frame(context.material, found)


def _cached_outcomes(
    context: Context, regimes: list[Regime], rates: dict[str, float], seed: int
) -> dict[str, Outcome]:
    """Heads on cached hidden states: one cohort an order, one reading of every split."""
    started = time.perf_counter()
    reset_peak(context.material.scored["test"].device)
    lenders = {r.weights_of for r in regimes if r.weights_of} - {r.name for r in regimes}
    training = [r for r in regimes if r.trained] + [REGIMES[name] for name in sorted(lenders)]
    rates = rates | (choose_rates(context, [REGIMES[n] for n in lenders])[0] if lenders - set(rates) else {})
    trials = train_seed(context, [Trial(r, rates[r.name]) for r in training], seed)
    trained = time.perf_counter()
    members = {t.regime.name: t.member for t in trials}
    seeded = seed_material(context.settings, context.material, seed)
    measured = measure(context, seeded, regimes, members)
    seconds = (time.perf_counter() - trained) / len(regimes)
    written, writing_seconds = _written(context, seeded, regimes, members)
    out = {}
    for r in regimes:
        member = members.get(r.weights_of or r.name)
        own = member if r.trained else None
        out[r.name] = Outcome(
            measured[r.name].nll,
            measured[r.name].positions,
            member.learning_rate if member else None,
            own.curve if own else [],
            own.head.trainable_parameters() if own else 0,
            member.head.stored_bytes() if member else 0,
            member.failure if member else None,
            kept=member is None or not member.failure or member.best_epoch > 0,
            seconds={
                "training": (trained - started) / max(1, len(trials)) if own else 0.0,
                "evaluation": seconds,
                **({"generation": writing_seconds} if r.name in written else {}),
            },
            generated=written.get(r.name),
        )
    if members and not any(found.kept for found in out.values()):
        raise RunFailed("every head of the cohort diverged: lower the learning rates")
    return out


def _written(context: Context, seeded: Seeded, regimes: list[Regime], members: dict) -> tuple[dict, float]:
    """Scores of what the regimes that are asked to write have written, and the seconds that one of them took."""
    started = time.perf_counter()
    written = generated(context, seeded, regimes, members)
    return written, (time.perf_counter() - started) / max(1, len(written))


def _found(
    settings: Experiment, regimes: list[Regime], corpus: str, runs: Path, seeds: Iterable | None = None
) -> dict:
    records = {
        (r.name, s): read_run(runs, name_of(settings, r, corpus, s))
        for r in regimes
        for s in (range(settings.seeds) if seeds is None else seeds)
    }
    return {key: record for key, record in records.items() if record is not None}
