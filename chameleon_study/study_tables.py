"""The honest study's tables from StoredRuns: every mean with its n and interval, one frame per question."""

import numpy as np
import pandas as pd

from .claims.contrasts import StoredRuns
from .claims.rules import SIZES
from .claims.statistics import mean_and_span, mean_interval
from .regimes import REGIMES
from .tables import parameter_table

ACROSS = "R1 R2 R3 R4 R5 R6 R10 R11 R12 R13 R14 R15 R16 R17 R18 R20".split()
RARE = 0.005
STORED = ("R1", "R2", "R4", "R11-K2", "R11-K4", "R11-K8", "R11-K16", "R11", "R11b", "R12", "R15", "R20")


def regimes_frame(evidence: StoredRuns, corpus: str) -> pd.DataFrame:
    """One row per regime: loss with its 95 % interval, n, the difference from R0, parameters, rate."""
    rows = []
    for name, r in REGIMES.items():
        if (nll := evidence.nll(corpus, name)) is None:
            continue
        by_seed = np.stack([nll[0][seed] for seed in sorted(nll[0])])  # (S, N)
        mean = mean_interval(by_seed, nll[1], draws=min(evidence.draws, 2_000))
        record = evidence.runs(corpus, name)[0]
        against = evidence.contrast(corpus, name, "R0") if name != "R0" else None
        difference = against.row().values() if against else (None, None, None)
        row = {"regime": f"{name} (leak)" if r.leak else name, "what": r.title}
        row |= {"conditioned on": r.conditioned_on} | mean.row("nats a token")
        row |= {"n seeds": mean.n, "documents": mean.documents}
        row |= dict(zip(("difference from R0", "difference low", "difference high"), difference))
        row |= {"parameters": record.trainable_parameters, "stored bytes": record.stored_bytes}
        rows.append(row | {"learning rate": record.learning_rate})
    return pd.DataFrame(rows)


def across_frame(evidence: StoredRuns) -> pd.DataFrame:
    """Each regime's loss minus the frozen model's, one column per corpus: [95 % interval], nats per token."""
    columns = {}
    for corpus in evidence.corpora:
        contrasts = {name: c for name in ACROSS if (c := evidence.contrast(corpus, name, "R0"))}
        seeds = max((c.n for c in contrasts.values()), default=0)
        columns[f"{corpus}, n = {seeds}"] = {
            f"{name}: {REGIMES[name].title}": c.text("+.3f") + ("" if c.n == seeds else f" (n = {c.n})")
            for name, c in contrasts.items()
        }
    return pd.DataFrame(columns).rename_axis("regime minus R0").fillna("–")


def group_frame(evidence: StoredRuns, corpus: str) -> pd.DataFrame:
    """Loss by size of the conditioning group, with its paired difference from R6, the own prefix."""
    rows = [
        {"order": "clustered", "rows in a group": 2**power} | _row(evidence, corpus, name) | contrast.row()
        for power, name in enumerate(SIZES)
        if (contrast := evidence.contrast(corpus, name, "R6"))
    ]
    return pd.DataFrame(rows)


def pareto_frame(evidence: StoredRuns, corpus: str) -> pd.DataFrame:
    """Loss against stored bytes."""
    rows = [
        {"stored bytes": records[0].stored_bytes} | _row(evidence, corpus, name)
        for name in STORED
        if (records := evidence.runs(corpus, name))
    ]
    return pd.DataFrame(rows)


def position_frame(evidence: StoredRuns, corpus: str) -> pd.DataFrame:
    """Loss by scored position minus the frozen model's: the mean over seeds and its 95 % t interval.

    A bin is 16 tokens; bins with fewer than RARE of the scored tokens, a few long texts each, are left out.
    """
    runs = [r for name in ("R0", "R1", "R2", "R4", "R6", "R11") for r in evidence.runs(corpus, name)]
    points = [{"regime": r.regime, "seed": r.seed} | p for r in runs for p in r.positions]
    frame = pd.DataFrame(points, columns=["regime", "seed", "position", "nll", "tokens"])
    frame["loss"] = frame["nll"] / frame["tokens"]
    frozen = frame["regime"] == "R0"
    often = frame["tokens"] >= RARE * frame.groupby(["regime", "seed"])["tokens"].transform("sum")
    pairs = frame[~frozen].merge(frame[frozen & often], on=["seed", "position"], suffixes=("", "_before"))
    gains = (pairs["loss"] - pairs["loss_before"]).groupby([pairs["regime"], pairs["position"]], sort=False)
    rows = [(*key, *mean_and_span(values), len(values)) for key, values in gains]
    return pd.DataFrame(rows, columns=["regime", "position", "difference", "half", "n seeds"])


def foreign_frame(evidence: StoredRuns, corpus: str) -> pd.DataFrame:
    """What half foreign condition vectors cost the rows that keep their own, per regime that was read so."""
    rows = []
    for name in ("R1", "R4", "R5", "R6", "R10"):
        if cost := evidence.foreign_cost(corpus, name):
            rows.append({"regime": name, "foreign rows, %": 50, **cost.row("cost"), "n seeds": cost.n})
    return pd.DataFrame(rows)


def accounting_frame(evidence: StoredRuns, corpus: str) -> pd.DataFrame:
    """Bytes stored, seconds of training and of reading all held-out text per regime: means over seeds."""
    rows = []
    for (where, name), runs in evidence.records.items():
        if where == corpus:
            stages = [[r.seconds.get(stage, 0.0) for r in runs] for stage in ("training", "evaluation")]
            first, times = runs[0], map(float, np.mean(stages, axis=1))
            rows.append((name, first.stored_bytes, first.trainable_parameters, *times, len(runs)))
    columns = ["regime", "stored bytes", "trainable", "training s", "reading s", "n seeds"]
    return pd.DataFrame(rows, columns=columns)


def matched_frame() -> pd.DataFrame:
    """R2's rank and what its parameters differ by from the hyper-network's, for both backbones."""
    rows = []
    for backbone in ("gpt2", "smollm2"):
        counts = parameter_table(backbone)
        hyper, rank = counts["hyper_head"], counts["matched_rank"]
        matched = rank * (counts["width"] + counts["vocab"])
        rows.append((backbone, hyper, rank, matched, matched - hyper))
    return pd.DataFrame(rows, columns=["backbone", "hyper-network", "R2's rank", "R2", "difference"])


def _row(evidence: StoredRuns, corpus: str, regime: str) -> dict:
    losses = [r.metrics["test_nll"] for r in evidence.runs(corpus, regime)]
    mean, half = mean_and_span(losses)
    return {"regime": regime, "nll": mean, "half": half, "n seeds": len(losses)}
