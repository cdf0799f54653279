"""One YAML file in, records out: the only file that sees the whole line.

    Experiment ─▶ SweepJob (a seed's heads, several choices) ─▶ choices ─▶ SeedJob (regimes of a seed) ─▶ records
                                                                               └▶ a folder for each run under `runs/`

Jobs run in this process or are shared out (app/workers.py): settings go out, records come back, and only this
process writes. Regimes that share an order of documents train side by side. A run whose folder is complete is not
run again unless asked.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from chameleon_lite.app.corpus import Corpus
from chameleon_lite.app.workers import Workers, check_device
from chameleon_lite.backbone import Backbone, load_backbone
from chameleon_lite.errors import RunFailed, UserError
from chameleon_lite.processes import Processes

from .config import Experiment
from .corpora import load_corpus
from .evaluate import Context, Outcome, measure, measured, record_of, train_seed
from .layers import PROCEDURES
from .prepare import Say, prepare, seed_material
from .provenance import Span, default_command, note, placeless, reset_peak, span_of
from .records import Record, name_of, stored_runs, try_folder, write_run
from .regimes import REGIMES, Choice, Regime
from .released.prepare import prepare_released
from .released.protocol import mended
from .released.run import check_released, measure_released
from .sweep import Key, Losses, choose, loss_file, split_up, store_loss, stored_losses, sweep_jobs, to_train
from .write import generated, writing


def run_experiment(
    settings: Experiment,
    *,
    runs: Path,
    data_dir: Path | None = None,
    device: str | None = None,
    resume: bool = True,
    command: str | None = None,
    backbone: Backbone | None = None,
    workers: int | None = None,
    dask: str | None = None,
    say: Say = lambda text: None,
) -> list[Record]:
    """Run (or read) every regime × corpus × seed of an experiment; returns the records in that order.

    `resume=True` keeps runs that are complete; False runs everything again. `workers` processes of this machine or
    the workers of the Dask scheduler at `dask` share the jobs; each loads the backbone by its name. An experiment
    with several stops (see `stops`) runs once for each, the records of a stop together. Raises UserError
    for settings that cannot be run, RunFailed when a whole cohort diverges; what was finished before is on disk.
    """
    writing(settings)  # refuses, before anything is trained, what could not write
    if not settings.protocol.honest:
        check_released(settings)
    processes, shared = Processes(), bool(workers or dask)
    if shared:
        _check_shared(processes, device, backbone)
    names = expected_names(settings)
    needed = dict.fromkeys([*settings.corpora, *settings.probes.corpora])
    # also where all runs are there: whether they are of these texts is known by their hash
    corpora = {name: load_corpus(name, data_dir=data_dir) for name in needed}
    where = "cpu" if shared else device or str(processes.device)
    backbone = backbone or load_backbone(settings.backbone, device=where)
    hashes = {name: _hashes(settings, name, corpora, backbone) for name in settings.corpora}
    own = {} if shared else {"backbone": backbone, "processes": processes, "say": say}
    common = Common(corpora, device, command or default_command(), **own)
    records = stored_runs(runs, names, hashes, say) if resume else {}
    if len(records) < len(names) and processes.index == 0:
        try_folder(runs)
    with Workers(common, *((workers, dask) if len(records) < len(names) else ())) as crew:
        grid = _Grid(settings, hashes, crew, runs, processes.index == 0, say)
        jobs = grid.seed_jobs(set(records))
        for record, documents in grid.results(jobs if crew.alone else list(jobs)):
            if grid.writes:
                write_run(runs, record, documents)
            records[record.name] = record
            if record.failure:
                kept = record.status == "done"
                advice = "its best state before that is kept" if kept else "lower its learning rate"
                say(f"{record.regime}, seed {record.seed}: {record.failure}; {advice}")
    return [records[name] for name in names]


def expected_names(settings: Experiment) -> list[str]:
    """The names of all runs an experiment consists of, in its records' order."""
    every = product(stops(settings), settings.corpora, settings.regimes, range(settings.seeds))
    return [name_of(stop, regime, corpus, seed) for stop, corpus, regime, seed in every]


