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
    from sklearn.metrics import adjusted_mutual_info_score

    sizes, labels = clustering.sizes, clustering.labels.cpu().numpy()
    filled = sizes[sizes > 0].double()
    centred = np.asarray(lengths, float) - np.mean(lengths, dtype=float)
    total = float(centred @ centred)
    between = np.bincount(labels, weights=centred) ** 2 / np.maximum(np.bincount(labels), 1)
    several = len(set(groups)) > 1
    return {
        "clusters": len(sizes),
        "empty": int((sizes == 0).sum()),
        "inertia": clustering.inertia,
        "sizes": {"min": int(filled.min()), "median": float(filled.quantile(0.5)), "max": int(filled.max())},
        "adjusted_mutual_information": float(adjusted_mutual_info_score(list(groups), labels))
        if several
        else None,
        "length_variance_explained": float(between.sum() / total) if total else 0.0,
    }
