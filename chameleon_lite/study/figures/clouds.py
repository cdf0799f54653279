"""Vectors as points: a map coloured by group, a number against length, and what clusters hold."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from .style import look


def group_map(ax, xy, groups: Sequence[str]):
    """Points xy (N, 2), one colour and marker for each of the groups (N,); the map's axes carry no unit."""
    xy, groups = np.asarray(xy), np.asarray(groups)
    for index, name in enumerate(sorted(set(groups))):
        own, style = xy[groups == name], look(index)
        ax.plot(
            own[:, 0],
            own[:, 1],
            color=style["color"],
            marker=style["marker"],
            linestyle="none",
            markersize=3.5,
            alpha=0.55,
            markeredgewidth=0,
            label=name,
        )
    ax.legend(
        frameon=False,
        markerscale=2,
        ncols=3,
        fontsize=9,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        columnspacing=1,
        handletextpad=0.2,
    )
    return bare(ax)


def value_map(ax, xy, values, label: str):
    """Points xy (N, 2) coloured by a number (N,), with its scale beside the map."""
    xy, values = np.asarray(xy), np.asarray(values)
    order = np.argsort(values)  # large values on top, so that a few of them are not hidden
    points = ax.scatter(*xy[order].T, c=values[order], s=9, cmap="cividis", linewidths=0)
    ax.figure.colorbar(points, ax=ax, label=label, shrink=0.8)
    return bare(ax)


def bare(ax):
    """The axis without ticks and grid, for maps whose coordinates mean nothing."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax


def against_length(ax, lengths, values, index: int = 0, label: str = ""):
    """One point a document: tokens (N,) on a logarithmic axis against any number (N,)."""
    style = look(index)
    ax.plot(
        lengths,
        values,
        color=style["color"],
        marker=style["marker"],
        linestyle="none",
        markersize=3,
        alpha=0.35,
        markeredgewidth=0,
        label=label,
    )
    ax.set_xscale("log", base=2)
    ax.set_xticks([16, 32, 64, 128, 256], ["16", "32", "64", "128", "256"])
    ax.minorticks_off()
    ax.set_xlabel("length (tokens)")
    return ax


def composition(ax, members: Sequence[Sequence[str]], names: Sequence[str]):
    """One bar a cluster, cut by group; members[i] lists the groups of the rows of the cluster named names[i]."""
    groups = sorted({group for own in members for group in own})
    left = np.zeros(len(members))
    for index, group in enumerate(groups):
        share = np.array([Counter(own)[group] / max(len(own), 1) for own in members])
        ax.barh(
            range(len(members)), share, left=left, color=look(index)["color"], label=group, edgecolor="white"
        )
        left += share
    ax.set_yticks(range(len(members)), names)
    ax.invert_yaxis()
    ax.set_xlabel("share of the cluster's rows")
    ax.grid(False)
    ax.legend(
        frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.22), columnspacing=1
    )
    return ax
