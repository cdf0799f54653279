"""Pictures of what was timed: each takes axes and an entry of a results file, and returns the axes.

`panels` draws one of them a machine, for the machines that have it measured, and names the others.
"""

from collections.abc import Callable

import numpy as np

from chameleon_study.figures.style import COLOURS, MARKERS, figure, look

from .tables import usable


def panels(found: dict[str, dict], name: str, draw: Callable, height: float):
    """A row of every machine that has it, a panel each; below them, which machines have not measured it yet."""
    having = [kept for kept in found.values() if usable(kept["rows"].get(name))]
    others = [kept["machine"]["device"] for kept in found.values() if kept not in having]
    if not having:
        return nowhere(figure(8.0, 1.2)[1], name)
    fig, axes = figure(8.0, height * len(having), nrows=len(having), squeeze=False)
    for ax, kept in zip(axes.flat, having):
        draw(ax, kept["rows"][name])
        ax.set_title(kept["machine"]["device"])
    if others:
        fig.supxlabel(f"not measured yet on: {', '.join(others)}", fontsize=9, x=0.01, ha="left")
    return axes


def nowhere(ax, name: str):
    """In place of a picture that no machine's file has numbers for: that, and the command that makes them."""
    ax.axis("off")
    ax.text(
        0.5,
        0.5,
        f"not measured on any machine yet: chameleon-lite bench {name}",
        ha="center",
        va="center",
        transform=ax.transAxes,
    )
    return ax


def ladder(ax, entry: dict):
    """One bar a step, from the released way down to ours, on a logarithmic axis; the factor to the first beside it."""
    steps = entry["steps"]
    seconds = [s["seconds"] for s in steps]
    place = np.arange(len(steps))
    ax.barh(place, seconds, color=[COLOURS[1]] + [COLOURS[0]] * (len(steps) - 1), height=0.6)
    ax.set_yticks(place, [f"{s['step']}\n{s['idea']}" for s in steps], fontsize=9)
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.set_xlim(min(seconds) / 3, max(seconds) * 4)
    for y, value in zip(place, seconds):
        ax.text(value * 1.08, y, f"{_seconds(value)}   {seconds[0] / value:.1f} ×", va="center", fontsize=9)
    ax.set_xlabel("seconds for five epochs of two regimes")
    return ax


def roofline(ax, entry: dict):
    """Stages as points under the roof of each number format: operations a second against operations a byte."""
    rates = entry["rates"]
    intensity = np.logspace(-1, 4, 200)
    formats = [name for name in rates if name != "bytes/s"]
    for i, name in enumerate(formats):
        roof = np.minimum(rates[name], rates["bytes/s"] * intensity)
        ax.plot(intensity, roof / 1e9, color="0.45", linestyle=("-", "--")[i], label=f"roof, {name}")
    for i, point in enumerate(entry["points"]):
        x, y = point["operations"] / point["bytes"], point["operations"] / point["seconds"] / 1e9
        ax.plot(
            x,
            y,
            linestyle="none",
            markersize=9,
            color=COLOURS[i],
            marker=MARKERS[i],
            label=f"{point['stage']} ({point['format']}), {_share(entry, point):.0%}",
        )
    ax.set(xscale="log", yscale="log", xlabel="operations a byte moved", ylabel="10⁹ operations a second")
    ax.legend(fontsize=8, loc="lower right")
    return ax


def _share(entry: dict, point: dict) -> float:
    """The part of the roof above it that a point reaches."""
    rates = entry["rates"]
    roof = min(rates[point["format"]], rates["bytes/s"] * point["operations"] / point["bytes"])
    return point["operations"] / point["seconds"] / roof


def growth(ax, entry: dict, against: str):
    """Curves of one kind on logarithmic axes; the legend has each slope beside the one expected."""
    curves = [c for c in entry["curves"] if c["against"] == against]
    for i, curve in enumerate(curves):
        label = f"{curve['stage']}: {round(curve['slope'], 2) + 0.0:.2f} ({curve['expected']:g} expected)"
        ax.plot(curve["sizes"], curve["values"], label=label, **look(i))
    unit = "seconds" if {c["unit"] for c in curves} == {"s"} else "bytes"
    ax.set(xscale="log", yscale="log", xlabel=against, ylabel=unit)
    values = [v for c in curves for v in c["values"]]
    if max(values) < 10 * min(values):
        ax.set_ylim(min(values) / 10, max(values) * 10)  # a flat curve should look flat
    elif len(curves) > 2:
        ax.set_ylim(top=max(values) * 30)  # room for the legend
    ax.legend(fontsize=8, loc="upper left", ncols=2 if len(curves) > 2 else 1)
    return ax


def scaling(ax, kinds: dict[str, dict]):
    """Speed with one and two GPUs beside a perfect split; kinds: of sharing, each with {processes: seconds}."""
    ax.plot([1, 2], [1, 2], color="0.5", linestyle=":", label="perfect")
    for i, (name, found) in enumerate(kinds.items()):
        one = found["seconds"]["1"]
        counts = sorted(found["seconds"], key=int)
        ax.plot([int(c) for c in counts], [one / found["seconds"][c] for c in counts], label=name, **look(i))
    ax.set(xticks=[1, 2], xlabel="processes, one a GPU", ylabel="times one process's speed")
    ax.legend()
    return ax


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"
