"""Loss against epochs: the mean over seeds with a 95 % t interval, one line per regime."""

import numpy as np
import pandas as pd

from ..claims.statistics import mean_and_span
from .style import look


def learning_curves(ax, curves: pd.DataFrame, value: str = "validation_nll", frozen: float | None = None):
    """Draw columns regime, seed, epoch and `value` (nats per token); `frozen` is a horizontal line."""
    for index, (regime, rows) in enumerate(curves.dropna(subset=[value]).groupby("regime", sort=True)):
        points = [(epoch, *mean_and_span(at[value])) for epoch, at in rows.groupby("epoch", sort=True)]
        epoch, mean, span = (np.array(column) for column in zip(*points))
        style = look(index)
        ax.plot(epoch, mean, label=f"{regime} (n = {rows['seed'].nunique()})", **style)
        ax.fill_between(epoch, mean - span, mean + span, color=style["color"], alpha=0.15, linewidth=0)
    if frozen is not None:
        ax.axhline(frozen, color="0.4", linewidth=1)
        ax.annotate("frozen", (0, frozen), xytext=(2, 2), textcoords="offset points", color="0.3")
    name = value.replace("_nll", "").replace("_", " ")
    ax.set(xlabel="epochs", ylabel=f"{name} loss (nats per token)")
    ax.legend(frameon=False)
    return ax
