"""What an update raises and lowers: a heat map of logit shifts, clusters against tokens."""

from collections.abc import Sequence

import numpy as np


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
