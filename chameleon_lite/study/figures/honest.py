"""The honest study's pictures: each draws one frame of `study/honest.py` on an axis and returns it."""

from .style import look


def group_sizes(ax, frame, frozen: float | None = None):
    """Loss against the rows of a conditioning group; one line clustered, one random, a point for leave-one-out."""
    for index, (kind, own) in enumerate(frame.groupby("order", sort=True)):
        ax.errorbar(own["rows in a group"], own["nll"], yerr=own["half"], capsize=3,
                    label=f"{kind} (n = {int(own['n seeds'].min())})", **look(index))
    _level(ax, frozen)
    ax.set_xscale("log", base=2)
    ax.set_xlabel("rows in a conditioning group")
    return _finish(ax)


def pareto(ax, frame):
    """Loss against stored bytes, every regime named beside its point."""
    for index, row in enumerate(frame.to_dict("records")):
        style = look(index) | {"linestyle": "none"}
        ax.errorbar([row["stored bytes"]], [row["nll"]], yerr=[row["half"]], capsize=3, **style)
        ax.annotate(row["regime"], (row["stored bytes"], row["nll"]), xytext=(4, 4), textcoords="offset points")
    ax.set_xscale("log")
    ax.set_xlabel("stored bytes")
    ax.set_ylabel("test loss (nats a token)")
    return ax


def by_position(ax, frame):
    """Loss against the scored position in the text, one line a regime."""
    for index, (name, own) in enumerate(frame.groupby("regime", sort=True)):
        ax.errorbar(own["position"], own["nll"], yerr=own["half"], label=f"{name} (n = {int(own['n seeds'].min())})",
                    **look(index))
    ax.set_xlabel("scored tokens before (bins of 16)")
    return _finish(ax)


def foreign_rows(ax, frame):
    """What foreign rows in the conditioning cost on the same scored text; 0 without any."""
    for index, (name, own) in enumerate(frame.groupby("regime", sort=True)):
        share, cost = [0, *own["foreign rows, %"]], [0.0, *own["cost"]]
        error = [[0.0, *(own["cost"] - own["low"])], [0.0, *(own["high"] - own["cost"])]]
        label = f"{name} (n = {int(own['n seeds'].min())})"
        ax.errorbar(share, cost, yerr=error, capsize=3, label=label, **look(index))
    ax.axhline(0, color="0.4", linewidth=1)
    ax.set_xlabel("foreign rows in the conditioning (%)")
    ax.set_ylabel("cost (nats a token), 95 % interval")
    ax.legend(frameon=False)
    return ax


def _level(ax, frozen: float | None) -> None:
    if frozen is not None:
        ax.axhline(frozen, color="0.4", linewidth=1)
        ax.annotate("frozen", (1, frozen), xytext=(2, 2), textcoords="offset points", color="0.3")


def _finish(ax):
    ax.set_ylabel("test loss (nats a token)")
    ax.legend(frameon=False)
    return ax
