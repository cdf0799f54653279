"""The honest study's tables: every mean with its n and interval, one frame a question, each downloadable as CSV.

Evidence ─▶ regimes_frame · across_frame · controls_frame · group_frame · pareto_frame · position_frame
            foreign_frame · accounting_frame
"""

import base64
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..heads import matched_rank
from .evidence import FOREIGN, Evidence
from .regimes import REGIMES
from .statistics import mean_interval

CLUSTERED_SIZES = {"R6": 1, "R4-g2": 2, "R4-g4": 4, "R4-g8": 8, "R4-g16": 16, "R4": 32}
RANDOM_SIZES = {"R5-g1": 1, "R5-g2": 2, "R5-g4": 4, "R5-g8": 8, "R5-g16": 16, "R5": 32}
ACROSS = (
    "R1",
    "R2",
    "R3",
    "R4",
    "R5",
    "R6",
    "R10",
    "R11",
    "R12",
    "R13",
    "R14",
    "R15",
    "R16",
    "R17",
    "R18",
    "R20",
)
# what R4's gain might come from instead of the context of its batch ▶ the registered contrast that would show it
CONTROLS = {
    "any low-rank update": "R4<R1",
    "as many parameters": "R4<R2",
    "the hyper-network's optimisation, told a constant": "R4<R3",
    "the condition's mere presence: another cluster's at test": "R4<R7",
    "another cluster's in training too": "R4<R7b",
    "the rows' length": "R4<R8",
    "any batch, not a cluster": "R4<R5",
    "the row's own prefix, no batch": "R4<R6",
    "the training cluster's centroid, batches random": "R4<R18",
    "a bank of as many bytes": "R4<R11",
}
RARE = 0.005
STORED = ("R1", "R2", "R4", "R11-K2", "R11-K4", "R11-K8", "R11-K16", "R11", "R11b", "R12", "R15", "R20")


def regimes_frame(evidence: Evidence, corpus: str) -> pd.DataFrame:
    """One row a regime: nats a token with its 95 % interval, n, the difference from R0, parameters and the rate."""
    rows = []
    for name, r in REGIMES.items():
        own = evidence.records.get((corpus, name))
        mean = _mean(evidence, corpus, name)
        if own is None or mean is None:
            continue
        against = evidence.contrast(corpus, name, "R0") if name != "R0" else None
        rows.append(
            {
                "regime": name + (" (leak)" if r.leak else ""),
                "what": r.title,
                "conditioned on": r.conditioned_on,
                "nats a token": mean.difference,
                "low": mean.low,
                "high": mean.high,
                "n seeds": mean.n,
                "documents": mean.documents,
                "difference from R0": against.difference if against else None,
                "difference low": against.low if against else None,
                "difference high": against.high if against else None,
                "parameters": own[0].trainable_parameters,
                "stored bytes": own[0].stored_bytes,
                "learning rate": own[0].learning_rate,
            }
        )
    return pd.DataFrame(rows)


def across_frame(evidence: Evidence) -> pd.DataFrame:
    """What each regime gains over the frozen model, one column a corpus: difference [95 % interval], nats a token."""
    columns = {}
    for corpus in evidence.corpora:
        found = {name: evidence.contrast(corpus, name, "R0") for name in ACROSS}
        seeds = max((c.n for c in found.values() if c), default=0)
        columns[f"{corpus}, n = {seeds}"] = {
            f"{name}: {REGIMES[name].title}": _text(c, 3) + ("" if c.n == seeds else f" (n = {c.n})")
            for name, c in found.items()
            if c is not None
        }
    return pd.DataFrame(columns).rename_axis("regime less R0").fillna("–")


def controls_frame(evidence: Evidence) -> pd.DataFrame:
    """What else could explain R4's loss: its control, R4's loss less the control's, and the verdict, a corpus each.

    A negative difference says that R4 is lower; "confirmed" then means: by more than 0.01 nats a token.
    """
    rows = []
    for explanation, name in CONTROLS.items():
        row = {"instead of the batch's context": explanation, "contrast": name}
        for corpus in evidence.corpora:
            judged = evidence.family(corpus).get(name)
            row[corpus] = "–" if judged is None else f"{_text(judged.found)} {judged.verdict}"
        rows.append(row)
    return pd.DataFrame(rows)


def _text(c, digits: int = 4) -> str:
    return f"{c.difference:+.{digits}f} [{c.low:+.{digits}f}, {c.high:+.{digits}f}]"


def group_frame(evidence: Evidence, corpus: str) -> pd.DataFrame:
    """Loss against the size of the conditioning group, clustered, random and leave-one-out, less that of R6.

    R6 is told each row's own prefix; `nll` is the loss itself, the rest the paired difference and its interval.
    """
    kinds = {"clustered": CLUSTERED_SIZES, "random": RANDOM_SIZES, "leave-one-out": {"R10": 32}}
    rows = []
    for kind, sizes in kinds.items():
        for name, size in sizes.items():
            found = evidence.contrast(corpus, name, "R6")
            if found is not None:
                rows.append(
                    {
                        "order": kind,
                        "rows in a group": size,
                        **_row(evidence, corpus, name),
                        "difference": found.difference,
                        "low": found.low,
                        "high": found.high,
                    }
                )
    return pd.DataFrame(rows)


