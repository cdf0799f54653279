"""The study's pictures, and vectors as points: each draws one table, or numbers, on an axis and returns it."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from ..claims.statistics import mean_and_span
from ..released.protocol import SWITCHES
from .style import look, look_of

LABELS = {"": "as released"} | {name: row["label"] for name, row in SWITCHES.items() if "label" in row}


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
    for name, rows in frame.groupby("regime", sort=False):
        x, y, error = points(rows)
        label = f"{name} (n = {rows['n seeds'].min()})"
        ax.errorbar(x, y, yerr=error, capsize=3, label=label, **look_of(name))
    ax.axhline(0, color="0.4", linewidth=1)
    ax.legend(frameon=False)
    return ax


def learning_curves(ax, curves: pd.DataFrame):
    """Validation loss by epoch of `curves` (see `curve_frame`): the mean over seeds with a 95 % t interval."""
    for regime, rows in curves.dropna(subset=["validation_nll"]).groupby("regime"):
        epochs = rows.groupby("epoch", sort=True)["validation_nll"]
        points = pd.DataFrame([(epoch, *mean_and_span(nll)) for epoch, nll in epochs])
        (epoch, mean, span), style = points.to_numpy().T, look_of(regime)
        ax.plot(epoch, mean, label=f"{regime} (n = {rows['seed'].nunique()})", **style)
        ax.fill_between(epoch, mean - span, mean + span, color=style["color"], alpha=0.15, linewidth=0)
    ax.set(xlabel="epochs", ylabel="validation loss (nats per token)")
    ax.legend(frameon=False)
    return ax


def waterfall(ax, walk: pd.DataFrame, regimes: dict[str, str]):
    """Draw `walk` (as `walk_frame` gives it) from top to bottom, for `regimes` with their names.

    A bar reaches from the loss before a switch was mended to the loss after, means over seeds; the number is
    the loss after and, in brackets, the change. A hatched bar changed the yardstick. A black line goes from
    the lowest to the highest seed.
    """
    steps, height = walk.drop_duplicates("step"), 0.62 / len(regimes)
    beside = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 9.5}
    for index, (regime, name) in enumerate(regimes.items()):
        before, by_step = 0.0, walk[walk["regime"] == regime].groupby("step")
        for step, (after, low, high) in by_step["loss"].agg(["mean", "min", "max"]).iterrows():
            changed = step and not by_step.get_group(step)["same yardstick"].iloc[0]
            style = {"color": look_of(regime)["color"], "edgecolor": "white", "linewidth": 0}
            style |= {"alpha": 0.55, "hatch": "///"} if changed else {"label": None if step else name}
            y = step + index * height - 0.08
            ax.barh(y, after - before, left=before, height=height * 0.88, **style)
            ax.plot([low, high], [y, y], color="black", linewidth=1.5, marker="|", markersize=8)
            change = f" ({after - before:+.3f})" if step else ""
            ax.text(1.02, y, f"{after:.3f}{change}", **beside)
            before = after
    for place, row in enumerate(steps.itertuples()):  # the label is above its bars: no width is lost to it
        ax.text(0.01, place - 0.36, f"{LABELS.get(row.mended, row.mended)}  ({row.scored:,})", **beside)
    ax.set(yticks=[], ylim=(len(steps) - 0.4, -0.65), xlim=(0, 1.03 * float(walk["loss"].max())))
    ax.set_xlabel("reported loss (nats per scored position)", fontsize=10)
    hatched = {"facecolor": "0.6", "edgecolor": "white", "hatch": "///", "linewidth": 0}
    ax.fill_between([], [], label="another yardstick", **hatched)
    ax.plot([], [], color="black", marker="|", label="over seeds")
    handles, names = ax.get_legend_handles_labels()  # bars are listed last, and shown first
    order = (handles[2:] + handles[:2], names[2:] + names[:2])
    ax.figure.legend(*order, frameon=False, loc="outside lower left", ncols=2, fontsize=9.5)
    return ax


def value_map(ax, xy, values, label: str):
    """Points xy (N, 2) coloured by a number (N,), with its scale beside the map."""
    xy, values = np.asarray(xy), np.asarray(values)
    order = np.argsort(values)  # large values on top, so that a few of them are not hidden
    points = ax.scatter(*xy[order].T, c=values[order], s=9, cmap="cividis", linewidths=0, rasterized=True)
    ax.figure.colorbar(points, ax=ax, label=label, shrink=0.8)
    return bare(ax)


def bare(ax):
    """The axis without ticks and grid, for maps whose coordinates mean nothing."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax


def against_length(ax, lengths, values, index: int = 0):
    """One point per document: tokens (N,) on a logarithmic axis against any number (N,)."""
    points = {"linestyle": "none", "markeredgewidth": 0, "markersize": 3, "alpha": 0.35, "rasterized": True}
    ax.plot(lengths, values, **look(index) | points)
    ax.set_xscale("log", base=2)
    ax.set_xticks([16, 32, 64, 128, 256], ["16", "32", "64", "128", "256"])
    ax.minorticks_off()
    ax.set_xlabel("length (tokens)")
    return ax


def shifts(ax, values: np.ndarray, clusters: Sequence[str], tokens: Sequence[str]):
    """Draw values (K, tokens) in logits, red where an update raises a token, blue where it lowers it."""
    values = np.asarray(values)
    limit = float(np.abs(values).max()) or 1.0
    picture = ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    # no formulas
    columns, rows = ([name.replace("$", r"\$") for name in part] for part in (tokens, clusters))
    ax.set_xticks(range(len(tokens)), columns, rotation=90, family="monospace")
    ax.set_yticks(range(len(clusters)), rows)
    ax.grid(False)
    ax.figure.colorbar(picture, ax=ax, label="shift of the logit")
    return ax
