"""The heads of one seed: trained side by side, those of one order of documents together, then read on held-out text.

(regime, learning rate) ─ train_seed ─▶ members ─ one pass per order ─▶ nll (N,) by regime and split, and by position
  ─▶ Outcome ─▶ Record + documents.parquet

Read are the test split, other corpora's, seen documents, and the test split with foreign rows. The table of documents
holds what paired statistics need: test, other corpora's and foreign readings; validation and seen documents leave their
means in the record only. Where test prompts were continued, the scores of the texts are further columns of the test
rows (nan for documents that were not continued); no text is stored.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from chameleon_lite.backbone import Backbone
from chameleon_lite.heads import Head
from chameleon_lite.processes import Processes
from chameleon_lite.train import Member, Source, average, evaluate, train_heads

from .config import Experiment
from .prepare import SEEN, PreparedCorpus, SeedClusterings, seed_material
from .provenance import circumstances
from .records import FOREIGN, SCORES, TRANSFER, Record, name_of
from .regimes import CLUSTERED, REGIMES, Regime

POSITIONS = 16  # scored positions per bin of "nll by position"
UNPAIRED = ("validation", SEEN)  # splits whose documents no contrast pairs


@dataclass
class Context:
    """What the runs of one corpus share in the process that computes them."""

    settings: Experiment
    material: PreparedCorpus  # or a ReleasedCorpus, where a protocol is followed
    processes: Processes
    command: str


@dataclass
class Outcome:
    """What came of one regime under one seed."""

    nll: dict[str, Tensor] = field(default_factory=dict)  # reading ▶ (N,) nats per document, on the host
    positions: list[dict[str, float]] = field(default_factory=list)
    member: Member | None = None  # the trained head, perhaps another regime's
    seconds: dict[str, float] = field(default_factory=dict)
    generated: pd.DataFrame | None = None  # scores of continued test prompts, see write.py

    @property
    def usable(self) -> bool:
        """Whether nothing diverged, or a checkpoint from before exists and was evaluated."""
        return self.member is None or not self.member.failure or self.member.best_epoch > 0


def train_seed(context: Context, trials: Sequence[tuple[Regime, float]], seed: int) -> list[Member]:
    """A head for each (regime, learning rate), in that order, trained with one seed."""
    settings, material = context.settings, context.material
    seeded = seed_material(settings, material, seed)
    members, sources = [], {}  # sources by regime: its learning rates share them
    for r, rate in trials:
        if r.name not in sources:
            sources[r.name] = [source_of(r, seeded, split) for split in ("train", "validation")]
        head, name = _new_head(r, material.backbone, seeded), f"{r.name}@{rate:g}"
        members.append(Member(name, head, *sources[r.name], rate, seed=seed * 1_000_003))
    orders = [order_of(settings, r) for r, _ in trials]
    for order in sorted(set(orders)):
        train_heads(
            [m for m, of_member in zip(members, orders) if of_member == order],
            material.scored["train"],
            partial(seeded.epoch, "train", order),
            material.scored["validation"],
            seeded.epoch("validation", order, 0),
            material.weight,
            settings.train,
            context.processes,
        )
    return members


def order_of(settings: Experiment, r: Regime) -> str:
    """The order a regime's documents are trained and read in: its own, or the clustered one shared by all."""
    return CLUSTERED if settings.shared_order else r.order


def source_of(r: Regime, seeded: SeedClusterings, split: str, share: float = 0.0) -> Source | None:
    """A regime's condition source for a split, None without one; `share` of its vectors are foreign ones."""
    if r.source is None:
        return None
    return r.source(
        seeded.with_foreign(split, share) if share else seeded.splits[split], seeded.splits["train"]
    )


