import warnings

import numpy as np
import pytest
import torch

from chameleon_bench.baselines import kmeans_by_scikit_learn
from chameleon_lite import cluster, engine
from chameleon_lite.cluster import MAX_CLUSTERS, cluster_count, fit_clusters, nearest_centroid
from chameleon_lite.embed import normalise
from chameleon_lite.fast import lloyd


def points(n=600, k=12, width=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(k, width, generator=g)
    return centres[torch.randint(k, (n,), generator=g)] + torch.randn(n, width, generator=g)


def inertia(x, centroids):
    return float(nearest_centroid(x, centroids)[1].double().square().sum())


def scores(x, centroids):
    """x·c − ½‖c‖² (N, K) in float64."""
    return x.double() @ centroids.double().T - 0.5 * centroids.double().square().sum(1)


def unit_rows(n=3_000, k=100, width=96):
    """Rows of length 1 around centres, and k of them."""
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(k, width, generator=g)
    x = normalise(torch.randn(n, width, generator=g) + 0.6 * centres[torch.randint(k, (n,), generator=g)])
    return x, x[torch.randperm(n, generator=g)[:k]]


def test_one_step_by_hand():
    x = torch.tensor([[0.0], [1.0], [10.0], [14.0]])
    centroids = lloyd.lloyd(x, torch.tensor([[0.0], [9.0]]), 1)
    assert centroids.tolist() == [[0.5], [12.0]] and inertia(x, centroids) == pytest.approx(0.5 + 8.0)


@pytest.fixture(params=[False, True], ids=["in turn", "ahead"])
def ahead(request, monkeypatch):
    """The next step waits for the host, or is begun before it, as on a GPU, and thrown away where it is not next."""
    monkeypatch.setattr(lloyd, "AHEAD", ("cpu",) if request.param else ())
    return request.param


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_the_same_start_and_steps_give_scikit_learns_inertia(steps):
    x = points()
    start = x[:12].clone()
    ours = lloyd.lloyd(x, start, steps, tolerance=-1.0)
    assert inertia(x, ours) == pytest.approx(inertia(x, kmeans_by_scikit_learn(x, start, steps)), rel=1e-3)


def test_chunks_change_nothing(monkeypatch):
    x, c = points(), points(20, seed=1)
    closeness, labels = lloyd.closest(x, c)
    monkeypatch.setattr(lloyd, "CHUNK_BYTES", 4 * 20 * 37)
    far, again = lloyd.closest(x, c)
    assert torch.equal(labels, again) and torch.allclose(closeness, far, atol=1e-4)
    assert torch.equal(labels, nearest_centroid(x, c)[0])


def test_an_empty_cluster_starts_anew_at_the_farthest_row(ahead):
    x = torch.tensor([[0.0], [1.0], [2.0], [50.0]])
    centroids = lloyd.lloyd(x, torch.tensor([[1.0], [1000.0]]), 5)
    assert inertia(x, centroids) == pytest.approx(2.0) and sorted(centroids.flatten().tolist()) == [1.0, 50.0]


def test_empty_clusters_take_different_rows_and_do_not_end_the_steps(ahead):
    x = torch.tensor([[0.0], [1.0], [20.0], [50.0]])
    start = torch.tensor([[0.5], [1000.0], [2000.0]])
    assert lloyd.lloyd(x, start, 1).flatten().tolist() == [17.75, 50.0, 20.0]
    assert lloyd.lloyd(x, start, 9, tolerance=0.0).flatten().tolist() == [0.5, 50.0, 20.0]
    lost_at_zero = lloyd.lloyd(torch.tensor([[4.0], [6.0]]), torch.tensor([[5.0], [0.0]]), 9, tolerance=0.0)
    assert sorted(lost_at_zero.flatten().tolist()) == [4.0, 6.0]


def test_rows_at_rest_end_the_steps(monkeypatch, ahead):
    x, means = points(), lloyd._means
    calls = []
    monkeypatch.setattr(lloyd, "_means", lambda *given: calls.append(1) or means(*given))
    rest = lloyd.lloyd(x, x[:12], 200, tolerance=0.0)
    assert 1 < len(calls) < 100
    calls.clear()
    assert torch.equal(lloyd.lloyd(x, rest, 200), rest) and len(calls) == 1 + ahead
    calls.clear()
    lloyd.lloyd(x, rest, 7, tolerance=-1.0)
    assert len(calls) == 7


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_labels_are_those_of_float64_and_centroids_those_of_the_host():
    x, start = (a.cuda() for a in unit_rows(20_000, 100, 96))
    assert torch.equal(lloyd.closest(x, start)[1], scores(x, start).argmax(1))
    found, again = (lloyd.lloyd(x, start, 5, -1.0) for _ in range(2))
    assert torch.equal(found, again)
    assert inertia(x, found) == pytest.approx(
        inertia(x.cpu(), lloyd.lloyd(x.cpu(), start.cpu(), 5, -1.0)), rel=1e-4
    )


def test_many_rows_are_clustered_here_and_few_by_scikit_learn(monkeypatch):
    with engine.use("auto"):
        x = points(400, seed=3)
        few = fit_clusters(x, 12, seed=0)
        monkeypatch.setattr(cluster, "MANY_PRODUCTS", 400 * 12)
        many = fit_clusters(x, 12, seed=0)
        assert torch.equal(many.centroids, lloyd.kmeans(x, 12, seed=0))
        assert not torch.equal(many.centroids, few.centroids)
        assert many.inertia == pytest.approx(few.inertia, rel=0.2)


def test_the_number_of_threads_changes_no_bit():
    x, threads = points(3_000, seed=4), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(lloyd.kmeans(x, 40, seed=0))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])
