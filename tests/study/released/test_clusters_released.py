"""Clusters and batches as released: ten steps from random rows, one list of batches of one cluster."""

import pytest
import torch

from chameleon_lite.errors import UserError
from chameleon_study.released.clusters import released_batches, released_clusters


def slow_lloyd(x, start, steps):
    centroids = [x[i].clone() for i in start]
    for _ in range(steps):
        label = [min(range(len(centroids)), key=lambda k: float((row - centroids[k]).norm())) for row in x]
        for k in range(len(centroids)):
            own = [row for row, at in zip(x, label) if at == k]
            if own:
                centroids[k] = sum(own) / len(own)
    return torch.stack(centroids)


def test_clusters_agree_with_a_slow_loop():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    start = torch.randperm(40, generator=torch.Generator().manual_seed(5))[:6].tolist()
    ours = released_clusters(x, 6, seed=5)
    assert torch.allclose(ours.centroids, slow_lloyd(x, start, 10), atol=1e-5)
    assert torch.equal(ours.labels, released_clusters(x, 6, seed=5).labels)


def test_an_empty_cluster_keeps_its_stale_centroid():
    x = torch.tensor([[0.0], [0.0], [5.0]])
    found = released_clusters(x, 3, seed=0)
    assert 0 in found.sizes.tolist() and torch.isfinite(found.centroids).all()


def test_batches_hold_every_row_once_and_one_cluster_each():
    labels = torch.tensor([2, 0, 2, 2, 1, 0, 2, 2, 2, 4])
    batches = released_batches(labels, 3, seed=0)
    assert sorted(torch.cat(batches).tolist()) == list(range(10))
    assert all(len(b) <= 3 and len(set(labels[b].tolist())) == 1 for b in batches)
    order = list(dict.fromkeys(int(labels[b[0]]) for b in batches))
    assert order == [2, 0, 1, 4]  # clusters as they appear first, label 3 is empty
    assert len(batches) == 2 + 1 + 1 + 1
    again = released_batches(labels, 3, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(batches, again))


def test_more_clusters_than_rows_are_refused():
    with pytest.raises(UserError, match="cannot make 5 clusters of 3"):
        released_clusters(torch.zeros(3, 2), 5, seed=0)
