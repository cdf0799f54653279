"""The walk from the released to the honest procedure: one bar a switch, what it changes and where the loss is then."""

import pandas as pd

from .style import look

LABELS = {
    "": "as released", "average": "average over tokens,\nnot batches", "ignored": "score text, not padding",
    "attention": "mask padding, not id 0", "objective": "predict the next token,\nat every position",
    "padding_in_mean": "embed without padding", "reads": "condition on the prefix,\nscore what follows",
    "validation_clusters": "clusters from training", "kmeans": "k-means++, no tiny groups",
    "batches": "new batches every epoch", "initialisation": "start as the frozen head",
    "split": "disjoint split", "reported": "report the test split",
}  # fmt: skip


def waterfall(ax, walk: pd.DataFrame, regimes: dict[str, str] | None = None):
    """Draw `walk` (columns step, mended, regime, loss; several seeds are averaged) from top to bottom.

    A bar reaches from the loss before a switch was mended to the loss after, which the tick marks and the number says.
    `regimes` maps the regimes to draw to their names.
    """
    regimes = regimes or {name: name for name in sorted(walk["regime"].unique())}
    steps = walk.drop_duplicates("step").sort_values("step")
    height, widest = 0.8 / len(regimes), float(walk.groupby(["step", "regime"])["loss"].mean().max())
    for index, (regime, name) in enumerate(regimes.items()):
        own = walk[walk["regime"] == regime].groupby("step")["loss"].mean()
        style, before = look(index), 0.0
        for place, (_, after) in enumerate(own.items()):
            y = place + (index - (len(regimes) - 1) / 2) * height
            ax.barh(y, after - before, left=before, height=height * 0.9, color=style["color"],
                    alpha=1.0 if place in (0, len(own) - 1) else 0.6, label=name if place == 0 else None)  # fmt: skip
            inward = widest / 8 < after < before  # the number stands where the bar ends, outside it
            ax.text(after if inward else max(before, after), y, f" {after:.3f} ", va="center", fontsize=8,
                    ha="right" if inward else "left")  # fmt: skip
            ax.plot([after], [y], color="black", marker="|", markersize=9, linestyle="none")
            before = after
    ax.set_yticks(range(len(steps)), [LABELS.get(m, m) for m in steps["mended"]])
    ax.invert_yaxis()
    ax.set_xlim(0, 1.15 * widest)
    ax.set_xlabel("loss that the procedure reports (nats a scored position)")
    ax.figure.legend(frameon=False, loc="outside lower center", ncols=len(regimes))  # bars leave no corner free
    return ax
