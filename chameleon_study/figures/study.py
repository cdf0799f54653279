"""The study's pictures: each draws one table of study_tables.py or arrivals.py on an axis and returns it."""

import math

from ..claims.statistics import MARGIN
from .style import look

QUANTILES = ("p50", "p95", "p99")
LABEL_DECADES = 1.2  # labels of points nearer than this in bytes are separated in height


def _bars(ax, index: int, name: str, rows, x, y, error, **options) -> None:
    seeds = int(rows["n seeds"].min())
    ax.errorbar(x, y, yerr=error, label=f"{name} (n = {seeds})", **look(index), **options)


def _against_zero(ax, x: str, y: str):
    ax.axhline(0, color="0.4", linewidth=1)
    ax.set(xlabel=x, ylabel=y)
    ax.legend(frameon=False)
    return ax


def group_sizes(ax, frame):
    """Loss against the rows of a conditioning group, minus that of the own prefix; ±0.01 is shaded."""
    ax.axhspan(-MARGIN, MARGIN, color="0.92", zorder=0)
    for index, (kind, rows) in enumerate(frame.groupby("order", sort=True)):
        error = [rows["difference"] - rows["low"], rows["high"] - rows["difference"]]
        places = rows["rows in a group"] * 1.06 ** (index - 1)  # next to each other, not on top
        _bars(ax, index, kind, rows, places, rows["difference"], error, capsize=3)
    ax.set_xscale("log", base=2)
    sizes = sorted(frame["rows in a group"].unique())
    ax.set_xticks(sizes, [str(s) for s in sizes])
    ax.set(xlabel="rows in a conditioning group", ylabel="difference from R6 (nats per token)")
    return ax


def pareto(ax, frame):
    """Loss against stored bytes, each regime named at its point; banks of 2 … 33 experts are joined."""
    banks = frame[frame["regime"].str.fullmatch(r"R11(-K\d+)?")].sort_values("stored bytes")
    ax.plot(banks["stored bytes"], banks["nll"], color="0.6", linewidth=1, zorder=1)
    for index, row in enumerate(frame.to_dict("records")):
        style = look(index) | {"linestyle": "none"}
        ax.errorbar([row["stored bytes"]], [row["nll"]], yerr=[row["half"]], capsize=3, **style)
    gap = 0.045 * (frame["nll"].max() - frame["nll"].min())
    lowest: list[tuple[float, float]] = []  # (log10 bytes, height) of the labels so far, from below
    for row in frame.sort_values("nll").to_dict("records"):
        x, y = math.log10(max(row["stored bytes"], 1)), row["nll"]
        y = max([y, *(height + gap for at, height in lowest if abs(at - x) < LABEL_DECADES)])
        lowest.append((x, y))
        point, label = (row["stored bytes"], row["nll"]), (1.6 * row["stored bytes"], y)
        line = {"arrowstyle": "-", "color": "0.7", "linewidth": 0.6}
        ax.annotate(row["regime"], point, xytext=label, fontsize=9, va="center", arrowprops=line)
    ax.set(xscale="log", xlabel="stored bytes", ylabel="test loss (nats per token)")
    ax.set_xlim(right=20 * frame["stored bytes"].max())
    return ax


def by_position(ax, frame):
    """Loss by scored position minus the frozen model's, one line per regime; below zero is a gain."""
    for index, (name, rows) in enumerate(frame.groupby("regime", sort=False)):
        _bars(ax, index, name, rows, rows["position"], rows["difference"], rows["half"])
    return _against_zero(ax, "scored tokens before (bins of 16)", "difference from R0 (nats per token)")


def foreign_rows(ax, frame):
    """What foreign rows in the conditioning cost on the same scored text; 0 without any."""
    for index, (name, rows) in enumerate(frame.groupby("regime", sort=True)):
        share, cost = [0, *rows["foreign rows, %"]], [0.0, *rows["cost"]]
        error = [[0.0, *(rows["cost"] - rows["low"])], [0.0, *(rows["high"] - rows["cost"])]]
        _bars(ax, index, name, rows, share, cost, error, capsize=3)
    return _against_zero(ax, "foreign rows in the conditioning (%)", "cost (nats per token), 95 % interval")


def waiting(ax, frame):
    """Seconds from arrival to result against batch size: a colour per way, a line per quantile."""
    for index, (name, rows) in enumerate(frame.sort_values("size").groupby("batches", sort=True)):
        for place, quantile in enumerate(QUANTILES):
            style = look(index) | {"linestyle": look(place)["linestyle"]}
            ax.plot(rows["size"], rows[quantile], label=f"{name}, {quantile}", **style)
    ax.set_xscale("log", base=2)
    ax.set(yscale="log", xlabel="rows of a batch", ylabel="seconds from arrival to result")
    sizes = sorted(frame["size"].unique())
    ax.set_xticks(sizes, [str(n) for n in sizes])
    ax.legend(frameon=False, ncols=2)
    return ax
