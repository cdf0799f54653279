"""Differences with their intervals, one row per contrast: the figure that decides a claim."""

from collections.abc import Mapping

from ..claims.statistics import MARGIN, Contrast
from .style import look

VERDICT_LOOKS = {"confirmed": 2, "refuted": 1, "equivalent": 0, "not decidable here": 4}


def forest(ax, contrasts: Mapping[str, Contrast], verdicts: Mapping[str, str] | None = None):
    """Name → Contrast top down, over a band of ±MARGIN nats; with `verdicts` looks show these."""
    looks = [look(VERDICT_LOOKS[verdicts[name]] if verdicts else i) for i, name in enumerate(contrasts)]
    ax.axvspan(-MARGIN, MARGIN, color="0.9", zorder=0)
    ax.axvline(0, color="0.4", linewidth=1)
    for place, (c, style) in enumerate(reversed([*zip(contrasts.values(), looks)])):
        ax.plot([c.low, c.high], [place, place], color=style["color"], linewidth=2)
        ax.plot([c.difference], [place], **style)
    if verdicts:
        for verdict, index in VERDICT_LOOKS.items():
            if verdict in verdicts.values():
                ax.plot([], [], **(look(index) | {"linestyle": "-"}), label=verdict)
        ax.legend(frameon=False, loc="upper left")
    ax.set_yticks(range(len(contrasts)), [*reversed([*contrasts])])
    ax.set_xlabel("difference (nats per token), 95 % interval; left of zero: lower loss")
    return ax
