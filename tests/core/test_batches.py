import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lite.batches import cluster_batches, random_batches
from chameleon_lite.errors import UserError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.data())
def test_cluster_batches_hold_each_row_once_and_one_cluster_each(labels, data):
    size = data.draw(st.integers(1, len(labels)))
    batches = cluster_batches(torch.tensor(labels), size, seeded())
    assert sorted(torch.cat(batches).tolist()) == list(range(len(labels)))
    for batch in batches:
        assert 1 <= len(batch) <= size and len({labels[i] for i in batch.tolist()}) == 1
    assert len(batches) == sum(-(-labels.count(k) // size) for k in set(labels))  # as few as can be


@given(st.integers(1, 60), st.data())
def test_random_batches_hold_each_row_once(n, data):
    size = data.draw(st.integers(1, n))
    batches = random_batches(n, size, seeded())
    assert sorted(torch.cat(batches).tolist()) == list(range(n))
    assert [len(b) for b in batches[:-1]] == [size] * (len(batches) - 1)


def test_each_epoch_is_shuffled_anew_and_repeats_with_the_seed():
    labels = torch.arange(200) % 3

    def epochs(seed):
        generator = seeded(seed)
        return [[b.tolist() for b in cluster_batches(labels, 8, generator)] for _ in range(2)]

    first, second = epochs(0)
    assert [first, second] == epochs(0) and first != epochs(1)[0]
    assert sorted(map(sorted, first)) != sorted(map(sorted, second))  # composition changes, not only order
    drawn = seeded()
    assert torch.cat(random_batches(9, 3, drawn)).tolist() != torch.cat(random_batches(9, 3, drawn)).tolist()


@pytest.mark.parametrize("size", [0, 11])
def test_a_batch_that_does_not_fit(size):
    with pytest.raises(UserError, match="between 1 and 10"):
        random_batches(10, size, seeded())
    with pytest.raises(UserError, match="between 1 and 10"):
        cluster_batches(torch.zeros(10, dtype=torch.int64), size, seeded())
