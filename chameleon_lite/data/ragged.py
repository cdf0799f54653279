"""Runs of different lengths: in one flat array, as everything vectorised here stands on, and in batches for a model."""

from collections.abc import Iterator

import numpy as np


def cumulative(lengths: np.ndarray) -> np.ndarray:
    """Lengths (N,) to offsets (N + 1,) int64."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def ragged(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Flat indices of N runs: starts (N,), lengths (N,) to (lengths.sum(),) int64, run after run."""
    lengths = np.asarray(lengths, dtype=np.int64)
    run = cumulative(lengths)
    return np.arange(run[-1]) + np.repeat(np.asarray(starts, dtype=np.int64) - run[:-1], lengths)


def by_length(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Lengths (N,) to document numbers in runs of similar length, at most `budget` padded tokens or one document."""
    order = np.argsort(lengths, kind="stable")
    low = 0
    while low < len(order):
        high = low + 1
        while high < len(order) and lengths[order[high]] * (high + 1 - low) <= budget:
            high += 1
        yield order[low:high]
        low = high
