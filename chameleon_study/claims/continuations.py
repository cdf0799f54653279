"""What stored continuations say: scores by seed and document, contrasts with intervals, one table (claim 16).

    results/coherence-*.jsonl + .parquet ─▶ Generations ─ contrast(corpus, first, second, score) ─▶ intervals, p
                                                 └ family(corpus) ─▶ R4 against R1 and R3, each with its verdict

Seeds and documents are crossed as everywhere in the study. A batch's variety belongs to its seed's clustering, and
batches of two seeds hold different documents: it is averaged over documents first, and only seeds are drawn.
"""

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from ..records import Record, load_records
from ..regimes import REGIMES
from ..text_scores import COLUMNS
from .contrasts import Judged, by_corpus_and_regime, judge
from .statistics import Contrast, contrast

COHERENCE = "coherence-"  # files of results that hold continuations
SCORE = "rouge_l"  # what decides; the other columns stand beside
AGAINST = ("R1", "R3")  # R4 above a static update, and above the same hyper-network with a constant input
# Chosen before any run at full size. Of ROUGE-L F1; in 64 tokens, some 45 words, it is less than one word more in the
# right order.
MARGIN = 0.01
TITLES = {
    "rouge_l": "ROUGE-L",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "repeated": "repeated",
    "batch_distinct_1": "distinct-1 of a batch",
    "batch_distinct_2": "distinct-2 of a batch",
}


class Generations:
    """Records and scores of all coherence experiments of one backbone in a results folder."""

    def __init__(self, results: Path, backbone: str = "smollm2", draws: int = 10_000) -> None:
        self.folder, self.backbone, self.draws = Path(results), backbone, draws

    @cached_property
    def records(self) -> dict[tuple[str, str], list[Record]]:
        """(corpus, regime) to its complete records of this backbone, by seed."""
        found = [r for path in sorted(self.folder.glob(f"{COHERENCE}*.jsonl")) for r in load_records(path)]
        complete = [r for r in found if r.status == "done" and f"generated_{SCORE}" in r.metrics]
        return by_corpus_and_regime(complete, self.backbone)

    @property
    def corpora(self) -> list[str]:
        """Corpora with at least one record, in a fixed order."""
        return sorted({corpus for corpus, _ in self.records})

    @cached_property
    def scores(self) -> dict[str, pd.DataFrame]:
        """Run to its continued documents' scores (D rows), documents in a fixed order."""
        out = {}
        for path in sorted(self.folder.glob(f"{COHERENCE}*.parquet")):
            frame = pd.read_parquet(path)
            if SCORE in frame:
                frame = frame[(frame["split"] == "test") & frame[SCORE].notna()].astype({"document": str})
                runs = frame.groupby("run", observed=True)
                out |= {str(run): own.sort_values("document") for run, own in runs}
        return out

    def values(self, corpus: str, regime: str, column: str = SCORE) -> dict[int, np.ndarray]:
        """A column's values (D,) by seed; empty where there is no such run."""
        return {seed: own[column].to_numpy(float) for seed, own in self._tables(corpus, regime).items()}

    def _tables(self, corpus: str, regime: str) -> dict[int, pd.DataFrame]:
        """A regime's scores (D rows) by seed."""
        own = [r for r in self.records.get((corpus, regime), []) if r.name in self.scores]
        return {r.seed: self.scores[r.name] for r in own}

    def contrast(
        self, corpus: str, first: str, second: str | None = None, column: str = SCORE
    ) -> Contrast | None:
        """first − second, mean of a column over documents (nats per token for "nll"); without `second`, first alone.

        Only seeds that both have; None where there are none or the documents differ.
        """
        one = self.values(corpus, first, column)
        zero = {s: np.zeros_like(v) for s, v in one.items()}
        other = self.values(corpus, second, column) if second else zero
        seeds = sorted(set(one) & set(other))
        both = (self._tables(corpus, regime) for regime in (first, second or first))
        if len({tuple(own[s]["document"]) for own in both for s in seeds}) != 1:
            return None
        a, b = (np.stack([by[s] for s in seeds]) for by in (one, other))  # (S, D)
        if column.startswith("batch_"):
            a, b = a.mean(1, keepdims=True), b.mean(1, keepdims=True)  # (S, 1)
        weights = self.values(corpus, first, "tokens")[seeds[0]] if column == "nll" else np.ones(a.shape[1])
        return contrast(a, b, weights, draws=self.draws)

    def family(self, corpus: str) -> dict[str, Judged]:
        """R4 above R1 and R4 above R3, Holm-adjusted together; empty unless both can be made.

        `verdict` speaks of the lower one, so it is given the other's score less R4's.
        """
        found = {
            f"R4 − {other}": (self.contrast(corpus, "R4", other), self.contrast(corpus, other, "R4"))
            for other in AGAINST
        }
        if any(gain is None for gain, _ in found.values()):
            return {}
        judged = judge({name: turned for name, (_, turned) in found.items()}, MARGIN)
        return {name: replace(judged[name], found=gain) for name, (gain, _) in found.items()}


def generation_frame(generations: Generations) -> pd.DataFrame:
    """One row per corpus and regime: every score's mean, what R4's ROUGE-L has over it, and the reference's loss.

    The difference has its 95 % interval; the verdict stands where the contrast is one of the family.
    """
    rows, gain = [], "R4's ROUGE-L less it"
    for corpus, regime in generations.records:
        family, mean = generations.family(corpus), generations.contrast(corpus, regime)
        if mean is None:
            continue
        against = generations.contrast(corpus, "R4", regime) if regime != "R4" else None
        judged = family.get(f"R4 − {regime}")
        means = {TITLES[c]: generations.contrast(corpus, regime, column=c).difference for c in COLUMNS}
        rows.append(
            {
                "corpus": corpus,
                "regime": regime,
                "what": REGIMES[regime].title,
                "n seeds": mean.n,
                "documents": mean.documents,
                **means,
                **(against.row(gain) if against else dict.fromkeys((gain, "low", "high"))),
                "adjusted p": judged.adjusted_p if judged else None,
                "verdict": judged.verdict if judged else "–",
                "reference, nats a token": generations.contrast(corpus, regime, column="nll").difference,
            }
        )
    return pd.DataFrame(rows)
