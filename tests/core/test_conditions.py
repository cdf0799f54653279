import pytest
import torch

from chameleon_lite.batches import Arrangement, arrange
from chameleon_lite.conditions import GroupMean, group_means, grouped, prompt_vectors
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


def test_a_groups_mean_is_over_all_its_documents_whatever_rows_the_step_has():
    vectors = torch.tensor([[2.0], [4.0], [10.0], [20.0]])
    order = Arrangement(torch.tensor([2, 3, 1, 0]), torch.tensor([0, 0, 1, 1]))
    condition, group = GroupMean(vectors, 2)(order, torch.tensor([0, 2]))
    assert condition.vector.tolist() == [[15.0], [3.0]] and group.tolist() == [1, 0]
    condition, group = GroupMean(vectors, 2)(order, torch.tensor([3]))
    assert condition.vector.tolist() == [[15.0]] and group is None


def test_a_source_remembers_nothing_of_the_arrangement_before():
    vectors, rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([5])
    orders = [arrange(40, None, torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    source = GroupMean(vectors, 8)
    fresh = [GroupMean(vectors, 8)(order, rows)[0].vector for order in orders]
    for i in (0, 1, 0):
        assert torch.equal(source(orders[i], rows)[0].vector, fresh[i])
        assert torch.equal(GroupMean(-vectors, 8)(orders[i], rows)[0].vector, -fresh[i])
    assert not torch.allclose(*fresh)


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