def _new_head(r: Regime, backbone: Backbone, seeded: SeedClusterings) -> Head:
    """A freshly initialised head on the device; the seed is of the head alone, whatever the cohort."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded.seed)
        return r.head(backbone, seeded.splits["train"]).to(backbone.device)


class PositionSums:
    """Sums of token losses (heads, bins) over bins of scored positions, on the device."""

    def __init__(self, bins: int) -> None:
        self.bins, self.nll, self.count = bins, 0.0, 0.0

    def __call__(self, nll: Tensor, document: Tensor) -> None:
        """Add a batch: nll (heads, M) and document numbers (M,), each document's rows side by side."""
        counts = torch.unique_consecutive(document, return_counts=True)[1]
        start = (counts.cumsum(0) - counts).repeat_interleave(counts)
        within = torch.arange(len(document), device=document.device) - start  # (M,) position in its document
        of_bin = one_hot((within // POSITIONS).clamp_max(self.bins - 1), self.bins).double()  # (M, bins)
        self.nll = self.nll + nll.double() @ of_bin
        self.count = self.count + of_bin.sum(0)

    def rows(self) -> list[list[dict[str, float]]]:
        """For every head the bins as {position, nll, tokens}; position is the bin's first, nll its sum in nats."""
        filled = [(i, count) for i, count in enumerate(self.count.tolist()) if count]
        return [
            [{"position": i * POSITIONS, "nll": nll[i], "tokens": count} for i, count in filled]
            for nll in self.nll.tolist()
        ]


def measure(
    context: Context, seeded: SeedClusterings, regimes: list[Regime], members: dict[str, Member]
) -> dict[str, Outcome]:
    """Read every split and probe once for every regime whose head (or that of `weights_of`) is at hand."""
    out = {r.name: Outcome() for r in regimes}
    material, settings, probes = context.material, context.settings.train, context.settings.probes
    readings = [(split, 0.0) for split in material.tables if split != "train"]
    readings += [("test", share) for share in probes.foreign_shares if material.foreign is not None]
    for split, share in readings:
        name = f"{FOREIGN}{round(100 * share)}" if share else split
        readers = [r for r in regimes if _reads(r, split, share, probes.foreign_regimes)]
        for order in sorted({order_of(context.settings, r) for r in readers}):
            cohort = [r for r in readers if order_of(context.settings, r) == order]
            watch = PositionSums(probes.position_bins) if name == "test" and probes.position_bins else None
            nll = evaluate(
                [head_and_source(r, members, seeded, split, share) for r in cohort],
                material.scored[split],
                seeded.epoch(split, order, 0),
                material.weight,
                rows=settings.rows_per_step,
                scale=settings.scale,
                processes=context.processes,
                watch=watch,
            )
            for r, values in zip(cohort, nll.cpu()):
                out[r.name].nll[name] = values
            for r, rows in zip(cohort, watch.rows() if watch else ()):
                out[r.name].positions = rows
    return out


def _reads(r: Regime, split: str, share: float, foreign_regimes) -> bool:
    """An oracle has labels of its own sources only; foreign rows are for the regimes named in the settings."""
    if split.startswith(TRANSFER) and r.name.endswith("oracle"):
        return False
    return not share or r.name in foreign_regimes


def head_and_source(
    r: Regime, members: dict[str, Member], seeded: SeedClusterings, split: str, share: float = 0.0
) -> tuple[Head | None, Source | None]:
    """A regime's head, None for the frozen model, and its condition source for a split (see `source_of`)."""
    member = members.get(r.weights_of or r.name)
    return member.head if member else None, source_of(r, seeded, split, share)


def split_of(name: str) -> str:
    """The split a reading's documents belong to: foreign rows surround those of the test split."""
    return "test" if name.startswith(FOREIGN) else name


def metrics_of(material: PreparedCorpus, outcome: Outcome) -> dict[str, float]:
    """`<reading>_nll` in nats per token, and what else a record says of the readings."""
    metrics = {}
    for name, values in outcome.nll.items():
        counts = material.scored[split_of(name)].counts
        metrics[f"{name}_nll"] = float(average(values, counts))
        if name in ("validation", "test"):
            size = material.tables[name].scored_bytes.sum()
            metrics[f"{name}_bits_per_byte"] = float(values.sum() / size) / math.log(2)
            metrics[f"{name}_row_mean_nll"] = float((values / counts.clamp_min(1)).mean())
    if outcome.generated is not None:
        metrics |= {f"generated_{name}": float(outcome.generated[name].mean()) for name in SCORES}
    return metrics


def record_of(
    context: Context, regime: str, corpus: str, seed: int, outcome: Outcome, metrics: dict
) -> Record:
    """The record of one run, under whichever protocol."""
    settings, material, member = context.settings, context.material, outcome.member
    own = member is not None and not REGIMES[regime].weights_of
    return Record(
        **circumstances(settings, material.backbone.device, context.command),
        name=name_of(settings, regime, corpus, seed),
        regime=regime,
        corpus=corpus,
        seed=seed,
        learning_rate=member.learning_rate if member else None,
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


def documents_frame(material: PreparedCorpus, outcome: Outcome) -> pd.DataFrame:
    """One row per document and reading: its name, group, scored tokens and summed nll (nats)."""
    frames = []
    for name, values in outcome.nll.items():
        if name in UNPAIRED:
            continue
        table = material.tables[split_of(name)]
        columns = {"split": name, "document": table.names, "group": table.groups, "tokens": table.n_scored}
        frames.append(pd.DataFrame({**columns, "nll": values.numpy()}))
        if name == "test" and outcome.generated is not None:
            frames[-1] = frames[-1].join(outcome.generated.set_index("row").reindex(range(len(table))))
    return pd.concat(frames, ignore_index=True)
