"""The heads of one seed: trained side by side, those of one order of documents together, then read on held-out text.

(regime, choice) ─ train_seed ─▶ members ─ one pass per order ─▶ nll (N,) by regime and split, and by position
  ─▶ Outcome ─▶ Record + documents.parquet

Read are the test split, other corpora's, seen documents, and the test split's clean rows among foreign ones, beside
the same rows as they are without any. Scores of continued test prompts are further columns of the test rows (nan for
documents that were not continued); no text is stored.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from chameleon_lite.processes import Processes
from chameleon_lite.train import Member, Source, average

from .config import Experiment
from .prepare import SEEN, Material, PreparedCorpus, SeedClusterings, seed_material
from .provenance import circumstances, placeless
from .records import CLEAN, FOREIGN, SCORES, TRANSFER, WITHIN, Record, name_of
from .regimes import CLUSTERED, REGIMES, Choice, Chosen, Regime, new_head, seen

POSITIONS = 16  # scored positions per bin of "nll by position"
Members = dict[str, Member]  # by regime, also of those that lend their heads
UNPAIRED = ("validation", SEEN)  # splits whose documents no contrast pairs


@dataclass
class Context:
    """What the runs of one corpus share in the process that computes them."""

    settings: Experiment
    material: Material
    processes: Processes
    command: str


@dataclass
class Outcome:
    """What came of one regime under one seed."""

    nll: dict[str, Tensor] = field(default_factory=dict)  # reading ▶ (N,) nats per document, on the host
    rows: dict[str, Tensor] = field(default_factory=dict)  # reading ▶ (N,) its documents, if it has not all
    positions: list[dict[str, float]] = field(default_factory=list)
    member: Member | None = None  # the trained head, perhaps another regime's
    seconds: dict[str, float] = field(default_factory=dict)
    generated: pd.DataFrame | None = None  # scores of continued test prompts, see write.py

    def read(self, name: str, nll: Tensor, clean: Tensor | None) -> None:
        """Keep a reading (N,); with foreign rows the clean ones of it alone, and the same of the test reading."""
        if clean is None:
            self.nll[name] = nll
            return
        for reading, values in ((name, nll), (name.replace(FOREIGN, CLEAN), self.nll["test"])):
            self.nll[reading], self.rows[reading] = values[clean], clean

    @property
    def usable(self) -> bool:
        """Whether nothing diverged, or a checkpoint from before exists and was evaluated."""
        return self.member is None or not self.member.failure or self.member.best_epoch > 0


def new_members(context: Context, seeded: SeedClusterings, trials: Sequence[tuple[Regime, Choice]]) -> list:
    """An untrained head, a Chosen, for each regime and choice, in that order."""
    backbone, seed, epochs = context.material.backbone, seeded.seed, context.settings.train.epochs
    members, sources = [], {}
    for r, choice in trials:
        with torch.random.fork_rng(devices=[]):  # the seed is of the head alone, whatever the cohort
            torch.manual_seed(seed)
            head = new_head(r, choice, backbone, seeded.splits["train"]).to(backbone.device)
        if (key := (r.name, choice.view, choice.transform)) not in sources:  # shared by learning rates
            sources[key] = [source_of(r, seeded, split, choice) for split in ("train", "validation")]
        cosine = min(context.settings.sweep.cosine_epochs, epochs) if choice.schedule == "cosine" else 0
        how = {"seed": seed * 1_000_003, "cosine": cosine, "choice": choice}
        members.append(Chosen(f"{r.name}@{choice.name}", head, *sources[key], choice.rate, **how))
    return members


def train_seed(context: Context, trials: Sequence[tuple[Regime, Choice]], seed: int) -> list[Chosen]:
    """A head on cached states for each regime and choice, in that order, trained with one seed."""
    settings, material, cohorts = context.settings, context.material, {}
    seeded = seed_material(settings, material, seed)
    members = new_members(context, seeded, trials)
    for (r, _), member in zip(trials, members):
        cohorts.setdefault(order_of(settings, r), []).append(member)
    for order, cohort in sorted(cohorts.items()):
        material.train(cohort, partial(seeded.epoch, order=order), settings.train, context.processes)
    return members


def order_of(settings: Experiment, r: Regime) -> str:
    """The order a regime's documents are trained and read in: its own, or the clustered one shared by all."""
    return CLUSTERED if settings.shared_order else r.order


def source_of(r: Regime, seeded: SeedClusterings, split: str, choice: Choice | None = None) -> Source | None:
    """A regime's condition source for a split, of the vectors that are chosen; None without one."""
    if r.source is None:
        return None
    splits = [seeded.splits[name] for name in (split, "train")]
    return r.source(*(seen(own, splits[1], choice) if choice else own for own in splits))


