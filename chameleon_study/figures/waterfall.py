"""The walk from the released to the honest procedure: one bar per switch, what it changes and the loss after it."""

import pandas as pd

from ..released.protocol import SWITCHES
from .style import look

LABELS = {"": "as released"} | {name: row["label"] for name, row in SWITCHES.items() if "label" in row}


def waterfall(ax, walk: pd.DataFrame, regimes: dict[str, str] | None = None):
    """Draw `walk` (as `walk_frame` gives it; several seeds are averaged) from top to bottom.

    A bar reaches from the loss before a switch was mended to the loss after; the number is the loss after and, in
    brackets, the change. A hatched bar changed the yardstick. A black line goes from the lowest to the highest seed.
    `regimes` maps the regimes to draw to their names.
    """
    regimes = regimes or {name: name for name in sorted(walk["regime"].unique())}
    steps = walk.drop_duplicates("step").sort_values("step")
    height, first = 0.62 / len(regimes), int(steps["step"].min())
    beside = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 9.5}
    for index, (regime, name) in enumerate(regimes.items()):
        before, by_step = 0.0, walk[walk["regime"] == regime].groupby("step")
        for step, (after, low, high) in by_step["loss"].agg(["mean", "min", "max"]).iterrows():
            changed = step > first and not by_step.get_group(step)["same yardstick"].iloc[0]
            y = step - first + index * height - 0.08
            style = {"alpha": 0.55, "hatch": "///"} if changed else {"alpha": 1.0}
            style |= {"color": look(index)["color"], "edgecolor": "white", "linewidth": 0}
            label = name if step == first else None
            ax.barh(y, after - before, left=before, height=height * 0.88, label=label, **style)
            ax.plot([low, high], [y, y], color="black", linewidth=1.5, marker="|", markersize=8)
            change = "" if step == first else f" ({after - before:+.3f})"
            ax.text(1.02, y, f"{after:.3f}{change}", **beside)
            before = after
    for place, row in enumerate(steps.itertuples()):  # the label is above its bars: no width is lost to it
        ax.text(0.01, place - 0.36, f"{LABELS.get(row.mended, row.mended)}  ({row.scored:,})", **beside)
    ax.set(yticks=[], ylim=(len(steps) - 0.4, -0.65), xlim=(0, 1.03 * float(walk["loss"].max())))
    ax.set_xlabel("reported loss (nats a scored position)", fontsize=10)
    ax.figure.legend(*_legend(ax), frameon=False, loc="outside lower left", ncols=2, fontsize=9.5)
    return ax


def _legend(ax) -> tuple[list, list]:
    """Handles and names: the regimes, the hatch, the line over seeds."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles, names = ax.get_legend_handles_labels()
    hatch = Patch(facecolor="0.6", edgecolor="white", hatch="///", linewidth=0)
    seeds = Line2D([], [], color="black", marker="|")
    return [*handles, hatch, seeds], [*names, "another yardstick", "over seeds"]
