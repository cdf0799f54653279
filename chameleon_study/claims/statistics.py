"""Intervals and verdicts over runs whose seeds and documents are crossed: the same documents everywhere.

Statistic of a contrast: sum of nll differences / sum of tokens, in nats per token; below zero, the first
regime has the lower loss. There are two intervals, and the wider decides: a bootstrap that draws seeds
and documents independently and takes every pair, and a paired t over seeds.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

DRAWS_AT_ONCE = 500
LEVELS = (0.95, 0.90)  # of the two intervals
MARGIN = 0.01  # nats per token: smaller differences are of no use to anyone
SUPPORTED, EQUIVALENT, CONTRADICTED = "supported", "equivalent", "contradicted"
UNDECIDED, UNTESTED = "not decidable here", "not tested"
VERDICTS = (SUPPORTED, EQUIVALENT, CONTRADICTED, UNDECIDED, UNTESTED)


@dataclass(frozen=True)
class Contrast:
    """A difference in nats per token, its 95 % and 90 % intervals, two-sided p, seeds, documents."""

    difference: float
    low: float
    high: float
    low90: float
    high90: float
    p: float
    n: int
    documents: int
    decided_by: str  # "bootstrap" or "t"

    def row(self, name: str = "difference") -> dict[str, float]:
        """The difference under `name` and its 95 % interval, as columns of a table."""
        return {name: self.difference, "low": self.low, "high": self.high}

    def detectable(self, margin: float = MARGIN) -> float:
        """The smallest measured gain that these runs could call supported: margin + half the 95 % interval."""
        return margin + (self.high - self.low) / 2

    def text(self, spec: str = "+.4f") -> str:
        """The difference with its 95 % interval."""
        return interval_text(self.difference, self.low, self.high, spec)


def interval_text(value: float, low: float, high: float, spec: str = ".4f") -> str:
    """A value with its interval, as tables and the ledger print it."""
    return f"{value:{spec}} [{low:{spec}}, {high:{spec}}]"


def mean_and_span(values: np.ndarray) -> tuple[float, float]:
    """Mean of values (S,) over seeds and half the width of its 95 % t interval (0 for one seed)."""
    values = np.asarray(values, dtype=float)
    span = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1) if len(values) > 1 else 0.0
    return float(values.mean()), float(span)


def crossed_bootstrap(difference: np.ndarray, tokens: np.ndarray, *, draws=10_000, seed=0) -> np.ndarray:
    """Draws (draws,) of the statistic for nll sums (S, N) and tokens (N,); S = 1 draws documents alone."""
    seeds, documents = difference.shape
    of_seed = _picks(seeds, draws, seed + 1) / seeds  # (draws, S)
    sums = np.empty((draws, seeds + 1))
    both = np.vstack([difference, tokens]).T  # (N, S + 1)
    for start in range(0, draws, DRAWS_AT_ONCE):
        part = slice(start, start + DRAWS_AT_ONCE)
        sums[part] = _picks(documents, draws, seed)[part].astype(float) @ both
    return (sums[:, :seeds] * of_seed).sum(1) / sums[:, seeds]


@lru_cache(maxsize=16)  # loops over corpora come back to each, with as many seeds as it has
def _picks(items: int, draws: int, seed: int) -> np.ndarray:
    """How often each of `items` is drawn, (draws, items): the same for all contrasts of a corpus."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(items, np.full(items, 1 / items), size=draws).astype(np.int16)


def contrast(nll_a: np.ndarray, nll_b: np.ndarray, tokens: np.ndarray, *, draws=10_000, seed=0) -> Contrast:
    """Contrast of two regimes from nll sums (S, N) each and tokens (N,); one without seeds is (1, N).

    The bootstrap's two-sided p is the share of draws beyond zero, never below one draw.
    """
    difference = np.asarray(nll_a, dtype=float) - np.asarray(nll_b, dtype=float)  # (S, N)
    tokens = np.asarray(tokens, dtype=float)
    by_seed = difference.sum(1) / tokens.sum()  # (S,)
    intervals = {"t": _paired_t(by_seed)} if len(by_seed) > 1 else {}
    if len(tokens) > 1 or not intervals:  # over seeds alone t is the wider one
        boot = crossed_bootstrap(difference, tokens, draws=draws, seed=seed)
        spans = [np.quantile(boot, [(1 - level) / 2, (1 + level) / 2]).tolist() for level in LEVELS]
        beyond = min((boot <= 0).sum(), (boot >= 0).sum())
        intervals["bootstrap"] = (*spans, float(min(1.0, 2 * (beyond + 1) / (len(boot) + 1))))
    wide = max(sorted(intervals), key=lambda name: intervals[name][0][1] - intervals[name][0][0])
    (low, high), (low90, high90), p = intervals[wide]
    value = float(by_seed.mean())
    return Contrast(value, low, high, low90, high90, p, len(by_seed), len(tokens), wide)


def _paired_t(by_seed: np.ndarray) -> tuple[tuple[float, float], tuple[float, float], float]:
    mean, error, freedom = by_seed.mean(), stats.sem(by_seed), len(by_seed) - 1
    if error == 0:  # the same number under every seed: no spread to estimate
        return (mean, mean), (mean, mean), 1.0 if mean == 0 else 0.0
    spans = [error * stats.t.ppf((1 + level) / 2, freedom) for level in LEVELS]
    wide, narrow = ((float(mean - span), float(mean + span)) for span in spans)
    return wide, narrow, float(2 * stats.t.sf(abs(mean / error), freedom))


def mean_interval(nll: np.ndarray, tokens: np.ndarray, **options) -> Contrast:
    """A single regime's nats per token with its intervals: the contrast with a loss of zero."""
    return contrast(nll, np.zeros_like(nll), tokens, **options)


def holm(p: dict[str, float]) -> dict[str, float]:
    """Holm-adjusted p values of one family."""
    if len(p) < 2:  # nothing to adjust for
        return dict(p)
    from statsmodels.stats.multitest import multipletests

    return dict(zip(p, multipletests(list(p.values()), method="holm")[1].tolist()))


def verdict(contrast: Contrast, adjusted_p: float, margin: float = MARGIN) -> str:
    """The verdict on "the first regime is lower", in the order the protocol fixes.

    supported: adjusted p < 0.05 and the 95 % interval below −margin; equivalent: the 90 % interval inside
    ±margin; contradicted: the 95 % interval excludes any gain beyond the margin; else not decidable here.
    """
    if adjusted_p < 0.05 and contrast.high < -margin:
        return SUPPORTED
    if -margin < contrast.low90 and contrast.high90 < margin:
        return EQUIVALENT
    return CONTRADICTED if contrast.low > -margin else UNDECIDED