def stops(settings: Experiment) -> list[Experiment]:
    """The experiment with each of `data.budgets` at each stop of its protocol's `mend` list; itself without any."""
    data, limits = settings.data, [budget or None for budget in settings.data.budgets]
    parts = [data.model_copy(update={"max_train_tokens": n, "budgets": ()}) for n in limits] or [data]
    updates = [{"protocol": step, "data": part} for part in parts for _, step in mended(settings.protocol)]
    return [settings.model_copy(update=update) for update in updates]


def _check_shared(processes: Processes, device: str | None, backbone: Backbone | None) -> None:
    """Refuse what other processes cannot take."""
    if processes.count > 1:
        raise UserError("torchrun shares the steps of a run: leave --workers and --dask out")
    if backbone is not None:
        raise UserError("workers load the backbone by its name: give none, or run in one process")
    check_device(device)


@dataclass
class _Grid:
    """The jobs of an experiment: which there are, shared out, and what is kept of their results."""

    settings: Experiment
    hashes: dict[str, tuple]
    crew: Workers
    runs: Path
    writes: bool  # this process does, of several
    say: Say

    def seed_jobs(self, done: set[str]) -> Iterator["SeedJob"]:
        """The jobs of what is missing, corpus by corpus, after the corpus's sweep; regimes without a cache apart."""
        regimes, seeds = [REGIMES[name] for name in self.settings.regimes], range(self.settings.seeds)
        for stop, corpus in product(stops(self.settings), self.settings.corpora):
            todo = {s: [r for r in regimes if name_of(stop, r.name, corpus, s) not in done] for s in seeds}
            missing = [r for r in regimes if any(r in of_seed for of_seed in todo.values())]
            honest = stop.protocol.honest
            chosen, trials = self.chosen(stop, corpus, missing) if missing and honest else ({}, {})
            for seed, of_seed in todo.items():
                apart = [[r] for r in of_seed if r.procedure is not None and honest]
                together = [r for r in of_seed if [r] not in apart]
                parts = [together] if self.crew.alone or not honest else split_up(together)
                for group in filter(None, [*parts, *apart]):
                    yield SeedJob(stop, corpus, seed, tuple(r.name for r in group), chosen, trials)

    def chosen(self, settings: Experiment, corpus: str, missing: list[Regime]) -> tuple:
        """The choices of all heads that must be trained, and every loss of their sweep."""
        name, hashes = self.crew.common.corpora[corpus].name, self.hashes[corpus][:2]

        def measured(wanted: list[Key]) -> Losses:
            paths = {key: self.runs / loss_file(settings, name, hashes, key) for key in wanted}
            losses = stored_losses(paths, self.say)
            jobs = sweep_jobs(settings, corpus, [key for key in wanted if key not in losses])
            for key, loss in self.results(jobs):
                losses[key] = loss
                if self.writes:
                    store_loss(paths[key], key, loss)
            return {key: losses[key] for key in wanted}

        return choose(settings, to_train(missing), measured)

    def results(self, jobs: Iterable) -> Iterator[tuple]:
        """The results of jobs as they come; each job's Span is stored, and logged where work is shared."""
        for job, result in self.crew.share(work, jobs):
            if not isinstance(result, Span):
                yield result
                continue
            if self.writes:
                note(result, self.runs)
            if not self.crew.alone:
                self.say(f"{job}, {result.ended - result.started:.0f} s")


def others(settings: Experiment, corpus: str, corpora: dict[str, Corpus]) -> dict[str, Corpus]:
    """The corpora whose test documents are read beside one's own, by their names in records."""
    names = settings.probes.corpora if settings.protocol.honest else ()
    return {placeless(name): corpora[name] for name in names if name != corpus}


def _hashes(settings: Experiment, corpus: str, corpora: dict[str, Corpus], backbone: Backbone) -> tuple:
    """Of a corpus's texts, of the backbone, and of the other corpora: see records.hashes_of."""
    transfers = {name: other.hash for name, other in others(settings, corpus, corpora).items()}
    return corpora[corpus].hash, backbone.hash, transfers


