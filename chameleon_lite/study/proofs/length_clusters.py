"""What the clusters are made of: the share of the variance of length they explain, with and without padding."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...data.cluster_quality import cluster_quality
from ...data.released import released_clusters
from ..released_material import span_vectors
from .store import Proof
from .subject import Subject


def prove(subject: Subject) -> Proof:
    """Cluster validation vectors with and without padding in the mean, and ask both for the rows' lengths."""
    material, size = subject.material, subject.settings.clusters.batch_rows
    table = material.tables["validation"]
    stop = table.prefix if subject.prompts else table.lengths  # prompts are clustered by the prompt
    table = replace(table, condition=np.stack([np.zeros_like(stop), stop], axis=1).astype(np.int32))
    weight = subject.backbone.embedding.detach().cpu()
    numbers: dict[str, float] = {}
    for name, length in (("padded", subject.settings.tokens.max_length), ("unpadded", None)):
        x = span_vectors(table, weight, length)
        found = released_clusters(x, max(1, len(x) // size), seed=subject.seed)
        quality = cluster_quality(found, groups=table.groups, lengths=stop)
        share, correlation = first_component(x, stop)
        numbers |= {
            f"{name}_length_variance_explained": quality["length_variance_explained"],
            f"{name}_first_component_share": share,
            f"{name}_first_component_length_correlation": correlation,
        }
        if quality["adjusted_mutual_information"] is not None:
            numbers[f"{name}_group_mutual_information"] = quality["adjusted_mutual_information"]
    with_, without = (numbers[f"{name}_length_variance_explained"] for name in ("padded", "unpadded"))
    return Proof(
        proof="length_clusters",
        title="Clusters of padded means are clusters of length",
        audit=(19, 27),
        where="the embedding step before k-means, in both scripts",
        shows=f"Clusters explain {with_:.1%} of the variance of length with padding in the mean, {without:.1%} "
        "without.",
        numbers=numbers,
    )


def first_component(x: Tensor, values: np.ndarray) -> tuple[float, float]:
    """Share of the variance of x (N, C) in its first principal component, and |Spearman| of it with values (N,)."""
    from scipy.stats import spearmanr

    centred = (x - x.mean(0)).double()
    spectrum, directions = torch.linalg.eigh(centred.T @ centred)  # ascending
    along = (centred @ directions[:, -1]).numpy()
    return float(spectrum[-1] / spectrum.sum()), abs(float(spearmanr(along, values).statistic))
