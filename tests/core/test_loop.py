import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from chameleon_lite.batches import Arrangement, arrange
from chameleon_lite.heads import Condition, HyperHead, LoraHead
from chameleon_lite.loss import next_token_pairs
from chameleon_lite.processes import Processes
from chameleon_lite.settings import TrainSettings
from chameleon_lite.train import Member, average, evaluate, train_heads

SETTINGS = TrainSettings(epochs=3, rows_per_step=8, patience=9)
AS_THEY_ARE = Arrangement(torch.arange(60))


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make()


def batch_condition(_, rows):
    """One group; its vector depends on the rows, so a wrong batch would show."""
    g = torch.Generator().manual_seed(7)
    table = torch.randn(60, 16, generator=g)
    return Condition(table[rows].mean(0, keepdim=True)), None


def orders(epoch):
    return arrange(60, None, torch.Generator().manual_seed(epoch))


def lora(name="lora", lr=1e-2, seed=0):
    return Member(name, seeded(lambda: LoraHead(16, 257, 2), seed), None, None, lr)


def hyper(name="hyper", lr=1e-2, seed=0):
    head = seeded(lambda: HyperHead(16, 257, 2), seed)
    return Member(name, head, batch_condition, batch_condition, lr, seed=seed)


def train(members, states, weight, settings=SETTINGS):
    train_heads(members, states, orders, states, AS_THEY_ARE, weight, settings, progress=False)
    return members


def test_training_loss_falls_for_every_head(tiny_states, tiny_weight):
    for member in train([lora(), hyper()], tiny_states, tiny_weight):
        losses = [point["validation_nll"] for point in member.curve]
        assert losses[-1] < losses[0] - 0.05
        assert math.isclose(member.best, min(losses))


def test_a_cohort_trains_each_head_as_if_alone(tiny_states, tiny_weight):
    together = train([lora(), hyper(), hyper("slow", lr=1e-3)], tiny_states, tiny_weight)
    for member, make in zip(together, (lora, hyper, lambda: hyper("slow", lr=1e-3))):
        (alone,) = train([make()], tiny_states, tiny_weight)
        assert alone.curve == member.curve
        for key, value in alone.head.state_dict().items():
            assert torch.equal(value, member.head.state_dict()[key])


def test_the_same_seed_gives_the_same_curve_bit_for_bit(tiny_states, tiny_weight):
    first, again = (train([hyper()], tiny_states, tiny_weight)[0].curve for _ in range(2))
    assert first == again
    assert train([hyper(seed=1)], tiny_states, tiny_weight)[0].curve != first


def test_the_best_state_is_kept_and_patience_stops(tiny_states, tiny_weight):
    member = lora(lr=3.0)  # far too fast: validation gets worse at once
    settings = TrainSettings(epochs=6, rows_per_step=8, patience=0)
    train([member], tiny_states, tiny_weight, settings)
    assert len(member.curve) < 7  # stopped before the last epoch
    nll = evaluate([(member.head, None)], tiny_states, orders(0), tiny_weight, rows=8)
    after = average(nll, tiny_states.counts)
    assert float(after[0]) == pytest.approx(member.best, abs=1e-6)


def test_a_loss_that_is_not_finite_is_said_and_the_other_head_goes_on(tiny_states, tiny_weight):
    broken, good = lora("broken"), lora("good")
    with torch.no_grad():
        broken.head.down.fill_(float("inf"))
    train([broken, good], tiny_states, tiny_weight)
    assert "not finite" in broken.failure and not broken.active
    assert good.failure is None and good.best < good.curve[0]["validation_nll"]


def test_members_that_share_a_name_or_parameters_are_refused(tiny_states, tiny_weight):
    with pytest.raises(ValueError, match="two members are called 'lora'"):
        train([lora(), lora()], tiny_states, tiny_weight)
    one, other = lora("one"), lora("other")
    other.head.up = one.head.up
    with pytest.raises(ValueError, match="'one' and 'other' share parameters"):
        train([one, other], tiny_states, tiny_weight)
    other.head.up.requires_grad_(False)  # what nobody trains may be shared
    train([one, other], tiny_states, tiny_weight)


def test_evaluation_does_not_depend_on_the_batching_for_a_static_head(tiny_states, tiny_weight):
    (member,) = train([lora()], tiny_states, tiny_weight)
    heads = [(None, None), (member.head, None)]
    one = evaluate(heads, tiny_states, AS_THEY_ARE, tiny_weight, rows=60)
    other = evaluate(heads, tiny_states, Arrangement.of(torch.randperm(60).split(7)), tiny_weight)
    assert torch.allclose(one, other, atol=1e-4, rtol=1e-6)


