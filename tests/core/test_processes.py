"""Two processes train as one: the same global batches, the same losses, and a count that is checked."""

import json
from pathlib import Path

import pytest
import torch

from chameleon_lite.batches import Arrangement, arrange
from chameleon_lite.errors import RunFailed
from chameleon_lite.heads import Condition, HyperHead, LoraHead
from chameleon_lite.processes import Processes
from chameleon_lite.settings import TrainSettings
from chameleon_lite.train import Member, train_heads

# 61 documents in steps of 8: the last step has 5, so that two processes get unequal shares of it.
SETTINGS = TrainSettings(epochs=3, rows_per_step=8, patience=9, validations_per_epoch=2)


def per_row(_, rows):
    """Three groups a step, so that each process meets groups the other has too."""
    vectors = torch.randn(60, 16, generator=torch.Generator().manual_seed(7))
    return Condition(vectors[rows[:3]]), torch.arange(len(rows)) % min(3, len(rows))


def curves(states, weight, processes):
    torch.manual_seed(0)
    members = [
        Member("lora", LoraHead(16, 257, 2), None, None, 1e-2),
        Member("hyper", HyperHead(16, 257, 2), per_row, per_row, 1e-2, seed=3),
    ]
    train_heads(
        members,
        states,
        lambda n: arrange(60, None, torch.Generator().manual_seed(n)),
        states,
        Arrangement(torch.arange(60)),
        weight,
        SETTINGS,
        processes,
        progress=False,
    )
    return {m.name: m.curve for m in members}


def two(states, weight, out):
    """What each of the two processes runs; it must not inherit what an earlier test told the library."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    processes = Processes()
    assert processes.count == 2
    found = curves(states, weight, processes)
    Path(f"{out}.{processes.index}").write_text(json.dumps(found))
    processes.accelerator.end_training()


@pytest.mark.filterwarnings("ignore")  # the launcher's fork, in a process that has threads
def test_two_processes_train_as_one(tiny_states, tiny_weight, tmp_path):
    from accelerate import debug_launcher

    debug_launcher(two, (tiny_states, tiny_weight, str(tmp_path / "curve")), num_processes=2)
    first, second = (json.loads((tmp_path / f"curve.{i}").read_text()) for i in (0, 1))
    assert first == second  # both know the same losses, so they stop and keep states alike
    for name, alone in curves(tiny_states, tiny_weight, None).items():
        for a, b in zip(alone, first[name], strict=True):
            assert a["epoch"] == b["epoch"]
            for key in ("train_nll", "validation_nll"):
                assert (a[key] is None) == (b[key] is None)
                assert a[key] is None or abs(a[key] - b[key]) < 1e-4


def test_fewer_processes_than_were_started_is_an_error(monkeypatch):
    class One:
        process_index, num_processes, device = 0, 1, torch.device("cpu")

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunFailed, match="2 processes were started but 1"):
        Processes(One())
