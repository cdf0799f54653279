"""The few tensor functions that data and model share.

Axes here: any leading axes `...`, tokens T, width C, documents N, clusters K.
"""

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x (..., T, C) over the tokens where mask (..., T) is true, to (..., C); zeros where none is."""
    weight = mask.to(x.dtype).unsqueeze(-1)  # (..., T, 1)
    return (x * weight).sum(-2) / weight.sum(-2).clamp_min(1)  # (..., C)


def normalise(x: Tensor, eps: float = 1e-12) -> Tensor:
    """x (..., C) scaled to Euclidean length 1; a zero vector stays zero."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(eps)


def sent(x: Tensor, device: torch.device) -> Tensor:
    """x on the device, copied beside its work: the host does not wait for a GPU."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def nearest_centroid(x: Tensor, centroids: Tensor, chunk: int = 16_384) -> tuple[Tensor, Tensor]:
    """For x (N, C) the nearest row of centroids (K, C): labels (N,) int64 and Euclidean distances (N,).

    Works in chunks of documents, so memory is chunk × K whatever N is; ties go to the lower index.
    """
    if len(x) <= chunk:
        distance, labels = torch.cdist(x, centroids).min(dim=1)
        return labels, distance
    labels = torch.empty(len(x), dtype=torch.int64, device=x.device)
    distance = torch.empty(len(x), dtype=x.dtype, device=x.device)
    for start in range(0, len(x), chunk):
        part = torch.cdist(x[start : start + chunk], centroids)  # (n, K)
        distance[start : start + chunk], labels[start : start + chunk] = part.min(dim=1)
    return labels, distance
