"""A recording that fails costs its speed and nothing else: the GPU serves as before, and training goes on plainly."""

import contextlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from chameleon_lite.batches import Arrangement
from chameleon_lite.fast.recorded_steps import using
from chameleon_lite.fast.recorder import LIMIT, Recorder
from chameleon_lite.heads import Condition, HyperHead
from chameleon_lite.loss import HeadWeight
from chameleon_lite.settings import TrainSettings
from chameleon_lite.states import ScoredStates
from chameleon_lite.train import Member, train_heads

SETTINGS = TrainSettings(epochs=3, rows_per_step=8, patience=9, masks="group")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def mean_of(table, _, rows):
    """One group: the mean of the rows' vectors."""
    return Condition(table[rows.to(table.device)].mean(0, keepdim=True)), None


def waits(x):
    """Work that cannot be recorded: the host reads a value."""
    return x * x.sum().item()


def draws(x):
    """Work whose random numbers come from the device's default generator."""
    return F.dropout(x, 0.5) * torch.rand_like(x)


@GPU
@pytest.mark.parametrize("work", [waits, draws, lambda x: x.sum() / len(x.nonzero())])
def test_after_a_recording_that_failed_the_gpu_serves_as_before(work):
    device = torch.device("cuda")
    x, recorder = torch.ones(1_000, device=device), Recorder(device)
    torch.manual_seed(3)
    expected = [torch.rand(5, device=device), F.dropout(x, 0.5)]
    recorder("fails", [x], work)
    torch.manual_seed(3)
    if work is draws:  # PyTorch records this one: broken off by hand
        with pytest.raises(KeyboardInterrupt):
            recorder._record([x], interrupted)
    else:
        with pytest.warns(UserWarning, match="not recorded"):
            torch.testing.assert_close(recorder("fails", [x], work), work(x))
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.equal(torch.rand(5, device=device), expected[0])  # nothing was drawn meanwhile
    assert torch.equal(F.dropout(x, 0.5), expected[1])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    large = [torch.zeros(64 << 20, device=device) for _ in range(4)]
    del large
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() == before
    again = Recorder(device)
    for number in range(4):
        given = torch.full_like(x, number)
        assert float(again("sum", [given], lambda x: x.sum())) == 1_000 * number
    assert not again.plain and len(again.kept) == 1
    graph = torch.cuda.CUDAGraph()  # and recordings that do draw at random
    with torch.cuda.graph(graph):
        drawn = torch.rand(5, device=device)
    graph.replay()
    first = drawn.clone()
    graph.replay()
    assert not torch.equal(drawn, first)


def interrupted(x):
    """Draws at random, breaks off the recording, and is interrupted on top."""
    torch.rand_like(x)
    with contextlib.suppress(RuntimeError):
        x.sum().item()
    raise KeyboardInterrupt


@GPU
def test_work_that_waits_is_done_plainly_from_then_on():
    device = torch.device("cuda")
    recorder, x = Recorder(device), torch.ones(3, device=device)
    recorder("waits", [x], waits)
    with pytest.warns(UserWarning, match="not recorded"):
        assert float(recorder("waits", [x], waits).sum()) == 9
    for _ in range(3):
        assert float(recorder("other", [x], lambda x: x.sum())) == 3
    assert not recorder.kept


@GPU
def test_a_step_whose_recording_fails_trains_as_the_plain_one(tiny_states, tiny_table, tiny):
    """The head loss reads a value on the host while steps are recorded: training goes on, with the plain numbers."""
    device = torch.device("cuda")
    states = ScoredStates(tiny_table, tiny_states.states, device)
    weight = HeadWeight(tiny.head.weight.detach().to(device), dtype=torch.float32)

    class Waiting(HyperHead):
        def factors(self, condition):
            float(condition.vector.sum())
            return super().factors(condition)

    found = []
    for limit in (LIMIT, 0):
        torch.manual_seed(0)
        source = partial(mean_of, torch.randn(60, 16, device=device))
        member = Member("waits", Waiting(16, 257, 2).to(device), source, source, 1e-2)
        order = Arrangement(torch.arange(60))
        warned = pytest.warns(UserWarning, match="not recorded") if limit else contextlib.nullcontext()
        with using(Recorder(device, limit)), warned:
            train_heads([member], states, lambda n: order, states, order, weight, SETTINGS, progress=False)
        found.append(member)
    for one, two in zip(*(m.curve for m in found), strict=True):
        assert one["validation_nll"] == pytest.approx(two["validation_nll"], abs=1e-5)
