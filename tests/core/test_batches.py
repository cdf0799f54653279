import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon_lite.batches import Arrangement, arrange


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_groups_by_hand():
    # two clusters of 5 and 2 rows, groups of at most 3: the run of 5 is cut into 3 + 2, never 3 + 2 across clusters
    order = Arrangement(torch.tensor([6, 5, 4, 3, 2, 1, 0]), torch.tensor([1, 1, 1, 1, 1, 0, 0]))
    groups = order.groups(3)
    assert groups.of.tolist() == [2, 2, 1, 1, 0, 0, 0]
    assert groups.start.tolist() == [0, 3, 5, 7]
    assert [s.tolist() for s in order.steps(4)] == [[6, 5, 4, 3], [2, 1, 0]]


def test_random_groups_align_with_steps():
    order = arrange(100, None, seeded())
    group = order.groups(32).of
    for step in order.steps(32)[:3]:
        assert len(group[step].unique()) == 1
    assert group.max() == 2  # the rest of 4 rows joins the third group: alone it would be a poor mean
    assert arrange(5, None, seeded()).groups(32).of.tolist() == [0] * 5
    assert arrange(80, None, seeded()).groups(32).start.tolist() == [0, 32, 64, 80]  # a rest of half stays


@settings(deadline=None)
@given(n=st.integers(1, 60), k=st.integers(1, 6), size=st.integers(1, 9), seed=st.integers(0, 5))
def test_every_document_once_and_no_group_spans_clusters(n, k, size, seed):
    labels = torch.randint(k, (n,), generator=seeded(seed))
    order = arrange(n, labels, seeded(seed))
    assert sorted(torch.cat(order.steps(size)).tolist()) == list(range(n))
    groups = order.groups(size)
    for g in range(int(groups.of.max()) + 1):
        rows = (groups.of == g).nonzero()[:, 0]
        assert 1 <= len(rows) <= size and len(labels[rows].unique()) == 1
        assert torch.equal(order.order[groups.start[g] : groups.start[g + 1]].sort().values, rows)
    along = groups.of[order.order]
    assert (along.diff() >= 0).all()  # groups are numbered along the order, as steps are
    assert torch.equal(torch.arange(n)[along.diff(prepend=torch.tensor([-1])) > 0], groups.start[:-1])


def test_given_batches_are_the_steps_whatever_the_number_of_rows():
    batches = [torch.tensor([4, 1]), torch.tensor([0]), torch.tensor([2, 3, 5])]
    order = Arrangement.of(batches)
    for steps in (order.steps(), order.steps(4)):
        assert all(torch.equal(a, b) for a, b in zip(steps, batches, strict=True))
    with pytest.raises(ValueError, match="rows per step"):
        Arrangement(order.order).steps()


def test_same_seed_same_arrangement_and_another_epoch_differs():
    labels = torch.arange(40) % 4
    first, again = arrange(40, labels, seeded(3)), arrange(40, labels, seeded(3))
    assert torch.equal(first.order, again.order)
    assert not torch.equal(first.order, arrange(40, labels, seeded(4)).order)
