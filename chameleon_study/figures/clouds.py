"""Vectors as points: maps by group or number, a number against length; shifts as a heat map."""

from collections.abc import Sequence

import numpy as np

from .style import look


def _point(index: int) -> dict:
    return look(index) | {"linestyle": "none", "markeredgewidth": 0, "rasterized": True}


def value_map(ax, xy, values, label: str):
    """Points xy (N, 2) coloured by a number (N,), with its scale beside the map."""
    xy, values = np.asarray(xy), np.asarray(values)
    order = np.argsort(values)  # large values on top, so that a few of them are not hidden
    points = ax.scatter(*xy[order].T, c=values[order], s=9, cmap="cividis", linewidths=0, rasterized=True)
    ax.figure.colorbar(points, ax=ax, label=label, shrink=0.8)
    return bare(ax)


def bare(ax):
    """The axis without ticks and grid, for maps whose coordinates mean nothing."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax


def against_length(ax, lengths, values, index: int = 0):
    """One point per document: tokens (N,) on a logarithmic axis against any number (N,)."""
    ax.plot(lengths, values, **_point(index), markersize=3, alpha=0.35)
    ax.set_xscale("log", base=2)
    ax.set_xticks([16, 32, 64, 128, 256], ["16", "32", "64", "128", "256"])
    ax.minorticks_off()
    ax.set_xlabel("length (tokens)")
    return ax


def shifts(ax, values: np.ndarray, clusters: Sequence[str], tokens: Sequence[str]):
    """Draw values (K, tokens) in logits, red where an update raises a token, blue where it lowers it."""
    values = np.asarray(values)
    limit = float(np.abs(values).max()) or 1.0
    picture = ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    names = [token.replace("$", r"\$") for token in tokens]  # two dollars would be a formula
    ax.set_xticks(range(len(tokens)), names, rotation=90, family="monospace")
    ax.set_yticks(range(len(clusters)), clusters)
    ax.grid(False)
    ax.figure.colorbar(picture, ax=ax, label="shift of the logit")
    return ax
