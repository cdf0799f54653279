"""How a cloud of vectors lies: how alike they are, in which direction they spread, and a map of them in the plane.

All functions take x (N, C), one row a document, and read nothing else.
"""

import warnings

import torch
from torch import Tensor

from ..data.embeddings import normalise


def mean_cosine(x: Tensor) -> float:
    """The mean cosine over all pairs of different rows of x (N, C); no (N, N) matrix is made. NaN for one row."""
    unit = normalise(x.double())
    n, total = len(unit), unit.sum(0)  # (C,)
    return float((total @ total - unit.square().sum()) / (n * (n - 1))) if n > 1 else float("nan")


def main_direction(x: Tensor) -> tuple[Tensor, float]:
    """Place of each row (N,) along the direction of largest variance, and that direction's share of the variance.

    The sign is arbitrary in principle; here the largest entry of the direction is positive.
    """
    centred = x.double() - x.double().mean(0)
    covariance = centred.T @ centred  # (C, C)
    values, vectors = torch.linalg.eigh(covariance)
    direction = vectors[:, -1]  # (C,)
    direction = direction * direction[direction.abs().argmax()].sign()
    total = float(values.clamp_min(0).sum())
    return (centred @ direction).float(), float(values[-1]) / total if total else 0.0


def plane(x: Tensor, *, seed: int, neighbours: int = 15) -> tuple[Tensor, str]:
    """A map (N, 2) of x and the name of the method: UMAP on cosine distance, or PCA where umap-learn is missing.

    UMAP keeps neighbours together; distances between far groups mean nothing. One thread, so that the same seed
    gives the same map.
    """
    try:
        import umap
    except ImportError:
        centred = x.double() - x.double().mean(0)
        return (centred @ torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -2:].flip(1)).float(), "PCA"
    neighbours = max(2, min(neighbours, len(x) - 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spectral start falls back to a random one on degenerate clouds
        fit = umap.UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1)
        return torch.from_numpy(fit.fit_transform(x.float().cpu().numpy())), "UMAP"
