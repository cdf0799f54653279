"""One look for all figures: Okabe and Ito's colours, each with its own marker and line."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")


def look(index: int) -> dict:
    """Colour, marker and line style of the index-th series."""
    cycle = {"color": COLOURS, "marker": MARKERS, "linestyle": LINES}
    return {name: values[index % len(values)] for name, values in cycle.items()}


def figure(width: float = 7.0, height: float = 4.0, **options):
    """A figure and its axes at a size that stays readable on a phone."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3, "figure.dpi": 110, "savefig.bbox": "tight"})
    return plt.subplots(figsize=(width, height), layout="constrained", **options)