class PositionSums:
    """Sums of token losses (heads, bins) over bins of scored positions, on the device."""

    def __init__(self, bins: int) -> None:
        self.bins, self.sums = bins, 0.0  # (heads + 1, bins), the last row counts tokens

    def __call__(self, nll: Tensor, document: Tensor) -> None:
        """Add a batch: nll (heads, M) and document numbers (M,), each document's rows side by side."""
        counts = torch.unique_consecutive(document, return_counts=True)[1]
        start = (counts.cumsum(0) - counts).repeat_interleave(counts)
        within = torch.arange(len(document), device=document.device) - start  # (M,) position in its document
        of_bin = one_hot((within // POSITIONS).clamp_max(self.bins - 1), self.bins).double()  # (M, bins)
        self.sums = self.sums + torch.cat([nll, torch.ones_like(nll[:1])]).double() @ of_bin

    def rows(self) -> list[list[dict[str, float]]]:
        """For every head the bins as {position, nll, tokens}; position is the bin's first, nll its sum in nats."""
        *heads, counts = self.sums.tolist()
        places = [(i, count) for i, count in enumerate(counts) if count]
        return [[{"position": i * POSITIONS, "nll": nll[i], "tokens": n} for i, n in places] for nll in heads]


def measure(context: Context, seeded: SeedClusterings, regimes: list[Regime], members: Members) -> dict:
    """Read every split and probe once for every regime; returns each one's Outcome by name.

    An oracle has labels of its own sources only; foreign rows are for the regimes named in the settings.
    """
    settings, material, out = context.settings, context.material, {r.name: Outcome() for r in regimes}
    probes, train = settings.probes, settings.train
    readings = [(split, split, seeded) for split in material.tables if split != "train"]
    for share in probes.foreign_shares if material.foreign is not None else ():
        readings.append((f"{FOREIGN}{round(100 * share)}", "test", seeded.with_foreign("test", share)))
    for name, split, given in readings:
        cohorts: dict[str, list[Regime]] = {}
        for r in regimes:
            blind = split.startswith(TRANSFER) and r.name.endswith("oracle")
            if not blind and (name == split or r.name in probes.foreign_regimes):
                cohorts.setdefault(order_of(settings, r), []).append(r)
        for order, cohort in sorted(cohorts.items()):
            watch = PositionSums(probes.position_bins) if name == "test" and probes.position_bins else None
            heads = [head_and_source(r, members, given, split) for r in cohort]
            how = {"rows": train.rows_per_step, "scale": train.scale, "processes": context.processes}
            nll = material.nll(heads, split, seeded.epoch(split, order, 0), watch=watch, **how)
            for r, values in zip(cohort, nll):
                out[r.name].read(name, values, given.clean)
            for r, rows in zip(cohort, watch.rows() if watch else ()):
                out[r.name].positions = rows
    return out


def head_and_source(r: Regime, members: Members, seeded: SeedClusterings, split: str) -> tuple:
    """A regime's head, None for the frozen model, and its condition source for a split (see `source_of`)."""
    member = members.get(r.weights_of or r.name)
    return member and member.head, source_of(r, seeded, split, getattr(member, "choice", None))


def measured(material: PreparedCorpus, outcome: Outcome) -> tuple[dict[str, float], pd.DataFrame]:
    """What is stored of an outcome's readings: means for the record, and one row per document for paired statistics.

    Metrics are `<reading>_nll` in nats per token and others by name; columns split, document, group, tokens (scored)
    and nll (summed nats).
    """
    metrics, frames, scores = {}, [], outcome.generated
    for name, nll in outcome.nll.items():
        split = "test" if name.startswith((FOREIGN, CLEAN)) else name
        table, counts = material.tables[split], material.scored[split].counts
        if (rows := outcome.rows.get(name)) is not None:
            table, counts = table.take(rows), counts[rows]
        metrics[f"{name}_nll"] = float(average(nll, counts))
        if name in ("validation", "test"):
            metrics[f"{name}_bits_per_byte"] = float(nll.sum() / table.scored_bytes.sum()) / math.log(2)
            metrics[f"{name}_row_mean_nll"] = float((nll / counts.clamp_min(1)).mean())
        if name not in UNPAIRED:
            columns = {"split": name, "document": table.names, "group": table.groups}
            frames.append(pd.DataFrame(columns | {"tokens": table.n_scored, "nll": nll.numpy()}))
        if name == "test" and scores is not None:
            frames[-1] = frames[-1].join(scores.set_index("row").reindex(range(len(table))))
            means = scores[list(SCORES)].mean()
            alone = means.isna() & (means.index == WITHIN)  # no two texts were of one batch
            metrics |= {f"generated_{column}": float(mean) for column, mean in means[~alone].items()}
    return metrics, pd.concat(frames, ignore_index=True)


def record_of(context: Context, regime: str, corpus: str, seed: int, outcome: Outcome, metrics) -> Record:
    """The record of one run, under whichever protocol."""
    settings, material, member = context.settings, context.material, outcome.member
    own = member and not REGIMES[regime].weights_of
    return Record(
        **circumstances(settings, material.backbone.device, context.command),
        name=name_of(settings, regime, corpus, seed),
        regime=regime,
        corpus=placeless(corpus),
        seed=seed,
        learning_rate=member.learning_rate if member else None,
        choice=member.choice.others if isinstance(member, Chosen) else {},
        metrics=metrics,
        curve=member.curve if own else [],
        positions=outcome.positions,
        trainable_parameters=member.head.trainable_parameters() if own else 0,
        stored_bytes=member.head.stored_bytes() if member else 0,
        seconds={**material.seconds, **outcome.seconds},
        status="done" if outcome.usable else "failed",
        failure=member.failure if member else None,
        data=material.facts(seed),
    )
