"""Recorded steps: what is replayed depends on its inputs alone, and gives what plain steps give."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from chameleon_lite import engine
from chameleon_lite.batches import Arrangement, arrange
from chameleon_lite.fast.recorded_steps import dropping, filled, masked, roomy, using
from chameleon_lite.fast.recorder import LIMIT, Recorder, Recording
from chameleon_lite.heads import Condition, HeadUpdate, HyperHead, LoraHead, own_dropout
from chameleon_lite.loss import HeadWeight, head_losses
from chameleon_lite.settings import TrainSettings
from chameleon_lite.states import ScoredStates
from chameleon_lite.text import IGNORED
from chameleon_lite.train import Member, train_heads

SETTINGS = TrainSettings(epochs=3, rows_per_step=8, patience=9, masks="group")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Rehearsal(Recorder):
    """Does on a CPU what a graph does: the work of the first time, on the same memory, with other values in it."""

    replays = 0

    def __init__(self):
        super().__init__(torch.device("cpu"))
        self.limit = LIMIT

    def _record(self, inputs, work):
        return Recording(work, [x.clone() for x in inputs], torch.empty(0), [])

    def _replay(self, kept, inputs):
        type(self).replays += 1
        for own, given in zip(kept.inputs, inputs):
            own.copy_(given)
        return kept.graph(*kept.inputs)


def condition(_, rows):
    """One group; its vector depends on the rows, so one that is not copied in would show."""
    table = torch.randn(60, 16, generator=torch.Generator().manual_seed(7))
    return Condition(table[rows.cpu()].mean(0, keepdim=True)), None


def grouped(_, rows):
    table = torch.randn(60, 16, generator=torch.Generator().manual_seed(7))
    return Condition(table[rows.cpu()]), torch.arange(len(rows))


def on_device(source, device, arrangement, rows):
    given, group = source(arrangement, rows)
    return Condition(given.vector.to(device)), group


def trained(states, weight, recorder, sources=(condition, condition, None), device="cpu", settings=SETTINGS):
    members = []
    for number, source in enumerate(sources):
        torch.manual_seed(number)
        head = LoraHead(16, 257, 2) if source is None else HyperHead(16, 257, 2)
        told = source and partial(on_device, source, device)
        members.append(Member(str(number), head.to(device), told, told, 1e-2, seed=number))
    with using(recorder) if recorder else nullcontext(), engine.use("fast" if recorder else "auto"):
        train_heads(
            members,
            states,
            lambda n: arrange(60, None, torch.Generator().manual_seed(n)),
            states,
            Arrangement(torch.arange(60)),
            weight,
            settings,
            progress=False,
        )
    return members


def same(one, other, atol):
    for a, b in zip(one, other, strict=True):
        for p, q in zip(a.curve, b.curve, strict=True):
            assert p["validation_nll"] == pytest.approx(q["validation_nll"], abs=atol)
            assert p["train_nll"] == pytest.approx(q["train_nll"], abs=atol)


def test_steps_filled_up_with_masks_drawn_beforehand_are_the_plain_ones(tiny_states, tiny_weight):
    Rehearsal.replays = 0
    recorder = Rehearsal()
    found = trained(tiny_states, tiny_weight, recorder)
    assert Rehearsal.replays > 10 and not recorder.plain
    same(found, trained(tiny_states, tiny_weight, None), atol=1e-6)


def test_a_head_that_stops_leaves_the_others_as_they_would_be_alone(tiny_states, tiny_weight):
    settings = TrainSettings(epochs=4, rows_per_step=8, patience=0, masks="group")
    members = trained(tiny_states, tiny_weight, Rehearsal(), settings=settings)
    same(members, trained(tiny_states, tiny_weight, None, settings=settings), atol=1e-6)
    assert len({len(m.curve) for m in members}) > 1  # some did stop before others


def test_states_that_carry_gradients_are_never_recorded(tiny_states, tiny_weight):
    class Live:
        """States as a backbone that trains along computes them."""

        counts, device = tiny_states.counts, tiny_states.device
        tokens, pieces = tiny_states.tokens, tiny_states.pieces

        def batch(self, rows):
            h, target, row = tiny_states.batch(rows)
            return h.float() * head.gain, target, row

    torch.manual_seed(0)
    head = LoraHead(16, 257, 2)
    head.gain = torch.nn.Parameter(torch.ones(16))
    Rehearsal.replays = 0
    order = Arrangement(torch.arange(60))
    with using(Rehearsal()), engine.use("fast"):
        member = Member("both", head, None, None, 1e-2)
        train_heads(
            [member], Live(), lambda n: order, tiny_states, order, tiny_weight, SETTINGS, progress=False
        )
    assert not Rehearsal.replays and bool((head.gain != 1).all())


def test_steps_of_one_update_and_of_two_may_alternate(tiny_states, tiny_weight):
    def either(arrangement, rows):
        told, _ = grouped(arrangement, rows)
        if int(rows.sum()) % 2:  # the clusters' remainders share a step
            return Condition(told.vector[:2]), torch.arange(len(rows)) % 2
        return Condition(told.vector.mean(0, keepdim=True)), None

    Rehearsal.replays = 0
    recorder = Rehearsal()
    found = trained(tiny_states, tiny_weight, recorder, (either,))
    assert Rehearsal.replays and not recorder.plain
    same(found, trained(tiny_states, tiny_weight, None, (either,)), atol=1e-6)


def test_added_positions_count_nothing(tiny_states):
    rows = torch.tensor([3, 1, 7])
    h, target, _ = tiny_states.batch(rows)
    more, targets = filled(h, target)
    assert len(more) == len(targets) == roomy(len(h)) > len(h)
    assert torch.equal(more[: len(h)], h) and torch.equal(targets[: len(h)], target)
    assert (targets[len(h) :] == IGNORED).all() and torch.isfinite(more).all()


def test_roomy_numbers_are_few_and_near():
    numbers = {roomy(n) for n in range(1, 5_000)}
    assert len(numbers) < 32
    assert all(n <= roomy(n) for n in range(1, 20_000))
    assert all(roomy(n) <= 1.25 * n for n in range(257, 20_000))


def test_a_drawn_mask_is_what_forward_would_have_dropped(tiny_states, tiny_weight):
    """One step with masks drawn beforehand, one with PyTorch's dropout, from the same seed: equal parameters."""
    one, two = (trained(tiny_states, tiny_weight, r, (condition,))[0] for r in (Rehearsal(), None))
    for a, b in zip(one.head.parameters(), two.head.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    head, other = HyperHead(4, 9, 2), HyperHead(4, 9, 2, dropout=0.0)
    assert len(dropping(head)) == 2 and not dropping(other) and not dropping(head.eval())


def test_given_masks_replace_dropout_and_leave_the_head_as_it_was():
    head, vector = HyperHead(4, 9, 2, dropout=0.5), torch.ones(1, 4)
    layers = dropping(head)
    masks = [torch.full((1, n), 2.0) for n in (64, 32)]
    with masked([head], iter(masks)):
        one, two = (head.net(vector) for _ in range(2))
    assert torch.equal(one, two) and dropping(head) == layers
    expected = head.eval().net[:2](vector) * 2
    torch.testing.assert_close(one, head.net[3:5](expected) * 2)
    with masked([head.train()], iter([torch.ones(2, 64), masks[1]])):
        with pytest.raises(ValueError, match="does not fit"):
            head.net(vector)
    assert dropping(head) == layers


def test_the_generator_is_left_as_it_was():
    head, plain, cpu = HyperHead(4, 9, 2), LoraHead(4, 9, 1), torch.device("cpu")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with own_dropout(head, 9, cpu):
        one = head.factors(Condition(torch.ones(1, 4)))
    with own_dropout(head, 9, cpu):
        assert torch.equal(head.factors(Condition(torch.ones(1, 4))).down, one.down)
    with own_dropout(plain, 9, cpu):  # nothing drops here: nothing is seeded
        assert torch.equal(torch.rand(3), expected)


@GPU
def test_a_replayed_step_sees_its_inputs_and_its_parameters():
    device, g = torch.device("cuda"), torch.Generator().manual_seed(0)
    weight = HeadWeight(torch.randn(1_000, 64, generator=g).to(device) * 0.1)
    down, up = (
        torch.randn(s, generator=g).to(device).mul_(0.1).requires_grad_() for s in ((4, 64), (1_000, 4))
    )
    recorder = Recorder(device)

    def work(h, target):
        loss = head_losses(h, target, weight, [HeadUpdate(down[None], up[None])])[0]
        gradients = torch.autograd.grad(loss, (down, up))
        return torch.cat([loss.detach()[None], *(g.flatten() for g in gradients)])

    for _ in range(5):
        h = torch.randn(300, 64, generator=g).to(device, torch.float16)
        target = torch.randint(1_000, (300,), generator=g).to(device)
        with torch.no_grad():
            up += 0.01
        torch.testing.assert_close(recorder("step", [h, target], work), work(h, target), rtol=1e-5, atol=1e-5)
    assert not recorder.plain and len(recorder.kept) == 1


class Counted(Recorder):
    replays = 0

    def _replay(self, kept, inputs):
        self.replays += 1
        return Recorder._replay(kept, inputs)


@GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_training_with_recorded_steps_gives_the_plain_losses(tiny_states, tiny_table, tiny, dtype):
    device = torch.device("cuda")
    states = ScoredStates(tiny_table, tiny_states.states, device)
    weight = HeadWeight(tiny.head.weight.detach().to(device), dtype=dtype)
    recorder = Counted(device)
    found = trained(states, weight, recorder, device=device)
    assert recorder.replays > 10 and recorder.limit > 0
    never = Recorder(device, limit=0)
    same(found, trained(states, weight, never, device=device), atol=1e-5 if dtype == torch.float32 else 2e-4)
    again = trained(states, weight, Recorder(device), device=device)
    assert [copy.copy(m.curve) for m in found] == [m.curve for m in again]  # a GPU repeats itself
    plain_cohort = trained(states, weight, Recorder(device), (condition,), device=device)
    same(plain_cohort, found[:1], atol=1e-5 if dtype == torch.float32 else 2e-4)  # whoever shares its steps


def test_recordings_with_a_head_that_stopped_are_dropped(tiny_states, tiny_weight):
    kept = []

    class Counting(Rehearsal):
        def forget(self):
            kept.append(len(self.kept))
            super().forget()

    settings = TrainSettings(epochs=4, rows_per_step=8, patience=0, masks="group")
    recorder = Counting()
    members = trained(tiny_states, tiny_weight, recorder, settings=settings)
    assert len({len(m.curve) for m in members}) > 1
    assert len(kept) > 2 and max(kept) > 0 and not recorder.kept
    assert all(p.grad is None for m in members for p in m.head.parameters())


def test_after_a_recording_that_failed_all_new_work_is_plain():
    class Failing(Rehearsal):
        def _record(self, inputs, work):
            raise RuntimeError("operation not permitted\nwhen a stream is capturing")

    recorder, x = Failing(), torch.ones(2)
    assert torch.equal(recorder("a", [x], lambda x: x + 1), x + 1)
    with pytest.warns(UserWarning, match="not recorded, and slower: operation not permitted$"):
        assert torch.equal(recorder("a", [x], lambda x: x + 2), x + 2)
    for _ in range(3):
        assert torch.equal(recorder("b", [x], lambda x: x + 3), x + 3)
    assert recorder.plain and not recorder.kept


@GPU
def test_recordings_share_their_memory_and_begin_again_after_forget():
    device = torch.device("cuda")
    recorder, sizes = Recorder(device), []
    for number in range(4):
        x = torch.ones(number + 1, device=device)
        for _ in range(3):
            out = recorder(number, [x], lambda x: x.sum() + torch.zeros(64 << 20, device=device).sum())
        assert float(out) == number + 1
        sizes.append(torch.cuda.memory_reserved(device))
    assert sizes[-1] - sizes[1] < 128 << 20  # not 256 MB for each
    recorder.forget()
    for _ in range(3):
        out = recorder("again", [x], lambda x: x.sum())
    assert float(out) == 4 and recorder.kept and not recorder.plain
