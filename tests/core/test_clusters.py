import numpy as np
import pytest
import torch

from chameleon_lite import cluster
from chameleon_lite.cluster import Clustering, fit_clusters, merge_small
from chameleon_lite.errors import UserError
from chameleon_study.sources import cluster_quality

# Three pairs in the plane: the centroids are (0, 1), (10, 1) and (5, 9), every distance is 1.
SIX = torch.tensor([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 2.0], [4.0, 9.0], [6.0, 9.0]])


def test_six_points_by_hand():
    found = fit_clusters(SIX, 3, seed=0)
    assert sorted(found.centroids.tolist()) == [[0.0, 1.0], [5.0, 9.0], [10.0, 1.0]]
    a, b, c = found.labels.view(3, 2).tolist()  # one pair a row
    assert a[0] == a[1] and b[0] == b[1] and c[0] == c[1] and len({a[0], b[0], c[0]}) == 3
    assert found.distance.tolist() == [1.0] * 6 and found.inertia == 6.0 and found.sizes.tolist() == [2, 2, 2]


def test_new_points_go_to_the_nearest_centroid():
    found = fit_clusters(SIX, 3, seed=0)
    labels, distance = found.assign(torch.tensor([[10.0, 5.0], [0.0, 1.0]]))
    assert labels.tolist() == [int(found.labels[2]), int(found.labels[0])] and distance.tolist() == [4.0, 0.0]


def test_same_seed_same_labels_bit_for_bit():
    x = torch.randn(300, 16, generator=torch.Generator().manual_seed(1))
    one, two, other = (fit_clusters(x, 9, seed=s) for s in (5, 5, 6))
    assert torch.equal(one.labels, two.labels) and torch.equal(one.centroids, two.centroids)
    assert one.inertia == two.inertia and not torch.equal(one.centroids, other.centroids)
    assert torch.equal(one.assign(x)[0], one.labels)


def test_a_sample_is_fitted_and_everything_assigned(monkeypatch):
    x = torch.cat([torch.randn(200, 4), torch.randn(200, 4) + 50])
    monkeypatch.setattr(cluster, "FITTED", 40)
    found = fit_clusters(x, 2, seed=0)
    assert found.sizes.tolist() == [200, 200] and len(found.labels) == 400


def test_fewer_distinct_rows_than_clusters_leaves_empty_ones():
    found = fit_clusters(torch.ones(6, 2), 3, seed=0)
    quality = cluster_quality(found, groups=["a", "b"] * 3, lengths=[1, 2, 3, 4, 5, 6])
    assert quality["empty"] == 2 and quality["sizes"] == {"min": 6, "median": 6.0, "max": 6}
    assert quality["length_variance_explained"] == 0.0


@pytest.mark.parametrize("k", [0, 7])
def test_a_number_of_clusters_that_cannot_be(k):
    with pytest.raises(UserError, match="between 1 and 6"):
        fit_clusters(SIX, k, seed=0)


def test_nan_is_said_plainly():
    with pytest.raises(UserError, match="NaN"):
        fit_clusters(torch.tensor([[float("nan")], [1.0]]), 1, seed=0)


LINE = torch.tensor([[0.0], [0.1], [0.2], [0.3], [9.0], [9.1], [9.2], [9.3], [3.0], [6.0]])
CENTROIDS = torch.tensor([[0.15], [9.15], [4.5]])


def test_small_groups_join_the_nearest_that_remains():
    labels = torch.tensor([0] * 4 + [1] * 4 + [2] * 2)
    assert merge_small(LINE, labels, CENTROIDS).tolist() == [0] * 4 + [1] * 4 + [0, 1]  # row by row
    assert labels.tolist()[-2:] == [2, 2]  # the argument stays as it was


def test_large_enough_groups_stay():
    labels = torch.tensor([0] * 4 + [1] * 4 + [2] * 2)
    assert torch.equal(merge_small(LINE, labels, CENTROIDS, minimum=2), labels)


def test_where_none_is_large_enough_all_join_the_largest():
    labels = torch.tensor([0, 1, 1, 2])
    assert merge_small(LINE[:4], labels, CENTROIDS).tolist() == [1] * 4


def test_quality_of_perfect_clusters():
    found = fit_clusters(SIX, 3, seed=0)
    quality = cluster_quality(found, groups=list("aabbcc"), lengths=[1, 1, 5, 5, 9, 9])
    assert quality["adjusted_mutual_information"] == pytest.approx(1)
    assert quality["length_variance_explained"] == pytest.approx(1) and quality["empty"] == 0
    assert cluster_quality(found, groups=[""] * 6, lengths=[1] * 6)["adjusted_mutual_information"] is None


def test_length_variance_by_hand():
    clustering = Clustering(torch.zeros(2, 1), torch.tensor([0, 0, 1, 1]), torch.zeros(4), 0.0)
    quality = cluster_quality(clustering, groups=["a"] * 4, lengths=np.array([0, 2, 4, 6]))
    assert quality["length_variance_explained"] == pytest.approx(16 / 20)  # between 4·2², total 9+1+1+9
