"""One YAML file in, records out: the only file that sees the whole line.

    Experiment ─ a corpus at a time: prepare ─ a seed at a time: cluster, arrange ─ cohorts of heads: fit, evaluate
                                                                         └▶ a folder a run under `runs/`

Regimes that share an order of documents train side by side (one base product a step); a regime without a
given learning rate is swept first, on validation, with seeds of its own. A run whose folder is complete is
not run again unless asked.
"""

import math
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch

from ..config import Experiment
from ..model.backbones import Backbone, load_backbone
from ..training.loop import Member, Processes, average
from .cohort import Context, Say, Trial, choose_rates, measure_split, train_seed
from .material import Material, prepare, seed_material
from .records import Record, provenance, read_run, run_name, write_run
from .regimes import Regime, regime


def run_experiment(
    settings: Experiment,
    *,
    runs: Path,
    data_dir: Path | None = None,
    device: str | None = None,
    resume: bool = True,
    command: str | None = None,
    backbone: Backbone | None = None,
    say: Say = lambda text: None,
) -> list[Record]:
    """Run (or find) every regime × corpus × seed of an experiment; returns the records in that order.

    `resume=True` keeps runs that are complete; False runs everything again. Raises UserError for settings that
    cannot be run and RunFailed when a whole cohort diverges; what was finished before stays on disk.
    """
    regimes = [regime(name) for name in settings.regimes]
    processes = Processes()
    device = device or str(processes.device)
    backbone = backbone or load_backbone(settings.backbone, device=device)
    records = []
    for corpus in settings.corpora:
        found = _found(settings, regimes, corpus, runs) if resume else {}
        if len(found) < len(regimes) * settings.seeds:
            material = prepare(settings, backbone, corpus, data_dir=data_dir, say=say)
            context = Context(settings, material, runs, processes, command or default_command(), say)
            found |= _run_corpus(context, regimes, found, corpus)
        records += [found[r.name, seed] for r in regimes for seed in range(settings.seeds)]
    return records


def expected_names(settings: Experiment) -> list[str]:
    """The names of all runs an experiment consists of, in its records' order."""
    return [
        _name(settings, regime(r), c, s)
        for c in settings.corpora
        for r in settings.regimes
        for s in range(settings.seeds)
    ]


def _run_corpus(context: Context, regimes: list[Regime], found: dict, corpus: str) -> dict:
    """Sweep what needs sweeping, then train and measure the missing runs seed by seed."""
    settings = context.settings
    missing = [r for r in regimes if any((r.name, s) not in found for s in range(settings.seeds))]
    rates, trials = choose_rates(context, [r for r in missing if r.trained])
    out = {}
    for seed in range(settings.seeds):
        todo = [r for r in missing if (r.name, seed) not in found]
        if not todo:
            continue
        context.say(f"{corpus}, seed {seed}: {', '.join(r.name for r in todo)}")
        for record, documents in measure_seed(context, todo, rates, seed, corpus):
            record.learning_rate_trials = trials.get(record.regime, {})
            if context.processes.index == 0:
                write_run(context.runs, record, documents)
            out[record.regime, seed] = record
    return out


def measure_seed(
    context: Context, regimes: list[Regime], rates: dict[str, float], seed: int, corpus: str
) -> Iterable[tuple[Record, pd.DataFrame]]:
    """Train what is trained, then read the test split once for every regime; yields records with documents' losses."""
    settings, material = context.settings, context.material
    started = time.perf_counter()
    _reset_peak(material.scored["test"].device)
    trials = train_seed(context, [Trial(r, rates[r.name]) for r in regimes if r.trained], seed)
    trained = time.perf_counter()
    members = {t.regime.name: t.member for t in trials}
    seeded = seed_material(settings, material, seed)
    nll = {split: measure_split(context, seeded, regimes, members, split) for split in ("validation", "test")}
    shares = {
        "training": (trained - started) / max(1, len(trials)),
        "evaluation": (time.perf_counter() - trained) / len(regimes),
    }
    for r in regimes:
        seconds = {**material.seconds, **shares, **({} if r.trained else {"training": 0.0})}
        own = {split: values[r.name] for split, values in nll.items()}
        yield _record(context, r, members.get(r.name), seed, corpus, own, seconds), _documents(material, own)


def _record(context: Context, r: Regime, member: Member | None, seed: int, corpus: str, nll, seconds) -> Record:
    settings, material = context.settings, context.material
    device = material.scored["test"].device
    metrics = {}
    for split, values in nll.items():
        metrics[f"{split}_nll"] = float(average(values, material.scored[split].counts))
        metrics[f"{split}_bits_per_byte"] = float(
            values.sum() / material.tables[split].scored_bytes.sum()
        ) / math.log(2)
        metrics[f"{split}_row_mean_nll"] = float((values / material.scored[split].counts.clamp_min(1)).mean())
    head = member.head if member else None
    return Record(
        name=_name(settings, r, corpus, seed),
        experiment=settings.name,
        regime=r.name,
        backbone=settings.backbone,
        corpus=corpus,
        seed=seed,
        profile=settings.profile,
        settings=settings.model_dump(mode="json"),
        learning_rate=member.learning_rate if member else None,
        metrics=metrics,
        curve=member.curve if member else [],
        trainable_parameters=head.trainable_parameters() if head else 0,
        stored_bytes=head.stored_bytes() if head else 0,
        seconds=seconds,
        peak_memory_bytes=_peak(device),
        status="failed" if member and member.failure and not member.state else "done",
        failure=member.failure if member else None,
        data=material.facts(),
        provenance=provenance(str(device), context.command),
    )


def _documents(material: Material, nll) -> pd.DataFrame:
    """One row a held-out document and split: its name, group, scored tokens and summed nll (nats)."""
    frames = []
    for split, values in nll.items():
        table = material.tables[split]
        frames.append(
            pd.DataFrame(
                {
                    "split": split,
                    "document": table.names,
                    "group": table.groups,
                    "tokens": table.n_scored,
                    "nll": values.numpy(),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def _found(settings: Experiment, regimes: list[Regime], corpus: str, runs: Path) -> dict:
    records = {
        (r.name, s): read_run(runs, _name(settings, r, corpus, s)) for r in regimes for s in range(settings.seeds)
    }
    return {key: record for key, record in records.items() if record is not None}


def _name(settings: Experiment, r: Regime, corpus: str, seed: int) -> str:
    """The run's name; its key covers what changes the run's numbers, not which other runs the file lists."""
    own = settings.model_copy(
        update={
            "regimes": (r.name,),
            "corpora": (corpus,),
            "seeds": 1,
            "name": "run",
            "what": "",
            "learning_rates": {k: v for k, v in settings.learning_rates.items() if k == r.name},
        }
    )
    return run_name(r.name, settings.backbone, corpus, own.key(), seed)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> dict[str, int]:
    """Peak bytes of the process on the host and, where there is one, of the device."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated(device)
    return peak


def default_command() -> str:
    """The command line as typed, for the record (`CHAMELEON_LITE_COMMAND` where a notebook stands for it)."""
    return os.environ.get("CHAMELEON_LITE_COMMAND") or " ".join(["chameleon-lite", *sys.argv[1:]])
