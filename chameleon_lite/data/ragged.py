"""Runs of different lengths in one flat array: the two functions everything vectorised here stands on."""
import numpy as np


def cumulative(lengths: np.ndarray) -> np.ndarray:
    """Lengths (N,) to offsets (N + 1,) int64."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def ragged(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Flat indices of N runs: starts (N,), lengths (N,) to (lengths.sum(),) int64, run after run."""
    lengths = np.asarray(lengths, dtype=np.int64)
    run = cumulative(lengths)
    return np.arange(run[-1]) + np.repeat(np.asarray(starts, dtype=np.int64) - run[:-1], lengths)
