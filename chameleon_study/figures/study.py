"""The study's pictures: each draws one table of study_tables.py on an axis and returns it."""

from collections.abc import Callable

from .style import look


def by_position(ax, frame):
    """Loss by scored position minus the frozen model's, one line per regime; below zero is a gain."""
    ax.set(xlabel="scored tokens before (bins of 16)", ylabel="difference from R0 (nats per token)")
    return _around_zero(ax, frame, lambda rows: (rows["position"], rows["difference"], rows["half"]))


def foreign_rows(ax, frame):
    """What foreign rows in the conditioning cost on the same scored text; 0 without any."""

    def points(rows):
        error = [[0.0, *(rows["cost"] - rows["low"])], [0.0, *(rows["high"] - rows["cost"])]]
        return [0, *rows["foreign rows, %"]], [0.0, *rows["cost"]], error

    ax.set(xlabel="foreign rows in the conditioning (%)", ylabel="cost (nats per token), 95 % interval")
    return _around_zero(ax, frame, points)


def _around_zero(ax, frame, points: Callable):
    """A line with error bars per regime, labelled with the least number of seeds behind its points."""
    for index, (name, rows) in enumerate(frame.groupby("regime", sort=False)):
        x, y, error = points(rows)
        label = f"{name} (n = {rows['n seeds'].min()})"
        ax.errorbar(x, y, yerr=error, capsize=3, label=label, **look(index))
    ax.axhline(0, color="0.4", linewidth=1)
    ax.legend(frameon=False)
    return ax
