"""Clusters and batches as released: ten steps from random rows, one list of batches of one cluster."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon_lite.errors import UserError
from chameleon_study.released.prepare import cluster_batches, released_batches, released_clusters


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


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.data())
def test_cluster_batches_hold_each_row_once_and_one_cluster_each(labels, data):
    size = data.draw(st.integers(1, len(labels)))
    batches = cluster_batches(torch.tensor(labels), size, seeded())
    assert sorted(torch.cat(batches).tolist()) == list(range(len(labels)))
    for batch in batches:
        assert 1 <= len(batch) <= size and len({labels[i] for i in batch.tolist()}) == 1
    assert len(batches) == sum(-(-labels.count(k) // size) for k in set(labels))  # as few as can be


def test_each_epoch_is_shuffled_anew_and_repeats_with_the_seed():
    labels = torch.arange(200) % 3

    def epochs(seed):
        generator = seeded(seed)
        return [[b.tolist() for b in cluster_batches(labels, 8, generator)] for _ in range(2)]

    first, second = epochs(0)
    assert [first, second] == epochs(0) and first != epochs(1)[0]
    assert sorted(map(sorted, first)) != sorted(map(sorted, second))  # composition changes, not only order
