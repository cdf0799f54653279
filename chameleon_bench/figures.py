"""Pictures of what was timed: each takes axes and an entry of a results file, and returns the axes.

`panels` draws one of them per machine, for the machines that measured it, and names the others.
"""

from collections.abc import Callable

import numpy as np

from chameleon_study.figures.style import COLOURS, MARKERS, figure, look

from .tables import usable


def panels(results: dict[str, dict], name: str, draw: Callable, height: float):
    """A row of every machine that has it, one panel each; below, which machines have not measured it yet."""
    having = [stored for stored in results.values() if usable(stored["rows"].get(name))]
    others = [stored["machine"]["device"] for stored in results.values() if stored not in having]
    if not having:
        return nowhere(figure(8.0, 1.2)[1], name)
    fig, axes = figure(8.0, height * len(having), nrows=len(having), squeeze=False)
    for ax, stored in zip(axes.flat, having):
        draw(ax, stored["rows"][name])
        ax.set_title(stored["machine"]["device"])
    if others:
        fig.supxlabel(f"not measured yet on: {', '.join(others)}", fontsize=9, x=0.01, ha="left")
    return axes


def nowhere(ax, name: str):
    """In place of a picture that no machine has numbers for: a line that says so, and the command to run."""
    ax.axis("off")
    text = f"not measured on any machine yet: chameleon-lite bench {name}"
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes)
    return ax


def ladder(ax, entry: dict):
    """One bar per step, from the released way to ours, logarithmic; beside each, the factor to the first."""
    steps = entry["steps"]
    seconds, place = [s["seconds"] for s in steps], np.arange(len(steps))
    ax.barh(place, seconds, color=[COLOURS[1]] + [COLOURS[0]] * (len(steps) - 1), height=0.6)
    ax.set_yticks(place, [f"{s['step']}\n{s['idea']}" for s in steps], fontsize=9)
    ax.invert_yaxis()
    ax.set(xscale="log", xlim=(min(seconds) / 3, max(seconds) * 4))
    ax.set_xlabel("seconds for five epochs of two regimes")
    for y, value in zip(place, seconds):
        text = f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"
        ax.text(value * 1.08, y, f"{text}   {seconds[0] / value:.1f} ×", va="center", fontsize=9)
    return ax


def roofline(ax, entry: dict):
    """Stages as points under each number format's roof: operations per second against those per byte."""
    rates = entry["rates"]

    def roof(name: str, intensity):
        return np.minimum(rates[name], rates["bytes/s"] * intensity)

    intensity = np.logspace(-1, 4, 200)
    for name, line in zip([name for name in rates if name != "bytes/s"], ("-", "--")):
        ax.plot(intensity, roof(name, intensity) / 1e9, color="0.45", linestyle=line, label=f"roof, {name}")
    for i, point in enumerate(entry["points"]):
        x, rate = point["operations"] / point["bytes"], point["operations"] / point["seconds"]
        share = rate / roof(point["format"], x)
        label = f"{point['stage']} ({point['format']}), {share:.0%}"
        look_of_point = {"linestyle": "none", "markersize": 9, "color": COLOURS[i], "marker": MARKERS[i]}
        ax.plot(x, rate / 1e9, label=label, **look_of_point)
    ax.set(xscale="log", yscale="log", xlabel="operations per byte moved", ylabel="10⁹ operations per second")
    ax.legend(fontsize=8, loc="lower right")
    return ax


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
    """Speed with one and two GPUs beside a perfect split; kinds: of sharing, each with its seconds."""
    ax.plot([1, 2], [1, 2], color="0.5", linestyle=":", label="perfect")
    for i, (name, kind) in enumerate(kinds.items()):
        seconds = kind["seconds"]
        ax.plot([1, 2], [1, seconds["1"] / seconds["2"]], label=name, **look(i))
    ax.set(xticks=[1, 2], xlabel="processes, one per GPU", ylabel="times one process's speed")
    ax.legend()
    return ax
