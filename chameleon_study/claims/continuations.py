"""What stored continuations show: scores by seed and document, contrasts, one table (claim 16).

    results/coherence-*.jsonl + .parquet ─▶ Generations ─ gain(corpus, first, second, score) ─▶ intervals
                                                 └ coherence ─▶ R4 against R6 on each corpus

"More coherent outputs across a cluster" names no measure. Agreement with the reference decides one part, the
one thing that a text cannot gain by being short of words, and agreement within a batch the other; variety and
repetition are printed too. Seeds and documents are crossed as everywhere; what belongs to a batch belongs to
its seed's clustering, so it is averaged over documents first, and only seeds are drawn.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from ..records import SCORES, WITHIN
from ..regimes import REGIMES
from .contrasts import StoredRuns, shared_seeds
from .rules import Cell, Cells
from .statistics import Contrast, contrast, verdict

COHERENCE = "coherence-"  # files of results that hold continuations
SCORE = "rouge_l"  # agreement with the reference; a batch's own is in the column of that name after "batch_"
AGAINST, BESIDE = "R6", ("R1", "R3")  # the row's own condition decides; a static update, a constant input
# of ROUGE-L F1, chosen before any run: under one word more in the right order, of some 45 in 64 tokens
MARGIN = 0.01
TITLES = ("ROUGE-L", "distinct-1", "distinct-2", "repeated")
TITLES += ("ROUGE-L within a batch", "distinct-1 of a batch", "distinct-2 of a batch")
TITLES = dict(zip(SCORES, TITLES))


class Generations(StoredRuns):
    """Records and scores of all coherence experiments of one backbone in a results folder."""

    def __init__(self, results: Path, backbone: str = "smollm2", draws: int = 10_000) -> None:
        super().__init__(results, backbone, draws, experiments=COHERENCE)

    @cached_property
    def scores(self) -> dict[str, pd.DataFrame]:
        """Run to its continued documents' scores (D rows), documents in a fixed order."""
        out = {}
        for frame in self.documents():
            if SCORE in frame:
                frame = frame[(frame["split"] == "test") & frame[SCORE].notna()].astype({"document": str})
                runs = frame.groupby("run", observed=True)
                out |= {str(run): rows.sort_values("document") for run, rows in runs}
        return out

    def gain(self, corpus: str, first: str, second: str | None = None, column=SCORE) -> Contrast | None:
        """first − second, mean of a column over documents (nats per token for "nll"), or first alone.

        Only seeds that both have; None where there are none or the documents differ.
        """
        one, other = (
            {r.seed: self.scores[r.name] for r in self.runs(corpus, regime) if r.name in self.scores}
            for regime in (first, second or first)
        )
        seeds = shared_seeds([one, other])
        tables = [table[s] for table in (one, other) for s in seeds]
        if len({tuple(t["document"]) for t in tables}) != 1 or not all(column in t for t in tables):
            return None
        a, b = (np.stack([table[s][column].to_numpy(float) for s in seeds]) for table in (one, other))
        b = b if second else np.zeros_like(a)
        if column.startswith("batch_"):
            mean = np.nanmean if column == WITHIN else np.mean
            a, b = (mean(x, 1, keepdims=True) for x in (a, b))  # (S, 1)
        weights = one[seeds[0]]["tokens"].to_numpy(float) if column == "nll" else np.ones(a.shape[1])
        return contrast(a, b, weights, draws=self.draws)


def generation_frame(generations: Generations) -> pd.DataFrame:
    """One row per corpus and regime: its scores' means, its loss, and R4's ROUGE-L minus its own."""
    rows, gain = [], "R4's ROUGE-L minus it"
    for corpus, regime in generations.records:
        mean = generations.gain(corpus, regime)
        if mean is None:
            continue
        against = generations.gain(corpus, "R4", regime) if regime != "R4" else None
        rows.append(
            {"corpus": corpus, "regime": regime, "what": REGIMES[regime].title}
            | {"n seeds": mean.n, "documents": mean.documents}
            | {TITLES[c]: g.difference for c in SCORES if (g := generations.gain(corpus, regime, column=c))}
            | (against.row(gain) if against else dict.fromkeys((gain, "low", "high")))
            | {"reference, nats a token": generations.gain(corpus, regime, column="nll").difference}
        )
    return pd.DataFrame(rows)


def coherence(evidence: StoredRuns, column: str) -> Cells:
    """R4's score above that of R6, the row's own condition, by more than 0.01 with the whole interval.

    `statistics.verdict` is about the lower of two, so it is applied to the other's score minus R4's.
    """
    generations, cells = Generations(evidence.folder, evidence.backbone, evidence.draws), {}
    for corpus in generations.corpora:
        turned = generations.gain(corpus, AGAINST, "R4", column)
        if turned is None:
            continue
        names = [name for name in (AGAINST, *BESIDE) if generations.gain(corpus, "R4", name, column)]
        texts = [f"R4 − {name} {generations.gain(corpus, 'R4', name, column).text()}" for name in names]
        number = f"{column} {texts[0]}; beside: {', '.join(texts[1:]) or '–'}"
        cells[corpus] = Cell(verdict(turned, turned.p, MARGIN), number, turned.detectable(MARGIN))
    return cells
