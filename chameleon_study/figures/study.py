"""The study's pictures: each draws tables of losses, contrasts or waiting times on an axis and returns it."""

import math
from collections.abc import Mapping

import pandas as pd

from ..claims.statistics import MARGIN, Contrast, mean_and_span
from ..released.protocol import SWITCHES
from .style import look

QUANTILES = ("p50", "p95", "p99")
LABEL_DECADES = 1.2  # labels of points nearer than this in bytes are separated in height
VERDICT_LOOKS = {"confirmed": 2, "refuted": 1, "equivalent": 0, "not decidable here": 4}
LABELS = {"": "as released"} | {name: row["label"] for name, row in SWITCHES.items() if "label" in row}


def _bars(ax, index: int, name: str, rows, x, y, error, **options) -> None:
    label = f"{name} (n = {int(rows['n seeds'].min())})"
    ax.errorbar(x, y, yerr=error, label=label, **look(index), **options)


def _doubling(ax, sizes):
    """A horizontal axis of powers of two, with a tick at each of the sizes."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(set(sizes)), [str(n) for n in sorted(set(sizes))])
    return ax


def group_sizes(ax, frame):
    """Loss against the rows of a conditioning group, minus that of one row's rows prefix; ±0.01 nats are shaded."""
    ax.axhspan(-MARGIN, MARGIN, color="0.92", zorder=0)
    for index, (kind, rows) in enumerate(frame.groupby("order", sort=True)):
        error = [rows["difference"] - rows["low"], rows["high"] - rows["difference"]]
        places = rows["rows in a group"] * 1.06 ** (index - 1)  # next to each other, not on top
        _bars(ax, index, kind, rows, places, rows["difference"], error, capsize=3)
    ax.set(xlabel="rows in a conditioning group", ylabel="difference from R6 (nats per token)")
    return _doubling(ax, frame["rows in a group"])


def pareto(ax, frame):
    """Loss against stored bytes, every regime named beside its point; banks of 2 … 33 experts are joined."""
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
    """Loss by scored position in the text minus the frozen model's, one line per regime; below zero is a gain."""
    for index, (name, rows) in enumerate(frame.groupby("regime", sort=False)):
        _bars(ax, index, name, rows, rows["position"], rows["difference"], rows["half"])
    ax.axhline(0, color="0.4", linewidth=1)
    ax.set(xlabel="scored tokens before (bins of 16)", ylabel="difference from R0 (nats per token)")
    ax.legend(frameon=False)
    return ax


def foreign_rows(ax, frame):
    """What foreign rows in the conditioning cost on the same scored text; 0 without any."""
    for index, (name, rows) in enumerate(frame.groupby("regime", sort=True)):
        share, cost = [0, *rows["foreign rows, %"]], [0.0, *rows["cost"]]
        error = [[0.0, *(rows["cost"] - rows["low"])], [0.0, *(rows["high"] - rows["cost"])]]
        _bars(ax, index, name, rows, share, cost, error, capsize=3)
    ax.axhline(0, color="0.4", linewidth=1)
    ax.set(xlabel="foreign rows in the conditioning (%)", ylabel="cost (nats per token), 95 % interval")
    ax.legend(frameon=False)
    return ax


def waiting(ax, frame):
    """Seconds from arrival to result against batch size: a colour per way of batching, a line per quantile."""
    for index, (name, rows) in enumerate(frame.sort_values("size").groupby("batches", sort=True)):
        for place, quantile in enumerate(QUANTILES):
            style = look(index) | {"linestyle": look(place)["linestyle"]}
            ax.plot(rows["size"], rows[quantile], label=f"{name}, {quantile}", **style)
    ax.set(yscale="log", xlabel="rows of a batch", ylabel="seconds from arrival to result")
    ax.legend(frameon=False, ncols=2)
    return _doubling(ax, frame["size"])


def learning_curves(ax, curves: pd.DataFrame):
    """Validation loss by epoch of `curves` (see `curve_frame`): the mean over seeds with a 95 % t interval."""
    for index, (regime, rows) in enumerate(curves.dropna(subset=["validation_nll"]).groupby("regime")):
        epochs = rows.groupby("epoch", sort=True)["validation_nll"]
        points = pd.DataFrame([(epoch, *mean_and_span(nll)) for epoch, nll in epochs])
        (epoch, mean, span), style = points.to_numpy().T, look(index)
        ax.plot(epoch, mean, label=f"{regime} (n = {rows['seed'].nunique()})", **style)
        ax.fill_between(epoch, mean - span, mean + span, color=style["color"], alpha=0.15, linewidth=0)
    ax.set(xlabel="epochs", ylabel="validation loss (nats per token)")
    ax.legend(frameon=False)
    return ax


def forest(ax, contrasts: Mapping[str, Contrast], verdicts: Mapping[str, str] | None = None):
    """Name → Contrast top down, over a band of ±0.01 nats; with `verdicts` looks show these."""
    ax.axvspan(-MARGIN, MARGIN, color="0.9", zorder=0)
    ax.axvline(0, color="0.4", linewidth=1)
    for index, (name, c) in enumerate(contrasts.items()):
        style, place = look(VERDICT_LOOKS[verdicts[name]] if verdicts else index), len(contrasts) - 1 - index
        ax.plot([c.low, c.high], [place, place], color=style["color"], linewidth=2)
        ax.plot([c.difference], [place], color=style["color"], marker=style["marker"], linestyle="none")
    if verdicts:
        for verdict, index in VERDICT_LOOKS.items():
            if verdict in verdicts.values():
                ax.plot([], [], **(look(index) | {"linestyle": "-"}), label=verdict)
        ax.legend(frameon=False, loc="upper left")
    ax.set_yticks(range(len(contrasts)), list(contrasts)[::-1])
    ax.set_xlabel("difference (nats per token), 95 % interval; left of zero: lower loss")
    return ax


def waterfall(ax, walk: pd.DataFrame, regimes: dict[str, str]):
    """Draw `walk` (see `walk_frame`; seeds are averaged) from top to bottom; `regimes` by name are drawn.

    A bar reaches from the loss before a switch was mended to the loss after; the number is the loss after and, in
    brackets, the change. A hatched bar changed the yardstick. A black line goes from the lowest to the highest seed.
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