@dataclass
class Common:
    """What every job of an experiment needs; the defaults are for other processes."""

    corpora: dict[str, Corpus]
    device: str | None
    command: str
    backbone: Backbone | None = None
    processes: Processes | None = None
    say: Say = lambda text: None
    prepared: tuple[Any, Context | None] = (None, None)

    def context(self, settings: Experiment, corpus: str) -> Context:
        """The corpus prepared under the settings: that of the job before, or prepared now."""
        if self.prepared[0] != (settings, corpus):
            self.prepared = (None, None)  # two corpora at once might be too large
            self.processes = self.processes or Processes()
            device = self.device or str(self.processes.device)
            self.backbone = self.backbone or load_backbone(settings.backbone, device=device)
            if settings.protocol.honest:
                probes = others(settings, corpus, self.corpora)
                material = prepare(settings, self.backbone, self.corpora[corpus], probes, self.say)
            else:
                material = prepare_released(settings, self.backbone, self.corpora[corpus], self.say)
            self.prepared = ((settings, corpus), Context(settings, material, self.processes, self.command))
        return self.prepared[1]


def work(common: Common, job) -> Iterator:
    """Run a job in whichever process this is; yields its results, then the Span it took."""
    started = time.time()
    context = common.context(job.settings, job.corpus)
    common.say(str(job))
    yield from job.run(context)
    yield span_of(job.settings.name, placeless(job.corpus), started, context.material.backbone.device)


@dataclass(frozen=True)
class SeedJob:
    """Regimes of one seed to train and measure; `chosen` also holds those of heads that are borrowed."""

    settings: Experiment
    corpus: str
    seed: int
    regimes: tuple[str, ...]
    chosen: dict[str, Choice]
    trials: dict[str, dict]  # all losses of the sweep, for the records

    def __str__(self) -> str:
        protocol = "" if self.settings.protocol.honest else f" under {self.settings.protocol.preset}"
        return f"{self.corpus}, seed {self.seed}: {', '.join(self.regimes)}{protocol}"

    def run(self, context: Context) -> Iterator[tuple[Record, pd.DataFrame]]:
        """Train what is trained, read every split; yields each regime's record and its losses per document."""
        if not self.settings.protocol.honest:
            yield from measure_released(context, list(self.regimes), self.seed, self.corpus)
            return
        regimes, material = [REGIMES[name] for name in self.regimes], context.material
        cached = [r for r in regimes if r.procedure is None]
        outcomes = _cached_outcomes(context, cached, self.chosen, self.seed) if cached else {}
        seeded = seed_material(self.settings, material, self.seed)
        for r in regimes:
            choice = self.chosen.get(r.name)
            outcome = outcomes.get(r.name) or PROCEDURES[r.procedure](context, seeded, r, choice)
            metrics, documents = measured(material, outcome)
            record = record_of(context, r.name, self.corpus, self.seed, outcome, metrics)
            record.learning_rate_trials = self.trials.get(r.name, {})
            yield record, documents


def _cached_outcomes(context: Context, regimes: list[Regime], chosen: dict, seed: int) -> dict[str, Outcome]:
    """Heads on cached hidden states: one cohort per order, one reading of every split."""
    started = time.perf_counter()
    reset_peak(context.material.backbone.device)
    training = to_train(regimes)
    trained = train_seed(context, [(r, chosen[r.name]) for r in training], seed)
    members = {r.name: member for r, member in zip(training, trained)}
    read = time.perf_counter()
    seeded = seed_material(context.settings, context.material, seed)
    outcomes = measure(context, seeded, regimes, members)
    end = time.perf_counter()
    written = generated(context, seeded, regimes, members)
    writing = (time.perf_counter() - end) / max(1, len(written))
    for r in regimes:
        outcome = outcomes[r.name]
        outcome.member = members.get(r.weights_of or r.name)
        training_seconds = (read - started) / max(1, len(members)) if r.head else 0.0
        outcome.seconds = {"training": training_seconds, "evaluation": (end - read) / len(regimes)}
        if r.name in written:
            outcome.generated, outcome.seconds["generation"] = written[r.name], writing
    if members and not any(outcome.usable for outcome in outcomes.values()):
        raise RunFailed("every head of the cohort diverged: lower the learning rates")
    return outcomes
