"""What clusters are made of: their sizes, and how far they are the documents' origins or lengths."""

from collections.abc import Sequence

import numpy as np

from chameleon_lite.cluster import Clustering


def cluster_quality(clustering: Clustering, *, groups: Sequence[str], lengths: Sequence[int]) -> dict:
    """Numbers on the fitted rows: sizes, agreement with the documents' origins, and with their lengths.

    groups (N,) and lengths (N,) are the documents' origins and token counts. `adjusted_mutual_information` is
    1 for clusters that are the groups, about 0 for chance, None with fewer than two groups;
    `length_variance_explained` is η²: the share of the variance of length that lies between clusters.
    """
    sizes, labels = clustering.sizes, clustering.labels.cpu().numpy()
    filled = sizes[sizes > 0].double()
    return {
        "clusters": len(sizes),
        "empty": int((sizes == 0).sum()),
        "inertia": clustering.inertia,
        "sizes": {"min": int(filled.min()), "median": float(filled.quantile(0.5)), "max": int(filled.max())},
        "adjusted_mutual_information": _mutual_information(labels, groups),
        "length_variance_explained": _variance_explained(labels, np.asarray(lengths, float)),
    }


def _mutual_information(labels: np.ndarray, groups: Sequence[str]) -> float | None:
    from sklearn.metrics import adjusted_mutual_info_score

    if len(set(groups)) < 2:
        return None
    return float(adjusted_mutual_info_score(list(groups), labels))


def _variance_explained(labels: np.ndarray, values: np.ndarray) -> float:
    """η² of values (N,) by labels (N,): between-cluster over total sum of squares; 0 where values are equal."""
    centred = values - values.mean()
    total = float(centred @ centred)
    sizes = np.bincount(labels)
    sums = np.bincount(labels, weights=centred)
    return float((sums**2 / np.maximum(sizes, 1)).sum() / total) if total else 0.0
