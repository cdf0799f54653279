"""What one job of an experiment computes, in whichever process it runs, and what such a process must have for it.

    Common (sent once) + SeedJob (regimes of a seed) or SweepJob ─▶ records with losses per document, or losses ─▶ Span

Regimes that share an order of documents train side by side (one base product for each step).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from chameleon_lite.app.corpus import Corpus
from chameleon_lite.backbone import Backbone, load_backbone
from chameleon_lite.errors import RunFailed
from chameleon_lite.processes import Processes

from .cohort import Context, Say, Trial, train_seed
from .config import Experiment
from .evaluate import Outcome, documents_frame, measure, record_of
from .layers import PROCEDURES
from .prepare import prepare, seed_material
from .provenance import reset_peak
from .records import Record
from .regimes import REGIMES, Regime, regime
from .released.prepare import prepare_released
from .released.run import measure_released
from .spans import span_of
from .write import generated


@dataclass
class Common:
    """What every job of an experiment needs; other processes get it without what only this one has."""

    source: Path | dict[str, Corpus] | None  # the folder of corpora, or for other processes the corpora
    device: str | None
    command: str
    backbone: Backbone | None
    processes: Processes | None
    say: Say
    prepared: tuple[Any, Context | None] = field(default=(None, None), repr=False)

    def __getstate__(self) -> dict:
        return {"source": self.source, "device": self.device, "command": self.command}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state, backbone=None, processes=None, say=lambda text: None)

    def context(self, settings: Experiment, corpus: str) -> Context:
        """The corpus prepared under the settings: that of the job before, or prepared now."""
        if self.prepared[0] != (settings, corpus):
            self.prepared = (None, None)  # two corpora at once might be too large
            self.processes = self.processes or Processes()
            device = self.device or str(self.processes.device)
            self.backbone = self.backbone or load_backbone(settings.backbone, device=device)
            make = prepare if is_honest(settings) else prepare_released
            material = make(settings, self.backbone, corpus, data_dir=self.source, say=self.say)
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
        protocol = "" if is_honest(self.settings) else f" under {self.settings.protocol.preset}"
        return f"{self.corpus}, seed {self.seed}: {', '.join(self.regimes)}{protocol}"

    def run(self, context: Context) -> Iterator[tuple[Record, pd.DataFrame]]:
        """Yield each regime's record and its losses per document."""
        regimes = [regime(name) for name in self.regimes]
        if not is_honest(self.settings):
            yield from measure_released(context, regimes, self.seed, self.corpus)
            return
        for record, documents in measure_seed(context, regimes, self.rates, self.seed, self.corpus):
            record.learning_rate_trials = self.trials.get(REGIMES[record.regime].rate_of or record.regime, {})
            yield record, documents


def is_honest(settings: Experiment) -> bool:
    """Whether this follows the honest protocol; anything else goes through released/run.py."""
    return settings.protocol.preset == "honest" and not settings.protocol.switches


def lenders(regimes: list[Regime]) -> list[Regime]:
    """The regimes, not among these, whose trained heads these borrow."""
    borrowed = {r.weights_of for r in regimes if r.weights_of} - {r.name for r in regimes}
    return [REGIMES[name] for name in sorted(borrowed)]


def measure_seed(
    context: Context, regimes: list[Regime], rates: dict[str, float], seed: int, corpus: str
) -> Iterator[tuple[Record, pd.DataFrame]]:
    """Train what is trained, then read the test split once for every regime; yields records with documents' losses."""
    cached = [r for r in regimes if r.procedure is None]
    outcomes = _cached_outcomes(context, cached, rates, seed) if cached else {}
    for r in [*cached, *(r for r in regimes if r.procedure is not None)]:
        seeded = seed_material(context.settings, context.material, seed)
        outcome = outcomes.get(r.name) or PROCEDURES[r.procedure](context, seeded, r)
        yield record_of(context, r, outcome, seed, corpus), documents_frame(context.material, outcome)


def _cached_outcomes(context: Context, regimes: list[Regime], rates: dict, seed: int) -> dict[str, Outcome]:
    """Heads on cached hidden states: one cohort per order, one reading of every split."""
    started = time.perf_counter()
    reset_peak(context.material.scored["test"].device)
    training = [r for r in regimes if r.trained] + lenders(regimes)
    trials = train_seed(context, [Trial(r, rates[r.name]) for r in training], seed)
    trained = time.perf_counter()
    members = {t.regime.name: t.member for t in trials}
    seeded = seed_material(context.settings, context.material, seed)
    outcomes = measure(context, seeded, regimes, members)
    measured = time.perf_counter()
    written = generated(context, seeded, regimes, members)
    writing = (time.perf_counter() - measured) / max(1, len(written))
    for r in regimes:
        out, member = outcomes[r.name], members.get(r.weights_of or r.name)
        if member:
            out.learning_rate, out.stored_bytes = member.learning_rate, member.head.stored_bytes()
            out.failure, out.usable = member.failure, not member.failure or member.best_epoch > 0
        if member and r.trained:
            out.curve, out.trainable_parameters = member.curve, member.head.trainable_parameters()
        training_seconds = (trained - started) / max(1, len(trials)) if r.trained else 0.0
        out.seconds = {"training": training_seconds, "evaluation": (measured - trained) / len(regimes)}
        if r.name in written:
            out.generated, out.seconds["generation"] = written[r.name], writing
    if members and not any(out.usable for out in outcomes.values()):
        raise RunFailed("every head of the cohort diverged: lower the learning rates")
    return outcomes
