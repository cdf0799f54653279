"""One YAML file in, records out: the only file that sees the whole line.

    Experiment ─▶ SweepJob (a seed's heads at several rates) ─▶ rates ─▶ SeedJob (regimes of a seed) ─▶ records
                                                                               └▶ a folder for each run under `runs/`

Jobs run in this process or are shared out (app/workers.py): settings go out, records come back, and only this
process writes. A run whose folder is complete is not run again unless asked.
"""

from collections.abc import Iterator
from pathlib import Path

from chameleon_lite.app.workers import Workers, check_device
from chameleon_lite.backbone import Backbone, load_backbone
from chameleon_lite.errors import UserError
from chameleon_lite.processes import Processes

from .cohort import Say
from .config import Experiment
from .evaluate import name_of
from .jobs import Common, SeedJob, is_honest, lenders, work
from .prepare import corpus_by_name
from .provenance import default_command
from .records import Record, read_run, write_run
from .regimes import Regime, regime
from .released.protocol import mended
from .released.run import check_released
from .spans import Span, note
from .sweep import Losses, SweepFiles, choose_rates, estimate, sweep_jobs
from .write import writing


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
    whose protocol has a `mend` list runs once for each of its stops, the records of a stop together. Raises UserError
    for settings that cannot be run, RunFailed when a whole cohort diverges; what was finished before is on disk.
    """
    writing(settings)  # refuses, before anything is trained, what could not write
    if not is_honest(settings):
        check_released(settings)
    processes = Processes()
    common = Common(data_dir, device, command or default_command(), backbone, processes, say)
    if workers or dask:
        _check_shared(common, settings)
    records = {name: read_run(runs, name) for name in expected_names(settings)} if resume else {}
    records = {name: record for name, record in records.items() if record is not None}
    with Workers(common, workers, dask) as crew:
        jobs = _seed_jobs(settings, crew, runs, set(records))
        for record, documents in _results(crew, jobs if crew.alone else list(jobs), runs):
            if processes.index == 0:
                write_run(runs, record, documents)
            records[record.name] = record
            if record.failure:
                done = record.status == "done"
                left = "its best state before that is kept" if done else "lower its learning rate"
                say(f"{record.regime}, seed {record.seed}: {record.failure}; {left}")
    return [records[name] for name in expected_names(settings)]


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


def _check_shared(common: Common, settings: Experiment) -> None:
    """Refuse what other processes cannot take, and read the corpora that they are sent."""
    if common.processes.count > 1:
        raise UserError("torchrun shares the steps of a run: leave --workers and --dask out")
    if common.backbone is not None:
        raise UserError("workers load the backbone by its name: give none, or run in one process")
    check_device(common.device)
    names = [*settings.corpora, *settings.probes.corpora]
    common.source = {name: corpus_by_name(name, common.source) for name in names}


def _seed_jobs(settings: Experiment, crew: Workers, runs: Path, done: set[str]) -> Iterator[SeedJob]:
    """The jobs of what is missing, corpus by corpus, after the corpus's sweep; regimes without a cache apart."""
    regimes = [regime(name) for name in settings.regimes]
    for stop, corpus in [(stop, corpus) for stop in stops(settings) for corpus in settings.corpora]:
        todo = {}
        for seed in range(settings.seeds):
            todo[seed] = [r for r in regimes if name_of(stop, r, corpus, seed) not in done]
        missing = [r for r in regimes if any(r in of_seed for of_seed in todo.values())]
        rates, trials = _rates(stop, corpus, missing, crew, runs) if missing and is_honest(stop) else ({}, {})
        for seed, of_seed in todo.items():
            apart = [[r] for r in of_seed if r.procedure is not None and is_honest(stop)]
            together = [r for r in of_seed if [r] not in apart]
            for group in filter(None, [together, *apart]):
                yield SeedJob(stop, corpus, seed, tuple(r.name for r in group), rates, trials)


def _rates(settings: Experiment, corpus: str, missing: list[Regime], crew: Workers, runs: Path) -> tuple:
    """Learning rates of all heads that must be trained, and every loss of their sweep."""
    trained = [r for r in missing if r.trained]
    if trained and crew.alone:
        crew.common.say(estimate(crew.common.context(settings, corpus), trained))

    def measured(wanted: list[tuple[str, float]]) -> Losses:
        jobs, sweeps = sweep_jobs(settings, corpus, wanted), _sweep_files(settings, corpus, crew, runs)
        losses = sweeps.read(jobs)
        left = [job.without(losses) for job in jobs]
        for key, loss in _results(crew, [job for job in left if job.heads], runs):
            losses[key] = loss
            if crew.common.processes.index == 0:
                sweeps.write(key, loss)
        return {key: losses[key] for job in jobs for key in job.keys}

    rates, trials = choose_rates(settings, trained, measured)
    borrowed = [r for r in lenders(missing) if r.name not in rates]
    return rates | choose_rates(settings, borrowed, measured)[0], trials


def _sweep_files(settings: Experiment, corpus: str, crew: Workers, runs: Path) -> SweepFiles:
    common = crew.common
    if crew.alone:
        read = common.context(settings, corpus).material.corpus
    else:
        read, common.backbone = common.source[corpus], common.backbone or load_backbone(settings.backbone)
    return SweepFiles(runs / "sweeps", settings, read.name, read.hash, common.backbone.hash)


def _results(crew: Workers, jobs: list, runs: Path) -> Iterator[tuple]:
    """The results of jobs as they come; the Span of each finished job is stored, and logged where work is shared."""
    for job, result in crew.share(work, jobs):
        if not isinstance(result, Span):
            yield result
            continue
        if crew.common.processes.index == 0:
            note(result, runs)
        if not crew.alone:
            crew.common.say(f"{job}, {result.ended - result.started:.0f} s")
