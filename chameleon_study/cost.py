"""The size of an experiment on one corpus, in optimiser steps and heads, printed before it is spent."""

from .cohort import Context
from .regimes import Regime


def estimate(context: Context, regimes: list[Regime]) -> str:
    """One line: the steps of a head's training at most, and the heads of the sweep and of the reported seeds."""
    settings = context.settings
    steps = -(-len(context.material.tables["train"]) // settings.train.rows_per_step) * settings.train.epochs
    swept = {r.rate_of or r.name for r in regimes} - set(settings.learning_rates)
    sweep = len(swept) * len(settings.sweep.grid) * settings.sweep.seeds
    heads = sweep + len(regimes) * settings.seeds
    return f"cost: {steps} steps × {heads} heads ({sweep} of the sweep) at most, before early stopping"
