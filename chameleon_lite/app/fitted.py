"""What `fit` gives back: the adapter, the table of candidates, and an honest sentence on each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

RESAMPLES = 2_000
SAMPLED = 1 << 17  # numbers of texts that are drawn at one time
FEW = 10  # held-out texts below which an interval from resampling them says nothing


@dataclass(frozen=True)
class Fitted:
    """A fitted adapter and its effect on held-out texts, in nats per token; `curve` has one entry per validation."""

    model: Any
    before: float  # nats per token, frozen
    after: float  # adapted
    low: float  # of the 95 % interval of after - before, by resampling the held-out texts
    high: float
    held_out: int  # texts
    trained_on: int
    seconds: float
    curve: list[dict]
    dropped: int = 0  # texts that were empty or too short to score
    folder: Path | None = None
    table: pd.DataFrame | None = field(default=None, compare=False, repr=False)  # one row per candidate
    why: str = ""  # which candidate is kept, and why; empty where there was one
    offer: str = ""  # what else could be tried, and how long it would take

    @property
    def helped(self) -> bool:
        """Whether the whole interval of the difference, as it is printed, lies below zero, on enough texts."""
        return self.held_out >= FEW and round(self.high, 4) < 0

    def __str__(self) -> str:
        change = f"{self.before:.4f} nats per token before, {self.after:.4f} after ({self.after - self.before:+.4f}, "
        change += f"{span(vars(self))}) on {self.held_out} held-out texts"
        if self.dropped:
            change += f"; {self.dropped:,} texts were dropped, empty or too short to score"
        if self.helped:
            return f"helped: {change}"
        if self.held_out < FEW:
            return f"too few to tell: {change}; a verdict needs {FEW}: fit on about {10 * FEW} texts or more"
        word = "made things worse" if round(self.low, 4) > 0 else "did not help"
        return f"{word}: {change}; use the backbone as it is, or fit on more texts of the kind you have"

    @property
    def report(self) -> str:
        """The table of candidates, which one is kept and why, and the effect of that one on the test texts."""
        if self.table is None or not self.why:
            return str(self)
        return "\n".join(filter(None, [printed(self.table), self.why, str(self), self.offer]))


def printed(table: pd.DataFrame) -> str:
    """The table of candidates in lines of about 80 columns; * marks the one kept."""
    width = max(map(len, table["candidate"])) + 2
    lines = [f"{'  validation texts':<{width}}  before   after   95 % interval  parameters  seconds"]
    for row in table.itertuples():
        line = f"{'* ' if row.kept else '  '}{row.candidate}".ljust(width)
        line += f"  {row.before:.4f}  {row.after:.4f}  {row.low:+.4f} {row.high:+.4f}"
        lines.append(f"{line}  {row.parameters:>10,}  {row.seconds:>7,.0f}")
    if table["seconds"].duplicated().any():
        lines.append("  heads are trained side by side: their seconds are those of all of them")
    return "\n".join(lines)


def span(numbers: Mapping[str, float]) -> str:
    """An interval from its low and high."""
    return f"95 % interval {numbers['low']:+.4f} to {numbers['high']:+.4f}"


def compared(nll: np.ndarray, counts: np.ndarray, seed: int) -> dict[str, float]:
    """From nats (2, N), frozen and adapted, and tokens (N,) of texts: `Fitted`'s before, after, low and high."""
    before, after = (nll.sum(1) / counts.sum()).tolist()
    generator, difference = np.random.default_rng(seed), nll[1] - nll[0]
    at_once, draws = max(1, SAMPLED // max(1, len(counts))), []
    for first in range(0, RESAMPLES, at_once):
        texts = generator.integers(len(counts), size=(min(at_once, RESAMPLES - first), len(counts)))
        draws.append(difference[texts].sum(1) / counts[texts].sum(1))
    low, high = np.quantile(np.concatenate(draws), [0.025, 0.975]).tolist()
    return {"before": before, "after": after, "low": low, "high": high}