def pareto_frame(evidence: Evidence, corpus: str) -> pd.DataFrame:
    """Loss against stored bytes."""
    rows = [
        {"stored bytes": evidence.records[corpus, name][0].stored_bytes, **_row(evidence, corpus, name)}
        for name in STORED
        if (corpus, name) in evidence.records
    ]
    return pd.DataFrame(rows)


def position_frame(evidence: Evidence, corpus: str, regimes=("R1", "R2", "R4", "R6", "R11")) -> pd.DataFrame:
    """Loss by scored position less the frozen model's: the mean over seeds and its 95 % t interval.

    A bin is 16 tokens; bins with fewer than RARE of the corpus's scored tokens are left out, a few long texts each.
    """
    frozen = {r.seed: _bins(r) for r in evidence.records.get((corpus, "R0"), [])}
    rows = []
    for name in regimes:
        by_bin: dict[float, list[float]] = {}
        for record in evidence.records.get((corpus, name), []):
            for at, (nll, tokens) in _bins(record).items():
                if record.seed in frozen and tokens >= RARE * sum(t for _, t in frozen[record.seed].values()):
                    by_bin.setdefault(at, []).append(nll - frozen[record.seed][at][0])
        rows += [
            {
                "regime": name,
                "position": at,
                "difference": float(np.mean(v)),
                "half": _half(v),
                "n seeds": len(v),
            }
            for at, v in by_bin.items()
        ]
    return pd.DataFrame(rows)


def _bins(record) -> dict[float, tuple[float, float]]:
    """Position to (nats a token, tokens)."""
    return {p["position"]: (p["nll"] / p["tokens"], p["tokens"]) for p in record.positions}


def foreign_frame(evidence: Evidence, corpus: str, regimes=("R1", "R4", "R5", "R6", "R10")) -> pd.DataFrame:
    """What foreign rows cost: loss with a share of foreign condition vectors, less the loss without."""
    rows, evidence = [], evidence.with_foreign(corpus)
    for name in regimes:
        readings = sorted(
            {reading for run, reading in evidence.losses if reading.startswith(FOREIGN)},
            key=lambda reading: int(reading.split("-")[1]),
        )
        for reading in readings:
            cost = evidence.sum_of([(corpus, name, reading, 1.0), (corpus, name, "test", -1.0)])
            if cost is not None:
                rows.append(
                    {
                        "regime": name,
                        "foreign rows, %": int(reading.split("-")[1]),
                        "cost": cost.difference,
                        "low": cost.low,
                        "high": cost.high,
                        "n seeds": cost.n,
                    }
                )
    return pd.DataFrame(rows)


def accounting_frame(evidence: Evidence, corpus: str) -> pd.DataFrame:
    """Bytes kept, seconds of training and of reading all held-out text, a regime: means over seeds."""
    rows = []
    for (where, name), own in evidence.records.items():
        if where == corpus:
            rows.append(
                {
                    "regime": name,
                    "stored bytes": own[0].stored_bytes,
                    "trainable": own[0].trainable_parameters,
                    "training s": float(np.mean([r.seconds.get("training", 0.0) for r in own])),
                    "reading s": float(np.mean([r.seconds.get("evaluation", 0.0) for r in own])),
                    "n seeds": len(own),
                }
            )
    return pd.DataFrame(rows)


def matched_frame() -> pd.DataFrame:
    """R2's rank and what it differs by from the hyper-network's parameters, for both backbones of the study."""
    rows = []
    for backbone, width, vocab in (("gpt2", 768, 50_257), ("smollm2", 576, 49_152)):
        rank = matched_rank(width, vocab)
        hyper = width * 64 + 64 + 64 * 32 + 32 + 33 * 4 * (width + vocab)
        static = rank * (width + vocab)
        rows.append(
            {
                "backbone": backbone,
                "hyper-network": hyper,
                "R2's rank": rank,
                "R2": static,
                "difference": static - hyper,
            }
        )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class CsvLink:
    """A link under a table that saves it as `name`.csv; notebooks show it, and it needs no server."""

    name: str
    data: str  # the file, base64

    def _repr_html_(self) -> str:
        return f'<a download="{self.name}.csv" href="data:text/csv;base64,{self.data}">Download as CSV</a>'


def csv_link(frame: pd.DataFrame, name: str) -> CsvLink:
    """The link for a frame."""
    return CsvLink(name, base64.b64encode(frame.to_csv(index=False).encode()).decode())


def _mean(evidence: Evidence, corpus: str, regime: str):
    found = evidence.nll(corpus, regime)
    if found is None:
        return None
    by_seed, tokens = found
    return mean_interval(
        np.stack([by_seed[s] for s in sorted(by_seed)]), tokens, draws=min(evidence.draws, 2_000)
    )


def _row(evidence: Evidence, corpus: str, regime: str) -> dict:
    """Loss over seeds of one regime with the half width of its t interval: regimes share their documents."""
    own = [r.metrics["test_nll"] for r in evidence.records.get((corpus, regime), [])]
    return (
        {"regime": regime, "nll": float(np.mean(own)), "half": _half(own), "n seeds": len(own)} if own else {}
    )


def _half(values) -> float:
    from .figures.curves import mean_and_span

    return mean_and_span(np.asarray(values))[1]
