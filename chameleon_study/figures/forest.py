"""Differences with their intervals, one row a contrast: the figure that decides a claim."""

from collections.abc import Mapping

from ..claims.statistics import MARGIN, Contrast
from .style import look

VERDICT_LOOKS = {"confirmed": 2, "refuted": 1, "equivalent": 0, "not decidable here": 4}


def forest(
    ax,
    contrasts: Mapping[str, Contrast],
    margin: float | None = MARGIN,
    verdicts: Mapping[str, str] | None = None,
):
    """Draw name → Contrast top down; the shaded band is ±`margin` nats, where differences are of no use.

    With `verdicts`, name → verdict, colour and marker say the verdict, explained in a legend.
    """
    names = list(contrasts)
    index = {name: VERDICT_LOOKS[verdicts[name]] if verdicts else i for i, name in enumerate(names)}
    if margin is not None:
        ax.axvspan(-margin, margin, color="0.9", zorder=0)
    ax.axvline(0, color="0.4", linewidth=1)
    for place, name in enumerate(reversed(names)):
        found = contrasts[name]
        style = look(index[name])
        ax.plot([found.low, found.high], [place, place], color=style["color"], linewidth=2)
        ax.plot([found.difference], [place], color=style["color"], marker=style["marker"], linestyle="none")
    for verdict, place in VERDICT_LOOKS.items() if verdicts else ():
        if verdict in verdicts.values():
            style = look(place)
            ax.plot([], [], color=style["color"], marker=style["marker"], label=verdict)
    if verdicts:
        ax.legend(frameon=False, loc="upper left")
    ax.set_yticks(range(len(names)), list(reversed(names)))
    ax.set_xlabel("difference (nats a token), 95 % interval; left of zero: lower loss")
    return ax
