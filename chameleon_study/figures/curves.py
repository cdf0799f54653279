"""Loss against epochs: the mean over seeds with a 95 % t interval, one line per regime."""

import numpy as np
import pandas as pd

from ..claims.statistics import mean_and_span
from .style import look


def learning_curves(ax, curves: pd.DataFrame):
    """Draw the columns regime, seed, epoch and validation_nll (nats per token)."""
    for index, (regime, rows) in enumerate(curves.groupby("regime", sort=True)):
        points = [(at, *mean_and_span(of["validation_nll"])) for at, of in rows.groupby("epoch", sort=True)]
        epoch, mean, span = (np.array(column) for column in zip(*points))
        style = look(index)
        ax.plot(epoch, mean, label=f"{regime} (n = {rows['seed'].nunique()})", **style)
        ax.fill_between(epoch, mean - span, mean + span, color=style["color"], alpha=0.15, linewidth=0)
    ax.set(xlabel="epochs", ylabel="validation loss (nats per token)")
    ax.legend(frameon=False)
    return ax
