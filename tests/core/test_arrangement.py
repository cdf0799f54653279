import torch
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lite.batches import Arrangement, arrange


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_groups_by_hand():
    # two clusters of 5 and 2 rows, groups of at most 3: the run of 5 is cut into 3 + 2, never 3 + 2 across clusters
    made = Arrangement(torch.tensor([6, 5, 4, 3, 2, 1, 0]), torch.tensor([1, 1, 1, 1, 1, 0, 0]))
    assert made.groups(3).tolist() == [2, 2, 1, 1, 0, 0, 0]
    assert [s.tolist() for s in made.steps(4)] == [[6, 5, 4, 3], [2, 1, 0]]


def test_random_groups_align_with_steps():
    made = arrange(100, None, generator())
    group = made.groups(32)
    for step in made.steps(32)[:3]:
        assert len(group[step].unique()) == 1
    assert group.max() == 2  # the rest of 4 rows joins the third group: alone it would be a poor mean


@given(n=st.integers(1, 60), k=st.integers(1, 6), size=st.integers(1, 9), seed=st.integers(0, 5))
def test_every_document_once_and_no_group_spans_clusters(n, k, size, seed):
    labels = torch.randint(k, (n,), generator=generator(seed))
    made = arrange(n, labels, generator(seed))
    assert sorted(torch.cat(made.steps(size)).tolist()) == list(range(n))
    group = made.groups(size)
    for g in group.unique():
        rows = (group == g).nonzero()[:, 0]
        assert len(rows) <= size and len(labels[rows].unique()) == 1
    assert group.unique().tolist() == list(range(int(group.max()) + 1))
    along = group[made.order]
    assert (
        along.diff() >= 0
    ).all()  # groups are numbered along the order, so a step's rows meet them in order


def test_same_seed_same_arrangement_and_another_epoch_differs():
    labels = torch.arange(40) % 4
    first, again = arrange(40, labels, generator(3)), arrange(40, labels, generator(3))
    assert torch.equal(first.order, again.order)
    assert not torch.equal(first.order, arrange(40, labels, generator(4)).order)
