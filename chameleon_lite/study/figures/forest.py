"""Differences with their intervals, one row a contrast: the figure that decides a claim."""

from collections.abc import Mapping

from ..statistics import MARGIN, Contrast
from .style import look


def forest(ax, contrasts: Mapping[str, Contrast], margin: float | None = MARGIN):
    """Draw name → Contrast top down; the shaded band is ±`margin` nats, where differences are of no use."""
    names = list(contrasts)
    if margin is not None:
        ax.axvspan(-margin, margin, color="0.9", zorder=0)
    ax.axvline(0, color="0.4", linewidth=1)
    for place, name in enumerate(reversed(names)):
        found = contrasts[name]
        style = look(names.index(name))
        ax.plot([found.low, found.high], [place, place], color=style["color"], linewidth=2)
        ax.plot([found.difference], [place], color=style["color"], marker=style["marker"], linestyle="none")
    ax.set_yticks(range(len(names)), list(reversed(names)))
    ax.set_xlabel("difference (nats a token), 95 % interval; left of zero: lower loss")
    return ax
