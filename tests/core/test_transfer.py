"""What goes between host and GPU arrives whole, whatever the device does meanwhile."""

import numpy as np
import pytest
import torch

from chameleon_lite.backbones import transfer
from chameleon_lite.backbones.transfer import Fetched, arriving, on_device, sent
from chameleon_lite.errors import RunFailed

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))
pytestmark = [pytest.mark.one_form, pytest.mark.parametrize("kind", ["cpu", GPU])]


def busy(device: torch.device) -> None:
    """Work of many milliseconds on a GPU, which whoever does not wait for it would overtake."""
    x = torch.randn(2_000, 2_000, device=device)
    for _ in range(50 if device.type == "cuda" else 1):
        x = (x @ x).tanh()


def test_batches_come_to_lie_one_behind_the_other(kind):
    device = torch.device(kind)
    parts = [torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in (3, 1, 700)]
    states = Fetched(704, 5, device)
    for part in parts:
        on = part.to(device)
        busy(device)
        states.add(on + 0)
        del on
    assert np.array_equal(states.rows("tiny"), torch.cat(parts).half().numpy())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])  # the last is beyond 16 bits
def test_a_state_that_is_not_finite_is_refused_by_the_backbones_name(kind, value):
    states = Fetched(4, 5, torch.device(kind))
    states.add(torch.ones(3, 5, device=kind))
    states.add(torch.full((1, 5), value, device=kind))
    with pytest.raises(RunFailed, match="tiny: hidden states are not finite"):
        states.rows("tiny")


def test_states_of_a_file_are_on_the_device(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "COPIED_ROWS", 60)
    rows = (
        np.random.default_rng(0).normal(size=(257, 6)).astype(np.float16)
    )  # the last piece: fewer than threads
    np.save(tmp_path / "a.npy", rows)
    for source in (np.load(tmp_path / "a.npy", mmap_mode="r"), rows, torch.from_numpy(rows)):
        found = on_device(source, torch.device(kind))
        assert found.device.type == kind and np.array_equal(found.cpu().numpy(), rows)


def test_numbers_arrive_as_they_were(kind):
    device = torch.device(kind)
    x = torch.tensor([1.5, -2.0], device=device)
    busy(device)
    numbers = arriving(x + 1)
    x.fill_(9)
    assert numbers() == [2.5, -1.0]
    assert sent(torch.arange(3), device).tolist() == [0, 1, 2]
    assert sent(torch.arange(3, device=device), device).tolist() == [0, 1, 2]
