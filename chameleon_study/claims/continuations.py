"""What stored continuations show: scores by seed and document, contrasts, one table (claim 16).

    results/coherence-*.jsonl + .parquet ─▶ Generations ─ gain(corpus, first, second, score) ─▶ intervals
                                                 ├ family(corpus) ─▶ R4 against R1 and R3, with verdicts
                                                 └ coherent_outputs ─▶ the verdict of claim 16

"More coherent outputs across a cluster" names no measure. Agreement with the reference decides, the one
thing a text cannot gain by being short of words; variety and repetition are printed too. Seeds and
documents are crossed as everywhere; a batch's variety belongs to its seed's clustering, so it is averaged
over documents first, and only seeds are drawn.
"""

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from ..records import SCORES
from ..regimes import REGIMES
from .contrasts import FamilyMember, StoredRuns, judge, shared_seeds
from .rules import NO_DATA, ClaimVerdict, Part, combined, weighed
from .statistics import Contrast, contrast

COHERENCE = "coherence-"  # files of results that hold continuations
SCORE = "rouge_l"  # what decides; the other columns are shown too
AGAINST = ("R1", "R3")  # R4 above a static update, and above the same hyper-network with a constant input
# of ROUGE-L F1, chosen before any run: under one word more in the right order, of some 45 in 64 tokens
MARGIN = 0.01
TITLES = ("ROUGE-L", "distinct-1", "distinct-2", "repeated", "distinct-1 of a batch", "distinct-2 of a batch")
TITLES = dict(zip(SCORES, TITLES))
BESIDE = ("distinct_2", "repeated", "batch_distinct_2")  # R4's minus R1's and R3's, without a verdict


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
        if len({tuple(table[s]["document"]) for table in (one, other) for s in seeds}) != 1:
            return None
        a, b = (np.stack([table[s][column].to_numpy(float) for s in seeds]) for table in (one, other))
        b = b if second else np.zeros_like(a)
        if column.startswith("batch_"):
            a, b = a.mean(1, keepdims=True), b.mean(1, keepdims=True)  # (S, 1)
        weights = one[seeds[0]]["tokens"].to_numpy(float) if column == "nll" else np.ones(a.shape[1])
        return contrast(a, b, weights, draws=self.draws)

    def family(self, corpus: str) -> dict[str, FamilyMember]:
        """R4 above R1 and R4 above R3, Holm-adjusted together; empty unless both are possible.

        `verdict` is about the lower of two, so it is applied to the other's score minus R4's.
        """
        gains = {f"R4 − {other}": self.gain(corpus, "R4", other) for other in AGAINST}
        if None in gains.values():
            return {}
        turned = {f"R4 − {other}": self.gain(corpus, other, "R4") for other in AGAINST}
        return {name: replace(member, contrast=gains[name]) for name, member in judge(turned, MARGIN).items()}


def generation_frame(generations: Generations) -> pd.DataFrame:
    """One row per corpus and regime: its scores' means, its loss, and R4's ROUGE-L minus its own."""
    rows, gain = [], "R4's ROUGE-L minus it"
    for corpus, regime in generations.records:
        mean = generations.gain(corpus, regime)
        if mean is None:
            continue
        against = generations.gain(corpus, "R4", regime) if regime != "R4" else None
        member = generations.family(corpus).get(f"R4 − {regime}")
        rows.append(
            {"corpus": corpus, "regime": regime, "what": REGIMES[regime].title}
            | {"n seeds": mean.n, "documents": mean.documents}
            | {TITLES[c]: generations.gain(corpus, regime, column=c).difference for c in SCORES}
            | (against.row(gain) if against else dict.fromkeys((gain, "low", "high")))
            | {"adjusted p": member and member.adjusted_p, "verdict": member.verdict if member else "–"}
            | {"reference, nats a token": generations.gain(corpus, regime, column="nll").difference}
        )
    return pd.DataFrame(rows)


def coherent_outputs(evidence: StoredRuns) -> ClaimVerdict:
    """R4's ROUGE-L F1 above R1's and R3's, by more than 0.01 with the whole interval, Holm-adjusted.

    Both contrasts must hold, on every corpus with continuations; `statistics.verdict` has the other verdicts.
    """
    generations = Generations(evidence.folder, evidence.backbone, evidence.draws)
    return combined({corpus: _part(generations, corpus) for corpus in generations.corpora})


def _part(generations: Generations, corpus: str) -> Part:
    family = {f"ROUGE-L {name}": member for name, member in generations.family(corpus).items()}
    if not family:
        return NO_DATA
    verdicts = {name: m.verdict for name, m in family.items()}
    verdict, number, deciding = weighed({name: m.contrast for name, m in family.items()}, verdicts)
    others = [
        f"{TITLES[column]} R4 − {other} {generations.gain(corpus, 'R4', other, column).text()}"
        for column in BESIDE
        for other in AGAINST
    ]
    return verdict, f"{number}; beside: {', '.join(others)}", deciding