def test_frozen_loss_equals_cross_entropy_on_the_unbatched_text(tiny, tiny_table, tiny_states, tiny_weight):
    nll = evaluate([(None, None)], tiny_states, AS_THEY_ARE, tiny_weight, rows=16)[0]
    for n in range(0, 60, 11):
        ids = torch.from_numpy(
            tiny_table.ids[tiny_table.offsets[n] : tiny_table.offsets[n + 1]].astype("int64")
        )
        with torch.no_grad():
            logits = tiny.lm(input_ids=ids[None], use_cache=False).logits[0]
        m = int(tiny_table.prefix[n])
        expected = F.cross_entropy(logits[m - 1 : -1], ids[m:], reduction="sum")
        assert float(nll[n]) == pytest.approx(float(expected), rel=2e-3)  # the states are kept in fp16


def test_next_token_objective_counts_what_the_table_counts(tiny, tiny_table):
    ids, mask = tiny_table.padded(torch.arange(12).numpy())
    prefix = torch.from_numpy(tiny_table.prefix[:12].astype("int64"))

    def losses(ids, mask):
        row, column, target = next_token_pairs(ids, mask, prefix)
        with torch.no_grad():
            h = tiny.hidden(ids, mask)[row, column]
            return F.cross_entropy(tiny.head(h), target, reduction="sum"), len(row)

    nll, count = losses(ids, mask)
    wider, again = losses(F.pad(ids, (0, 9), value=5), F.pad(mask, (0, 9)))  # more padding, of another token
    assert count == again == int(tiny_table.n_scored[:12].sum())
    assert float(nll) == pytest.approx(float(wider), rel=1e-5)


def test_batch_average_is_the_mean_of_means_by_hand():
    nll, counts = torch.tensor([[2.0, 4.0, 9.0]]), torch.tensor([1, 2, 3])
    assert float(average(nll, counts)[0]) == pytest.approx(15 / 6)
    batches = [torch.tensor([0]), torch.tensor([1, 2])]
    assert float(average(nll, counts, "batch", batches)[0]) == pytest.approx((2 + 13 / 5) / 2)


def test_one_process_is_asked_for_nothing():
    processes = Processes()
    value = torch.ones(2)
    assert processes.count == 1 and processes.sum(value) is value


def test_evaluate_leaves_the_heads_mode(tiny_states, tiny_weight):
    head = copy.deepcopy(hyper().head).train()
    evaluate([(head, batch_condition)], tiny_states, Arrangement(torch.arange(5)), tiny_weight, rows=5)
    assert head.training


def test_a_reading_that_fails_leaves_the_heads_mode(tiny_states, tiny_weight):
    training, other = hyper().head.train(), hyper().head.eval()
    modes = []

    def stop(nll, documents):
        modes.append((training.training, other.training))
        raise KeyboardInterrupt

    heads = [(training, batch_condition), (other, batch_condition)]
    with pytest.raises(KeyboardInterrupt):
        evaluate(heads, tiny_states, AS_THEY_ARE, tiny_weight, rows=8, watch=stop)
    assert modes == [(False, False)] and training.training and not other.training


def test_the_order_a_condition_is_given_is_that_of_the_epoch(tiny_states, tiny_weight):
    seen, validation = [], []

    def source(given, arrangement, rows):
        given.append((arrangement, rows))
        return batch_condition(arrangement, rows)

    made = {}

    def once(epoch):
        made[epoch] = orders(epoch)
        return made[epoch]

    member = Member("hyper", hyper().head, partial(source, seen), partial(source, validation), 1e-2)
    settings = TrainSettings(epochs=2, rows_per_step=8, patience=9)
    train_heads([member], tiny_states, once, tiny_states, AS_THEY_ARE, tiny_weight, settings, progress=False)
    steps = [(made[epoch], rows) for epoch in range(2) for rows in made[epoch].steps(8)]
    assert len(seen) == len(steps)
    assert all(a is b and torch.equal(x, y) for (a, x), (b, y) in zip(seen, steps))
    assert {id(arrangement) for arrangement, _ in validation} == {id(AS_THEY_ARE)}


def test_sums_for_apples_gpus_are_formed_on_the_host(tiny_states, tiny_weight):
    class OfApple:
        """States that say they lie on a device without float64."""

        device, counts = torch.device("mps"), tiny_states.counts
        pieces, batch = tiny_states.pieces, tiny_states.batch

    heads = [(None, None), (hyper().head, batch_condition)]
    found = evaluate(heads, OfApple, AS_THEY_ARE, tiny_weight, rows=16)
    assert found.dtype == torch.float64 and found.device.type == "cpu"
    assert torch.equal(found, evaluate(heads, tiny_states, AS_THEY_ARE, tiny_weight, rows=16))
