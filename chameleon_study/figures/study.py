"""The study's pictures: each draws one table of study_tables.py or arrivals.py on an axis and returns it."""

from .style import look

QUANTILES = ("p50", "p95", "p99")


def _bars(ax, index: int, name: str, rows, x, y, error, **options) -> None:
    seeds = int(rows["n seeds"].min())
    ax.errorbar(x, y, yerr=error, label=f"{name} (n = {seeds})", **look(index), **options)


def _against_zero(ax, x: str, y: str):
    ax.axhline(0, color="0.4", linewidth=1)
    ax.set(xlabel=x, ylabel=y)
    ax.legend(frameon=False)
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
