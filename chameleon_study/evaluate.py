"""Trained heads are evaluated on held-out documents: test, other corpora's, seen ones, and with foreign rows.

heads ─ one pass per order of documents ─▶ nll (N,) by regime and split, and by position for the test split
  ─▶ Outcome ─▶ Record + documents.parquet

The table of documents holds what paired statistics need: test, other corpora's and foreign readings; validation and
seen documents leave their means in the record only. Where test prompts were continued, the scores of the texts are
further columns of the test rows (nan for documents that were not continued); no text is stored.
"""

import math
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from chameleon_lite.heads import Head
from chameleon_lite.train import Member, Source, average, evaluate

from .cohort import Context, order_of, source_of
from .config import Experiment
from .prepare import SEEN, PreparedCorpus, SeedClusterings
from .provenance import circumstances
from .records import FOREIGN, TRANSFER, Record, run_name
from .regimes import Regime
from .text_scores import COLUMNS

POSITIONS = 16  # scored positions per bin of "nll by position"
UNPAIRED = ("validation", SEEN)  # splits whose documents no contrast pairs


@dataclass
class Outcome:
    """What came of one regime under one seed."""

    nll: dict[str, Tensor] = field(default_factory=dict)  # reading ▶ (N,) nats per document, on the host
    positions: list[dict[str, float]] = field(default_factory=list)
    learning_rate: float | None = None
    curve: list[dict] = field(default_factory=list)
    trainable_parameters: int = 0
    stored_bytes: int = 0
    failure: str | None = None
    usable: bool = True  # a checkpoint from before the failure exists and was evaluated
    seconds: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)  # beside those of `nll`
    generated: pd.DataFrame | None = None  # scores of continued test prompts, see write.py


class PositionSums:
    """Sums of token losses (heads, bins) over bins of scored positions, on the device."""

    def __init__(self, offsets: Tensor, bins: int) -> None:
        self.offsets, self.bins = offsets, bins
        self.nll: Tensor | float = 0.0
        self.count: Tensor | float = 0.0

    def __call__(self, nll: Tensor, document: Tensor) -> None:
        """Add a batch: nll (heads, M) and document numbers (M,), each document's rows side by side."""
        start = torch.ones_like(document, dtype=torch.bool)
        start[1:] = document[1:] != document[:-1]
        index = torch.arange(len(document), device=document.device)
        within = index - torch.cummax(torch.where(start, index, 0), 0).values  # (M,) position in its document
        of_bin = one_hot((within // POSITIONS).clamp_max(self.bins - 1), self.bins).double()  # (M, bins)
        self.nll = self.nll + nll.double() @ of_bin
        self.count = self.count + of_bin.sum(0)

    def rows(self) -> list[list[dict[str, float]]]:
        """For every head the bins as {position, nll, tokens}; position is the bin's first, nll its sum in nats."""
        filled = [(i * POSITIONS, count) for i, count in enumerate(self.count.tolist()) if count]
        return [
            [{"position": at, "nll": nll[at // POSITIONS], "tokens": count} for at, count in filled]
            for nll in self.nll.tolist()
        ]


def measure(
    context: Context, seeded: SeedClusterings, regimes: list[Regime], members: dict[str, Member]
) -> dict[str, Outcome]:
    """Read every split and probe once for every regime whose head (or that of `weights_of`) is at hand."""
    out = {r.name: Outcome() for r in regimes}
    material, settings, probes = context.material, context.settings.train, context.settings.probes
    jobs = [(split, 0.0) for split in ("validation", "test", *material.probes)]
    jobs += [("test", share) for share in probes.foreign_shares if material.foreign is not None]
    for split, share in jobs:
        name = f"{FOREIGN}{round(100 * share)}" if share else split
        readers = [r for r in regimes if _reads(r, split, share, probes.foreign_regimes)]
        for order in sorted({order_of(context.settings, r) for r in readers}):
            cohort = [r for r in readers if order_of(context.settings, r) == order]
            watch = None
            if name == "test" and probes.position_bins:
                watch = PositionSums(material.scored[split].offsets, probes.position_bins)
            nll = evaluate(
                [head_and_source(r, members, material, seeded, split, share) for r in cohort],
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
    r: Regime,
    members: dict[str, Member],
    material: PreparedCorpus,
    seeded: SeedClusterings,
    split: str,
    share: float = 0.0,
) -> tuple[Head | None, Source | None]:
    """A regime's head, None for the frozen model, and its condition source for a split.

    `share` of the split's condition vectors are replaced by foreign ones.
    """
    member = members.get(r.weights_of or r.name)
    return member.head if member else None, source_of(r, material, seeded, split, share)


def split_of(name: str) -> str:
    """The split a reading's documents belong to: foreign rows surround those of the test split."""
    return "test" if name.startswith(FOREIGN) else name


def record_of(context: Context, r: Regime, outcome: Outcome, seed: int, corpus: str) -> Record:
    """The record of one run; metrics are named `<reading>_nll`, nats per token."""
    material, metrics = context.material, dict(outcome.metrics)
    for name, values in outcome.nll.items():
        counts = material.scored[split_of(name)].counts
        metrics[f"{name}_nll"] = float(average(values, counts))
        if name in ("validation", "test"):
            size = material.tables[name].scored_bytes.sum()
            metrics[f"{name}_bits_per_byte"] = float(values.sum() / size) / math.log(2)
            metrics[f"{name}_row_mean_nll"] = float((values / counts.clamp_min(1)).mean())
    if outcome.generated is not None:
        metrics |= {f"generated_{name}": float(outcome.generated[name].mean()) for name in COLUMNS}
    data = material.facts()
    if isinstance(material, PreparedCorpus):
        data["clusters"] = material.seeds[seed].quality if seed in material.seeds else None
    return Record(
        **circumstances(context.settings, material.backbone.device, context.command),
        name=name_of(context.settings, r, corpus, seed),
        regime=r.name,
        corpus=corpus,
        seed=seed,
        learning_rate=outcome.learning_rate,
        metrics=metrics,
        curve=outcome.curve,
        positions=outcome.positions,
        trainable_parameters=outcome.trainable_parameters,
        stored_bytes=outcome.stored_bytes,
        seconds={**material.seconds, **outcome.seconds},
        status="done" if outcome.usable else "failed",
        failure=outcome.failure,
        data=data,
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


def name_of(settings: Experiment, r: Regime, corpus: str, seed: int) -> str:
    """The run's name; its key covers what changes the run's numbers, not which other runs the file lists."""
    rates = {k: v for k, v in settings.learning_rates.items() if k == r.name}
    alone = {"regimes": (r.name,), "corpora": (corpus,), "seeds": 1, "name": "run", "what": ""}
    key = settings.model_copy(update=alone | {"learning_rates": rates}).key()
    return run_name(r.name, settings.backbone, corpus, key, seed)
