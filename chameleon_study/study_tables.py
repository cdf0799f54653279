"""The honest study's tables: every mean with its n and interval, one frame per question."""

from importlib.resources import files
from itertools import product

import numpy as np
import pandas as pd
import yaml

from .claims.contrasts import StoredRuns
from .claims.statistics import mean_and_span, mean_interval
from .parameters import parameter_table
from .records import FOREIGN
from .regimes import REGIMES

SHOWN = yaml.safe_load((files(__package__) / "study_tables.yaml").read_text(encoding="utf-8"))
RARE = 0.005  # of a corpus's scored tokens


def regimes_frame(evidence: StoredRuns, corpus: str) -> pd.DataFrame:
    """One row per regime: nats per token with its 95 % interval, n, the difference from R0, parameters and the rate."""
    rows = []
    for name, r in REGIMES.items():
        if (nll := evidence.nll(corpus, name)) is None:
            continue
        by_seed = np.stack([nll[0][seed] for seed in sorted(nll[0])])  # (S, N)
        mean = mean_interval(by_seed, nll[1], draws=min(evidence.draws, 2_000))
        record = evidence.runs(corpus, name)[0]
        against = evidence.contrast(corpus, name, "R0") if name != "R0" else None
        row = {"regime": f"{name} (leak)" if r.leak else name, "what": r.title}
        row |= {"conditioned on": r.conditioned_on} | mean.row("nats a token")
        row |= {"n seeds": mean.n, "documents": mean.documents}
        for column, value in ("from R0", "difference"), ("low", "low"), ("high", "high"):
            row[f"difference {column}"] = getattr(against, value, None)
        row |= {"parameters": record.trainable_parameters, "stored bytes": record.stored_bytes}
        rows.append(row | {"learning rate": record.learning_rate})
    return pd.DataFrame(rows)


def across_frame(evidence: StoredRuns) -> pd.DataFrame:
    """Each regime's loss minus the frozen model's, one column per corpus: [95 % interval], nats per token."""
    columns = {}
    for corpus in evidence.corpora:
        contrasts = {name: c for name in SHOWN["across"] if (c := evidence.contrast(corpus, name, "R0"))}
        seeds = max((c.n for c in contrasts.values()), default=0)
        columns[f"{corpus}, n = {seeds}"] = {
            f"{name}: {REGIMES[name].title}": c.text("+.3f") + ("" if c.n == seeds else f" (n = {c.n})")
            for name, c in contrasts.items()
        }
    return pd.DataFrame(columns).rename_axis("regime minus R0").fillna("–")


def controls_frame(evidence: StoredRuns) -> pd.DataFrame:
    """What else could explain R4's loss: its control, R4's loss minus the control's, and the verdict, for each corpus.

    A negative difference says that R4 is lower; "confirmed" then means: by more than 0.01 nats per token.
    """
    rows = []
    for explanation, name in SHOWN["controls"].items():
        row = {"instead of the batch's context": explanation, "contrast": name}
        for corpus in evidence.corpora:
            member = evidence.family(corpus).get(name)
            row[corpus] = f"{member.contrast.text()} {member.verdict}" if member else "–"
        rows.append(row)
    return pd.DataFrame(rows)


def group_frame(evidence: StoredRuns, corpus: str) -> pd.DataFrame:
    """Loss by order and size of the conditioning group, with its paired difference from R6."""
    rows = [
        {"order": kind, "rows in a group": size} | _row(evidence, corpus, name) | contrast.row()
        for kind, sizes in SHOWN["groups"].items()
        for name, size in sizes.items()
        if (contrast := evidence.contrast(corpus, name, "R6"))
    ]
    return pd.DataFrame(rows)


def pareto_frame(evidence: StoredRuns, corpus: str) -> pd.DataFrame:
    """Loss against stored bytes."""
    rows = [
        {"stored bytes": records[0].stored_bytes} | _row(evidence, corpus, name)
        for name in SHOWN["stored"]
        if (records := evidence.runs(corpus, name))
    ]
    return pd.DataFrame(rows)


def position_frame(evidence: StoredRuns, corpus: str) -> pd.DataFrame:
    """Loss by scored position minus the frozen model's: the mean over seeds and its 95 % t interval.

    A bin is 16 tokens; bins with fewer than RARE of the corpus's scored tokens are left out, a few long texts each.
    """
    frozen = {r.seed: {p["position"]: p for p in r.positions} for r in evidence.runs(corpus, "R0")}
    rows = []
    for name in SHOWN["by_position"]:
        by_bin: dict[float, list[float]] = {}
        for record in evidence.runs(corpus, name):
            base = frozen.get(record.seed, {})
            least = RARE * sum(p["tokens"] for p in base.values())
            for p in record.positions if base else ():
                if p["tokens"] >= least:
                    before = base[p["position"]]
                    gain = p["nll"] / p["tokens"] - before["nll"] / before["tokens"]
                    by_bin.setdefault(p["position"], []).append(gain)
        rows += [(name, at, *mean_and_span(values), len(values)) for at, values in by_bin.items()]
    return pd.DataFrame(rows, columns=["regime", "position", "difference", "half", "n seeds"])


def foreign_frame(evidence: StoredRuns, corpus: str) -> pd.DataFrame:
    """What foreign rows cost: loss with a share of foreign condition vectors, minus the loss without."""
    rows, evidence = [], evidence.with_foreign(corpus)
    shares = sorted({int(r.removeprefix(FOREIGN)) for _, r in evidence.losses if r.startswith(FOREIGN)})
    for name, share in product(SHOWN["foreign"], shares):
        cost = evidence.sum_of([(corpus, name, f"{FOREIGN}{share}", 1.0), (corpus, name, "test", -1.0)])
        if cost:
            rows.append({"regime": name, "foreign rows, %": share, **cost.row("cost"), "n seeds": cost.n})
    return pd.DataFrame(rows)


def accounting_frame(evidence: StoredRuns, corpus: str) -> pd.DataFrame:
    """Bytes stored, seconds of training and of reading all held-out text per regime: means over seeds."""
    rows = []
    for (where, name), runs in evidence.records.items():
        if where == corpus:
            stages = [[r.seconds.get(stage, 0.0) for r in runs] for stage in ("training", "evaluation")]
            first = runs[0]
            rows.append(
                (name, first.stored_bytes, first.trainable_parameters, *np.mean(stages, 1), len(runs))
            )
    columns = ["regime", "stored bytes", "trainable", "training s", "reading s", "n seeds"]
    return pd.DataFrame(rows, columns=columns)


def matched_frame() -> pd.DataFrame:
    """R2's rank and what it differs by from the hyper-network's parameters, for both backbones of the study."""
    frame = pd.DataFrame({name: parameter_table(name) for name in ("gpt2", "smollm2")}).T
    frame = frame.rename(columns={"hyper_head": "hyper-network", "matched_rank": "R2's rank"})
    frame["R2"] = frame["R2's rank"] * (frame["width"] + frame["vocab"])
    frame["difference"] = frame["R2"] - frame["hyper-network"]
    columns = ["backbone", "hyper-network", "R2's rank", "R2", "difference"]
    return frame.rename_axis("backbone").reset_index()[columns]


def _row(evidence: StoredRuns, corpus: str, regime: str) -> dict:
    losses = [r.metrics["test_nll"] for r in evidence.runs(corpus, regime)]
    mean, half = mean_and_span(losses)
    return {"regime": regime, "nll": mean, "half": half, "n seeds": len(losses)}
