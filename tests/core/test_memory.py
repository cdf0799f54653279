"""Learning from a stream: nothing ahead of its time, the same after a break, bounded whatever arrives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon_lite import engine
from chameleon_lite.errors import UserError
from chameleon_lite.heads import LoraHead
from chameleon_lite.loss import HeadWeight, token_losses
from chameleon_lite.states import ScoredStates
from chameleon_lite.streams.memory import HEAD, LearnSettings, Memory, fresh_start, start_of
from chameleon_lite.streams.online import OnlineClusters, learn

WIDTH, VOCAB, ROWS = 6, 11, 24
METHODS = ("global", "cluster", "on top", "online", "momentum 0", "frozen")


def fresh(shapes, slots=1, rate=0.05, **settings):
    start = fresh_start(shapes, torch.Generator().manual_seed(0))
    how = LearnSettings(**{"batch_rows": 4} | settings)
    return Memory(shapes, start, torch.full((slots,), rate), how)


def stream(seed=0, rows=ROWS, width=WIDTH, vocab=VOCAB):
    """States, targets and counts of documents of 1 … 5 tokens, and the weight they are read with."""
    numbers = np.random.default_rng(seed)
    counts = numbers.integers(1, 6, rows)
    states = torch.from_numpy(numbers.normal(size=(counts.sum(), width)).astype(np.float32))
    target = numbers.integers(0, vocab, counts.sum())
    weight = torch.from_numpy(numbers.normal(size=(vocab, width)).astype(np.float32))
    return states, target, counts, HeadWeight(weight, dtype=torch.float32)


def read(states, target, counts, weight, method="global", order=None, memory=None, clusters=None):
    """The sums of nats of a method, in the order of arrival, and the memory afterwards."""
    data = ScoredStates.of_pairs(states, target, counts)
    order = torch.arange(len(counts)) if order is None else order
    first = np.cumsum(counts) - counts
    vectors = states[first].clone()  # the state before the first scored token: known when a row arrives
    labels = (vectors[:, 0] > 0).long()
    shapes = {HEAD: (2, weight.width, weight.vocab)}
    how = {
        "global": ({}, {}),
        "cluster": ({"slots": 3}, {"labels": labels, "shared": False}),
        "on top": ({"slots": 3}, {"labels": labels}),
        "online": (
            {"slots": 4},
            {"vectors": vectors, "clusters": clusters or OnlineClusters(3, weight.width)},
        ),
        "momentum 0": ({"momentum": 0.0, "decay": 0.1}, {}),
        "frozen": ({"freeze_after": 8}, {}),
    }[method]
    memory = memory or fresh(shapes, **how[0])
    return learn(data, weight, order, memory, **how[1]), memory


@pytest.fixture(autouse=True)
def plain():
    with engine.use("plain"):
        yield


@pytest.mark.parametrize("method", METHODS)
@given(change=st.integers(0, ROWS - 1), seed=st.integers(0, 5), later=st.booleans())
@settings(max_examples=15, deadline=None)
def test_what_comes_later_changes_no_number_scored_before(method, change, seed, later):
    states, target, counts, weight = stream(seed)
    before, _ = read(states, target, counts, weight, method)
    first = int(counts[:change].sum())
    target = target.copy()
    if later:  # the row's last token and all rows after it
        target[first + counts[change] - 1 :] = (target[first + counts[change] - 1 :] + 1) % VOCAB
    else:  # only this row's scored tokens
        target[first : first + counts[change]] = (target[first : first + counts[change]] + 1) % VOCAB
    after, _ = read(states, target, counts, weight, method)
    batch = change // 4 * 4
    same = [n for n in range(batch + 4 if not later else change) if n != change]
    assert torch.equal(before[same], after[same])
    assert not torch.equal(before[change], after[change])  # the change was seen where it may be


@pytest.mark.parametrize("method", METHODS)
def test_later_rows_may_be_missing(method):
    states, target, counts, weight = stream(1)
    whole, _ = read(states, target, counts, weight, method)
    part, _ = read(states, target, counts, weight, method, order=torch.arange(12))
    assert torch.equal(whole[:12], part)


@pytest.mark.parametrize("method", METHODS)
@given(cut=st.integers(1, 5))
@settings(max_examples=5, deadline=None)
def test_a_resumed_stream_is_the_unbroken_one_bit_for_bit(method, cut):
    states, target, counts, weight = stream(2)
    clusters = OnlineClusters(3, WIDTH)
    whole, memory = read(states, target, counts, weight, method)
    _, first = read(states, target, counts, weight, method, order=torch.arange(cut * 4), clusters=clusters)
    again, grouping = (
        fresh(first.shapes, len(first.rates), **first.settings.model_dump()),
        OnlineClusters(3, WIDTH),
    )
    again.load_state_dict(first.state_dict())
    grouping.load_state_dict(clusters.state_dict())
    rest, last = read(
        states, target, counts, weight, method, torch.arange(cut * 4, ROWS), memory=again, clusters=grouping
    )
    assert torch.equal(whole[cut * 4 :], rest)
    assert all(torch.equal(a, b) for a, b in zip(memory.state_dict().values(), last.state_dict().values()))


def test_a_step_is_adam_towards_lower_loss_within_its_cap():
    states, target, counts, weight = stream(3)
    reference = LoraHead(WIDTH, VOCAB, 2)
    memory = fresh({HEAD: (2, WIDTH, VOCAB)}, batch_rows=ROWS, cap=100.0, square=0.999)
    with torch.no_grad():
        down, up = memory.start[0].split([2 * WIDTH, VOCAB * 2])
        reference.down.copy_(down.view(2, WIDTH))
        reference.up.copy_(up.view(VOCAB, 2))
    optimiser = torch.optim.Adam(reference.parameters(), lr=0.05)
    for _ in range(3):
        read(states, target, counts, weight, memory=memory)
        update = reference.factors()
        h = states @ weight.weight[:VOCAB].T + (states @ update.down[0].T) @ update.up[0].T
        torch.nn.functional.cross_entropy(h, torch.from_numpy(target)).backward()
        optimiser.step()
        optimiser.zero_grad()
    torch.testing.assert_close(memory.values, start_of(reference), atol=1e-5, rtol=1e-4)
    capped = fresh({HEAD: (2, WIDTH, VOCAB)}, batch_rows=ROWS, cap=0.25)
    read(states, target, counts, weight, memory=capped)
    assert (capped.values - capped.start).square().mean().sqrt() <= 0.25 * 0.05 * (1 + 1e-5)


def test_clusters_learn_apart_and_the_global_memory_from_all():
    states, target, counts, weight = stream(4)
    data = ScoredStates.of_pairs(states, target, counts)
    labels = torch.zeros(ROWS, dtype=torch.int64)
    memory = fresh({HEAD: (2, WIDTH, VOCAB)}, slots=3)
    learn(data, weight, torch.arange(ROWS), memory, labels=labels)
    moved = (memory.values != memory.start).any(1)
    assert moved.tolist() == [True, True, False]
    assert memory.steps.flatten().tolist() == [6, 6, 0]


def test_slots_side_by_side_are_the_streams_apart():
    states, target, counts, weight = stream(5)
    data, shapes = ScoredStates.of_pairs(states, target, counts), {HEAD: (2, WIDTH, VOCAB)}
    orders = [torch.randperm(ROWS, generator=torch.Generator().manual_seed(n)) for n in (1, 2)]
    together = Memory(shapes, fresh(shapes).start, torch.tensor([0.05, 0.02]), LearnSettings(batch_rows=8))
    slots = torch.tensor([0] * 4 + [1] * 4)[:, None]
    for a, b in zip(orders[0].split(4), orders[1].split(4)):
        together.read(data, weight, torch.cat([a, b]), slots)
    for slot, (order, rate) in enumerate(zip(orders, (0.05, 0.02))):
        alone = fresh(shapes, rate=rate)
        learn(data, weight, order, alone)
        torch.testing.assert_close(together.values[slot], alone.values[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("door", engine.ENGINES)
def test_frozen_for_good_and_before_anything_is_learned(door):
    states, target, counts, weight = stream(6)
    frozen = token_losses(states, torch.from_numpy(target), weight, [None])[0].double()
    expected = torch.stack([part.sum() for part in frozen.split(counts.tolist())])
    with engine.use(door):
        memory = fresh({HEAD: (2, WIDTH, VOCAB)}, freeze_after=0)
        nll, _ = read(states, target, counts, weight, memory=memory)
    torch.testing.assert_close(nll, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(memory.values, memory.start)


def test_a_row_that_fails_is_counted_and_changes_nothing():
    states, target, counts, weight = stream(7)
    order, first = torch.arange(8), int(counts[:2].sum())
    broken = states.clone()
    broken[first : first + counts[2]] = torch.nan
    nll, memory = read(broken, target, counts, weight, order=order)
    assert nll.isfinite().tolist() == [n != 2 for n in range(8)]
    assert (memory.failed, memory.skipped) == (1, 0)
    left_out = fresh(memory.shapes)
    data = ScoredStates.of_pairs(states, target, counts)
    for rows in (torch.tensor([0, 1, 3]), torch.arange(4, 8)):
        left_out.read(data, weight, rows, torch.zeros(len(rows), 1, dtype=torch.int64))
    torch.testing.assert_close(memory.values, left_out.values, atol=1e-6, rtol=1e-5)


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    states, target, counts, weight = stream(8)
    states[: counts[0]] *= 1e30  # a finite loss is not enough: the gradient's square overflows
    memory = fresh({HEAD: (2, WIDTH, VOCAB)}, batch_rows=1)
    before = memory.values.clone()
    read(states, target, counts, weight, order=torch.arange(1), memory=memory)
    assert torch.equal(memory.values, before) and (memory.failed, memory.skipped) == (0, 1)
    read(states, target, counts, weight, order=torch.arange(1, ROWS), memory=memory)
    assert memory.values.isfinite().all() and not torch.equal(memory.values, before)
    assert memory.skipped == 1


GARBAGE_BOUND = 0.05  # nats per token that one row of noise may cost the 100 rows after it


def test_one_garbage_row_costs_the_next_hundred_less_than_the_bound():
    states, target, counts, weight = stream(9, rows=160)
    logits = states @ weight.weight[:VOCAB].T
    logits[:, 3] += 2.0  # a stream with something to learn
    target = torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(0))[:, 0].numpy()
    clean = read(states, target, counts, weight, memory=fresh({HEAD: (2, WIDTH, VOCAB)}, rate=0.01))[0]
    first = int(counts[:50].sum())
    states = states.clone()
    states[first : first + counts[50]] *= -1_000
    dirty, memory = read(states, target, counts, weight, memory=fresh({HEAD: (2, WIDTH, VOCAB)}, rate=0.01))
    gap = (dirty - clean)[52:152].sum() / counts[52:152].sum()
    assert 0 < abs(gap) < GARBAGE_BOUND and memory.failed == 0


def test_the_state_is_as_large_after_a_hundred_thousand_rows_as_after_ten():
    states, target, counts, weight = stream(10, rows=10, width=2, vocab=3)
    memory, clusters = fresh({HEAD: (1, 2, 3)}, slots=3, batch_rows=1_000), OnlineClusters(2, 2)
    data, vectors = ScoredStates.of_pairs(states, target, counts), states[np.cumsum(counts) - counts]
    sizes = []
    for rows in (torch.arange(10), torch.arange(100_000) % 10):
        learn(data, weight, rows, memory, vectors=vectors, clusters=clusters)
        kept = [*memory.state_dict().values(), *clusters.state_dict().values()]
        held = [
            x for owner in (memory, clusters) for x in vars(owner).values() if isinstance(x, torch.Tensor)
        ]
        sizes.append([(len(some), sum(x.numel() * x.element_size() for x in some)) for some in (kept, held)])
    assert sizes[0] == sizes[1] and memory.seen == 100_010


def test_online_clusters_find_what_lies_apart_and_look_only_back():
    numbers = torch.Generator().manual_seed(0)
    kind = torch.arange(60) % 3
    x = 10 * torch.eye(3)[kind] + torch.randn(60, 3, generator=numbers)
    clusters = OnlineClusters(3, 3)
    labels = torch.cat([clusters(part) for part in x.split(7)])
    assert len(set(zip(kind.tolist(), labels.tolist()))) == 3
    for k in range(3):
        torch.testing.assert_close(clusters.centroids[k], x[labels == k].double().mean(0))
    again = OnlineClusters(3, 3)
    x[30:] = 0
    assert torch.equal(torch.cat([again(part) for part in x.split(7)])[:28], labels[:28])


def test_what_does_not_fit_is_refused():
    shapes = {HEAD: (2, WIDTH, VOCAB)}
    with pytest.raises(ValueError, match="start"):
        Memory(shapes, torch.zeros(1, 5), torch.ones(1))
    memory, other = fresh(shapes), fresh({HEAD: (1, WIDTH, VOCAB)})
    with pytest.raises(UserError, match="another memory"):
        memory.load_state_dict(other.state_dict())
    states, target, counts, weight = stream()
    data = ScoredStates.of_pairs(states, target, counts)
    with pytest.raises(ValueError, match="no"):
        learn(data, weight, torch.arange(4), memory, labels=torch.ones(ROWS, dtype=torch.int64))
