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
from .contrasts import FamilyMember, by_corpus_and_regime, judge, shared_seeds
from .statistics import Contrast, contrast

COHERENCE = "coherence-"  # files of results that hold continuations
SCORE = "rouge_l"  # what decides; the other columns are shown too
AGAINST = ("R1", "R3")  # R4 above a static update, and above the same hyper-network with a constant input
# Of ROUGE-L F1, chosen before any run at full size: under one word more in the right order, of some 45 in 64 tokens.
MARGIN = 0.01
TITLES = ("ROUGE-L", "distinct-1", "distinct-2", "repeated", "distinct-1 of a batch", "distinct-2 of a batch")
TITLES = dict(zip(COLUMNS, TITLES))


class Generations:
    """Records and scores of all coherence experiments of one backbone in a results folder."""

    def __init__(self, results: Path, backbone: str = "smollm2", draws: int = 10_000) -> None:
        self.folder, self.backbone, self.draws = Path(results), backbone, draws

    @cached_property
    def records(self) -> dict[tuple[str, str], list[Record]]:
        """(corpus, regime) to its complete records of this backbone, by seed."""
        records = [r for path in sorted(self.folder.glob(f"{COHERENCE}*.jsonl")) for r in load_records(path)]
        written = [r for r in records if r.status == "done" and f"generated_{SCORE}" in r.metrics]
        return by_corpus_and_regime(written, self.backbone)

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
                out |= {str(run): rows.sort_values("document") for run, rows in runs}
        return out

    def tables(self, corpus: str, regime: str) -> dict[int, pd.DataFrame]:
        """A regime's scores (D rows) by seed; empty where there is no such run."""
        runs = self.records.get((corpus, regime), [])
        return {r.seed: self.scores[r.name] for r in runs if r.name in self.scores}

    def contrast(self, corpus: str, first: str, second: str | None = None, column=SCORE) -> Contrast | None:
        """first − second, mean of a column over documents (nats per token for "nll"); without `second`, first alone.

        Only seeds that both have; None where there are none or the documents differ.
        """
        one, other = self.tables(corpus, first), self.tables(corpus, second or first)
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
        gains = {f"R4 − {other}": self.contrast(corpus, "R4", other) for other in AGAINST}
        if None in gains.values():
            return {}
        turned = {f"R4 − {other}": self.contrast(corpus, other, "R4") for other in AGAINST}
        return {name: replace(member, contrast=gains[name]) for name, member in judge(turned, MARGIN).items()}


def generation_frame(generations: Generations) -> pd.DataFrame:
    """One row per corpus and regime: every score's mean, R4's ROUGE-L minus it, and the reference's loss.

    The difference has its 95 % interval; where the contrast is one of the family, its verdict too.
    """
    rows, gain = [], "R4's ROUGE-L less it"
    for corpus, regime in generations.records:
        mean = generations.contrast(corpus, regime)
        if mean is None:
            continue
        against = generations.contrast(corpus, "R4", regime) if regime != "R4" else None
        member = generations.family(corpus).get(f"R4 − {regime}")
        means = {TITLES[c]: generations.contrast(corpus, regime, column=c).difference for c in COLUMNS}
        rows.append(
            {"corpus": corpus, "regime": regime, "what": REGIMES[regime].title}
            | {"n seeds": mean.n, "documents": mean.documents}
            | means
            | (against.row(gain) if against else dict.fromkeys((gain, "low", "high")))
            | {"adjusted p": member and member.adjusted_p, "verdict": member.verdict if member else "–"}
            | {"reference, nats a token": generations.contrast(corpus, regime, column="nll").difference}
        )
    return pd.DataFrame(rows)
