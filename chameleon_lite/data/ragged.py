"""Runs of different lengths; see tokens.py."""

from .tokens import by_length, cumulative, ragged

__all__ = ["by_length", "cumulative", "ragged"]
