"""What batching costs the one who waits: latency against batch size, batches by cluster beside mixed ones."""

import pandas as pd

from .style import look

QUANTILES = ("p50", "p95", "p99")


def waiting(ax, table: pd.DataFrame):
    """Draw the table of `adapt.arrivals.waiting_table`: one colour a way of batching, one line style a quantile."""
    for index, (name, own) in enumerate(table.groupby("batches", sort=True)):
        own = own.sort_values("size")
        for place, quantile in enumerate(QUANTILES):
            style = look(index) | {"linestyle": look(place)["linestyle"]}
            ax.plot(own["size"], own[quantile], label=f"{name}, {quantile}", **style)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(sorted(table["size"].unique()), [str(n) for n in sorted(table["size"].unique())])
    ax.set_xlabel("rows of a batch")
    ax.set_ylabel("seconds from arrival to result")
    ax.legend(frameon=False, ncols=2)
    return ax
