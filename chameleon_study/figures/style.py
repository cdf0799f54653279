"""One look for all figures: colours after Okabe and Ito with markers and lines; a head keeps its own."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#332288")
COLOURS += ("#8C8C8C", "#882255", "#999933", "#44AA99", "#661100", "#AA4499")  # no yellow
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
# Whose colour each of them is, by the regime's code, and the names that figures print for some.
HEADS = "R1 R4 R2 R3 R6 R16 R11 R5 R0 S1 S2 R12 R15 R20".split()
NAMES = {"LoRA": "R1", "LoRA, rank 4": "R1", "LoRA of equal size": "R2", "frozen": "R0"}
NAMES |= {"constant input": "R3", "ChameleonLLM": "R4", "hyper-network": "R4"}


def look(index: int) -> dict:
    """Colour, marker and line style of the index-th series."""
    cycle = {"color": COLOURS, "marker": MARKERS, "linestyle": LINES}
    return {name: values[index % len(values)] for name, values in cycle.items()}


def look_of(name: str) -> dict:
    """The look of a head in every figure, by code (the order and the search of a regime aside) or printed name."""
    code = NAMES.get(name, name).removeprefix("R19-").partition("-")[0]
    return look(HEADS.index(code if code in HEADS else "R0"))


def figure(width: float = 7.0, height: float = 4.0, **options):
    """A figure and its axes at a size that stays readable on a phone; a notebook shows it as SVG with text."""
    import matplotlib.pyplot as plt
    from IPython import get_ipython
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    if get_ipython():
        set_matplotlib_formats("svg")
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3, "figure.dpi": 144, "savefig.bbox": "tight"})
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "book"})
    return plt.subplots(figsize=(width, height), layout="constrained", **options)
