"""What one job of an experiment computes, in whichever process it runs, and what such a process must have for it.

    Common (sent once) + SeedJob (regimes of a seed) or SweepJob ─▶ records with losses per document, or losses ─▶ Span

Regimes that share an order of documents train side by side (one base product for each step).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from chameleon_lite.app.corpus import Corpus
from chameleon_lite.backbone import Backbone, load_backbone
from chameleon_lite.errors import RunFailed
from chameleon_lite.processes import Processes

from .config import Experiment
from .evaluate import Context, Outcome, Say, documents_frame, measure, metrics_of, record_of, train_seed
from .layers import PROCEDURES
from .prepare import prepare, seed_material
from .provenance import reset_peak
from .records import Record
from .regimes import REGIMES, Regime
from .released.prepare import prepare_released
from .released.run import measure_released
from .spans import span_of
from .write import generated


def silent(text: str) -> None:
    """Says nothing: jobs in other processes."""


@dataclass
class Common:
    """What every job of an experiment needs; the defaults are for other processes."""

    corpora: dict[str, Corpus]
    device: str | None
    command: str
    backbone: Backbone | None = None
    processes: Processes | None = None
    say: Say = silent
    prepared: tuple[Any, Context | None] = (None, None)

    def context(self, settings: Experiment, corpus: str) -> Context:
        """The corpus prepared under the settings: that of the job before, or prepared now."""
        if self.prepared[0] != (settings, corpus):
            self.prepared = (None, None)  # two corpora at once might be too large
            self.processes = self.processes or Processes()
            device = self.device or str(self.processes.device)
            self.backbone = self.backbone or load_backbone(settings.backbone, device=device)
            texts = self.corpora[corpus]
            if settings.protocol.honest:
                others = {name: self.corpora[name] for name in settings.probes.corpora if name != corpus}
                material = prepare(settings, self.backbone, texts, others, self.say)
            else:
                material = prepare_released(settings, self.backbone, texts, self.say)
            context = Context(settings, material, self.processes, self.command, self.say)
            self.prepared = ((settings, corpus), context)
        return self.prepared[1]


def work(common: Common, job) -> Iterator:
    """Run a job in whichever process this is; yields its results, then the Span it took."""
    started = time.time()
    context = common.context(job.settings, job.corpus)
    common.say(str(job))
    yield from job.run(context)
    yield span_of(job.settings.name, job.corpus, started, context.material.backbone.device)


@dataclass(frozen=True)
class SeedJob:
    """Regimes of one seed to train and measure; `rates` also holds those of heads that are borrowed."""

    settings: Experiment
    corpus: str
    seed: int
    regimes: tuple[str, ...]
    rates: dict[str, float]
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
        outcomes = _cached_outcomes(context, cached, self.rates, self.seed) if cached else {}
        seeded = seed_material(self.settings, material, self.seed)
        for r in regimes:
            outcome = outcomes.get(r.name) or PROCEDURES[r.procedure](context, seeded, r)
            metrics = metrics_of(material, outcome)
            record = record_of(context, r.name, self.corpus, self.seed, outcome, metrics)
            record.learning_rate_trials = self.trials.get(r.rate_of or r.name, {})
            yield record, documents_frame(material, outcome)


def lenders(regimes: list[Regime]) -> list[Regime]:
    """The regimes, not among these, whose trained heads these borrow."""
    borrowed = {r.weights_of for r in regimes if r.weights_of} - {r.name for r in regimes}
    return [REGIMES[name] for name in sorted(borrowed)]


def _cached_outcomes(context: Context, regimes: list[Regime], rates: dict, seed: int) -> dict[str, Outcome]:
    """Heads on cached hidden states: one cohort per order, one reading of every split."""
    started = time.perf_counter()
    reset_peak(context.material.backbone.device)
    training = [r for r in regimes if r.trained] + lenders(regimes)
    trained = train_seed(context, [(r, rates[r.name]) for r in training], seed)
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
        training_seconds = (read - started) / max(1, len(members)) if r.trained else 0.0
        outcome.seconds = {"training": training_seconds, "evaluation": (end - read) / len(regimes)}
        if r.name in written:
            outcome.generated, outcome.seconds["generation"] = written[r.name], writing
    if members and not any(outcome.usable for outcome in outcomes.values()):
        raise RunFailed("every head of the cohort diverged: lower the learning rates")
    return outcomes
