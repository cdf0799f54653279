"""The walk from the released to the honest procedure: one bar per switch, with the loss after it."""

import pandas as pd

from ..released.protocol import SWITCHES
from .style import look

LABELS = {"": "as released"} | {name: row["label"] for name, row in SWITCHES.items() if "label" in row}


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
            style = {"color": look(index)["color"], "edgecolor": "white", "linewidth": 0}
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
