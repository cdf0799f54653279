"""One regime's measured losses to a record and a table of per-document losses.

    Outcome (nll (N,) a split, head, curve) ─▶ Record + documents.parquet

The table holds what paired statistics need: test, other corpora's and foreign readings; validation and seen
documents leave their means in the record only. Where test prompts were continued, the scores of what was written
stand in further columns of the test rows (nan where a document was not asked); no text is kept.
"""

import math
import os
import sys
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor

from chameleon_lite.train import average

from .cohort import Context
from .config import Experiment
from .names import FOREIGN
from .prepare import SEEN, Material
from .provenance import provenance
from .records import Record, run_name
from .regimes import Regime
from .text_scores import COLUMNS

UNPAIRED = ("validation", SEEN)  # splits whose documents no contrast pairs


@dataclass
class Outcome:
    """What came of one regime under one seed."""

    nll: dict[str, Tensor]  # split or probe ▶ (N,) nats summed per document
    positions: list[dict[str, float]] = field(default_factory=list)
    learning_rate: float | None = None
    curve: list[dict] = field(default_factory=list)
    trainable_parameters: int = 0
    stored_bytes: int = 0
    failure: str | None = None
    kept: bool = True  # a usable checkpoint from before the failure exists and was evaluated
    seconds: dict[str, float] = field(default_factory=dict)
    generated: pd.DataFrame | None = None  # scores of continued test prompts, see generation.py


def split_of(name: str) -> str:
    """The split a reading's documents belong to: foreign rows surround those of the test split."""
    return "test" if name.startswith(FOREIGN) else name


def record_of(context: Context, r: Regime, found: Outcome, seed: int, corpus: str) -> Record:
    """The record of one run; metrics are named `<reading>_nll`, nats per token."""
    settings, material = context.settings, context.material
    device = material.scored["test"].device
    metrics = {}
    for name, values in found.nll.items():
        counts = material.scored[split_of(name)].counts
        metrics[f"{name}_nll"] = float(average(values, counts))
        if name in ("validation", "test"):
            size = material.tables[name].scored_bytes.sum()
            metrics[f"{name}_bits_per_byte"] = float(values.sum() / size) / math.log(2)
            metrics[f"{name}_row_mean_nll"] = float((values / counts.clamp_min(1)).mean())
    if found.generated is not None:
        metrics |= {f"generated_{name}": float(found.generated[name].mean()) for name in COLUMNS}
    clusters = material.seeds[seed].quality if seed in material.seeds else None
    return Record(
        **circumstances(settings, device, context.command),
        name=name_of(settings, r, corpus, seed),
        regime=r.name,
        corpus=corpus,
        seed=seed,
        learning_rate=found.learning_rate,
        metrics=metrics,
        curve=found.curve,
        positions=found.positions,
        trainable_parameters=found.trainable_parameters,
        stored_bytes=found.stored_bytes,
        seconds={**material.seconds, **found.seconds},
        status="done" if found.kept else "failed",
        failure=found.failure,
        data=material.facts() | {"clusters": clusters},
    )


def circumstances(settings: Experiment, device: torch.device, command: str) -> dict:
    """The fields of a record that do not depend on what was trained."""
    return {
        "experiment": settings.name,
        "backbone": settings.backbone,
        "profile": settings.profile,
        "settings": settings.model_dump(mode="json"),
        "peak_memory_bytes": peak_memory(device),
        "provenance": provenance(str(device), command),
    }


def documents_frame(material: Material, found: Outcome) -> pd.DataFrame:
    """One row per document and reading: its name, group, scored tokens and summed nll (nats)."""
    frames = []
    for name, values in found.nll.items():
        if name in UNPAIRED:
            continue
        table = material.tables[split_of(name)]
        columns = {"split": name, "document": table.names, "group": table.groups, "tokens": table.n_scored}
        frames.append(pd.DataFrame({**columns, "nll": values.numpy()}))
        if name == "test" and found.generated is not None:
            scores = found.generated.set_index("row").reindex(range(len(table)))
            frames[-1] = frames[-1].join(scores)
    return pd.concat(frames, ignore_index=True)


def name_of(settings: Experiment, r: Regime, corpus: str, seed: int) -> str:
    """The run's name; its key covers what changes the run's numbers, not which other runs the file lists."""
    rates = {k: v for k, v in settings.learning_rates.items() if k == r.name}
    alone = {"regimes": (r.name,), "corpora": (corpus,), "seeds": 1, "name": "run", "what": ""}
    key = settings.model_copy(update=alone | {"learning_rates": rates}).key()
    return run_name(r.name, settings.backbone, corpus, key, seed)


def reset_peak(device: torch.device) -> None:
    """Start counting the device's peak memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, int]:
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
