import pytest
import torch

from chameleon_lite.conditions import group_means, grouped, prompt_vectors
from chameleon_lite.errors import UserError


def test_vector_is_the_mean_of_real_tokens_at_length_one():
    embedded = torch.tensor([[[9.0, 9.0], [3.0, 0.0], [3.0, 8.0]], [[9.0, 9.0], [9.0, 9.0], [0.0, 2.0]]])
    mask = torch.tensor([[0, 1, 1], [0, 0, 1]])
    torch.testing.assert_close(prompt_vectors(embedded, mask), torch.tensor([[0.6, 0.8], [0.0, 1.0]]))


def test_group_means():
    x = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 2.0]])
    torch.testing.assert_close(
        group_means(x, torch.tensor([0, 1, 0])), torch.tensor([[3.0, 1.0], [3.0, 4.0]])
    )


def test_clusters_are_the_nearest_centroids_and_only_met_ones_get_a_condition():
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.8]])
    centroids = torch.tensor([[1.0, 0.0], [-9.0, -9.0], [0.0, 1.0]])
    found = grouped(x, centroids)
    assert found.cluster.tolist() == [2, 0, 2] and found.group.tolist() == [1, 0, 1]
    assert found.condition.groups == 2
    torch.testing.assert_close(found.distance, torch.tensor([0.0, 0.0, 0.2]))
    assert torch.equal(grouped(x, centroids, "centroid").condition.vector, centroids[[0, 2]])
    assert torch.equal(grouped(x, centroids, "row").condition.vector, x)


def test_without_centroids_all_rows_are_one_cluster():
    found = grouped(torch.eye(3), torch.zeros(0, 3))
    assert found.condition.groups == 1 and found.group.tolist() == [0, 0, 0]
    with pytest.raises(UserError, match="stored centroids"):
        grouped(torch.eye(3), None, "centroid")
    with pytest.raises(UserError, match="did you mean 'row'"):
        grouped(torch.eye(3), None, "rows")
