import warnings

import numpy as np
import pytest
import torch

from chameleon_lite.data import lloyd
from chameleon_lite.data.clusters import MAX_CLUSTERS, cluster_count, fit_clusters, steps_from
from chameleon_lite.ops import nearest_centroid


def points(n=600, k=12, width=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(k, width, generator=g)
    return centres[torch.randint(k, (n,), generator=g)] + torch.randn(n, width, generator=g)


def inertia(x, centroids):
    return float(nearest_centroid(x, centroids)[1].double().square().sum())


def test_one_step_by_hand():
    x = torch.tensor([[0.0], [1.0], [10.0], [14.0]])
    centroids = lloyd.lloyd(x, torch.tensor([[0.0], [9.0]]), 1)
    assert centroids.tolist() == [[0.5], [12.0]] and lloyd.inertia(x, centroids) == pytest.approx(0.5 + 8.0)


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_the_same_start_and_steps_give_scikit_learns_inertia(steps):
    x = points()
    start = x[:12].clone()
    ours = lloyd.lloyd(x, start, steps, tolerance=-1.0)
    assert inertia(x, ours) == pytest.approx(inertia(x, steps_from(x, start, steps)), rel=1e-3)


def test_chunks_change_nothing(monkeypatch):
    x, c = points(), points(20, seed=1)
    labels, distance = lloyd.assign(x, c, x.square().sum(1))
    monkeypatch.setattr(lloyd, "CHUNK_BYTES", 4 * 20 * 37)
    again, far = lloyd.assign(x, c, x.square().sum(1))
    assert torch.equal(labels, again) and torch.allclose(distance, far, atol=1e-4)
    assert torch.equal(labels, nearest_centroid(x, c)[0])


def test_an_empty_cluster_starts_anew_at_the_farthest_row():
    x = torch.tensor([[0.0], [1.0], [2.0], [50.0]])
    centroids = lloyd.lloyd(x, torch.tensor([[1.0], [1000.0]]), 5)
    assert lloyd.inertia(x, centroids) == pytest.approx(2.0) and sorted(centroids.flatten().tolist()) == [1.0, 50.0]


def test_a_start_is_of_rows_and_as_good_as_scikit_learns():
    x = points(2_000, 30)
    ours = np.mean([inertia(x, lloyd.kmeans(x, 30, seed=s)) for s in range(5)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = np.mean([fit_clusters(x, 30, seed=s).inertia for s in range(5)])
    assert ours == pytest.approx(theirs, rel=0.1)
    start = lloyd.plus_plus(x, 30, torch.Generator().manual_seed(0))
    assert len(torch.unique(start, dim=0)) == 30
    assert all(bool((row == x).all(1).any()) for row in start)


def test_the_same_seed_gives_the_same_centroids_bit_for_bit():
    x = points()
    assert torch.equal(lloyd.kmeans(x, 9, seed=4), lloyd.kmeans(x, 9, seed=4))
    assert not torch.equal(lloyd.kmeans(x, 9, seed=4), lloyd.kmeans(x, 9, seed=5))


def test_fewer_distinct_rows_than_clusters():
    x = torch.tensor([[0.0, 0.0]] * 5 + [[1.0, 0.0]] * 5)
    assert inertia(x, lloyd.kmeans(x, 4, seed=0)) == pytest.approx(0.0, abs=1e-6)


def test_clusters_have_a_ceiling():
    assert cluster_count(10, 32) == 1 and cluster_count(320, 32) == 10
    assert cluster_count(10_000_000, 32) == MAX_CLUSTERS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_large_inputs_are_clustered_there_and_repeat_themselves():
    x = points(20_000, 100, 64).cuda()
    first, again = fit_clusters(x, 100, seed=0), fit_clusters(x, 100, seed=0)
    assert first.centroids.is_cuda and torch.equal(first.labels, again.labels)
    assert first.inertia == pytest.approx(fit_clusters(x.cpu(), 100, seed=0).inertia, rel=0.1)
