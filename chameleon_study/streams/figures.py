"""The pictures of the chapter on streams: running losses, and what is taken of what there is in the world."""

import pandas as pd

from ..figures.style import LINES, look_of
from .run import Store
from .tables import running

READERS = {  # who reads what: the method, the most that can be known of it, what a cell is called
    "R4": ("bayes batch", "mean of the batch's prefixes"),
    "R6": ("bayes prefix", "the row's own prefix"),
    "S2": ("bayes past", "memory of what has passed"),
}


def running_losses(ax, store: Store, labels: dict[str, str], order: str = "random-0", window: int = 2_048):
    """Each method minus the frozen model over the last `window` documents of an order; below zero is a gain."""
    for index, (method, label) in enumerate(labels.items()):
        frame = running(store, method, "frozen", order, window).dropna()
        frame = frame[:: -max(1, len(frame) // 400)]  # no more than the width shows, with the last
        style = {"color": look_of(method)["color"], "linestyle": LINES[index % len(LINES)]}
        ax.plot(frame["documents"], frame["recent"], label=label, **style)
    ax.axhline(0, color="0.4", linewidth=1)
    ax.set(xlabel=f"documents that have passed (means of {window:,})", ylabel="minus frozen (nats per token)")
    ax.legend(frameon=False, fontsize=9)
    return ax


def taken(frame: pd.DataFrame, reader: str, sources: int, batch: int = 32) -> pd.DataFrame:
    """By purity and prefix: what a reader gains over the frozen head, and the most there is, in nats per token.

    frame: the phase diagram's rows; the last stretch of the streams counts.
    """
    rows = frame[
        (frame["to"] == frame["to"].max()) & (frame["sources"] == sources) & (frame["batch"] == batch)
    ]
    rows = rows.sort_values(["purity", "prefix"]).set_index(["purity", "prefix"])
    gains = {"taken": rows["frozen"] - rows[reader], "there": rows["bayes none"] - rows[READERS[reader][0]]}
    return pd.DataFrame(gains)


def phase(ax, gains: pd.DataFrame, title: str):
    """A cell per purity and prefix: shaded by the share that is taken, with both numbers written in it."""
    share = (gains["taken"] / gains["there"]).clip(0, 1).unstack()
    ax.imshow(share.to_numpy(), cmap="Blues", vmin=0, vmax=1.6, origin="lower", aspect="auto")
    for (purity, prefix), row in gains.iterrows():
        place = share.columns.get_loc(prefix), share.index.get_loc(purity)
        words = f"{row['taken']:.2f} of\n{row['there']:.2f}".replace("-0.00", "0.00")
        ax.text(*place, words, ha="center", va="center", fontsize=9, color="black")
    ax.set_xticks(range(len(share.columns)), share.columns)
    ax.set_yticks(range(len(share.index)), [f"{purity:.0%}" for purity in share.index])
    ax.set(title=title, xlabel="tokens of the prefix")
    ax.grid(False)
    return ax
