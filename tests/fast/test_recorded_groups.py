"""Recorded steps of heads with several updates: what is replayed gives what plain steps give."""

from contextlib import nullcontext

import pytest
import torch

from chameleon_lite import engine
from chameleon_lite.batches import Arrangement
from chameleon_lite.fast.recorded_steps import using
from chameleon_lite.fast.recorder import Recorder
from chameleon_lite.heads import Condition, HyperHead
from chameleon_lite.loss import HeadWeight
from chameleon_lite.states import ScoredStates
from chameleon_lite.train import Member, train_heads

from .test_recorder import GPU, SETTINGS, Counted, Rehearsal, condition, grouped, same, trained

# Of sums in float32, whose order depends on the machine; groups one position off make 2e-3, other masks 2e-2.
ROUNDING = 1e-5


def clustered(_, rows):
    """Some of three groups, in any order."""
    ids, group = torch.unique(rows.cpu() % 3, return_inverse=True)
    table = torch.randn(60, 16, generator=torch.Generator().manual_seed(7))
    return Condition(table[ids]), group


@pytest.mark.parametrize("masks", ["row", "group"])
def test_steps_of_heads_with_several_updates_are_the_plain_ones(tiny_states, tiny_weight, masks):
    Rehearsal.replays = 0
    recorder, settings = Rehearsal(), SETTINGS.model_copy(update={"masks": masks})
    sources = (grouped, clustered, condition, None)
    found = trained(tiny_states, tiny_weight, recorder, sources, settings=settings)
    assert Rehearsal.replays > 10 and not recorder.plain
    same(found, trained(tiny_states, tiny_weight, None, sources, settings=settings), atol=ROUNDING)


def test_a_layer_that_drops_from_what_all_groups_share_gets_masks_of_that_shape(tiny_states, tiny_weight):
    class Shared(HyperHead):
        def __init__(self):
            super().__init__(16, 257, 2, dropout=0.0)
            self.drop = torch.nn.Dropout(0.5)

        def factors(self, condition):
            update = super().factors(condition)
            return update._replace(down=update.down * self.drop(torch.ones(8, 2))[:2, 0, None])

    found = []
    for recorder in (Rehearsal(), None):
        torch.manual_seed(0)
        Rehearsal.replays, member = 0, Member("shared", Shared(), grouped, grouped, 1e-2)
        order = Arrangement(torch.arange(60))  # steps of 8 rows, the last of 4
        with using(recorder) if recorder else nullcontext(), engine.use("fast" if recorder else "auto"):
            data = (tiny_states, lambda n: order, tiny_states, order, tiny_weight)
            train_heads([member], *data, SETTINGS.model_copy(update={"masks": "row"}), progress=False)
        found.append([member])
        assert not recorder or Rehearsal.replays
    same(*found, atol=ROUNDING)


@GPU
@pytest.mark.parametrize("masks", ["row", "group"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_recorded_steps_of_heads_with_several_updates_give_the_plain_losses(
    tiny_states, tiny_table, tiny, dtype, masks
):
    device, settings = torch.device("cuda"), SETTINGS.model_copy(update={"masks": masks})
    states = ScoredStates(tiny_table, tiny_states.states, device)
    weight, recorder = HeadWeight(tiny.head.weight.detach().to(device), dtype=dtype), Counted(device)
    how = {"sources": (grouped, clustered, condition, None), "device": device, "settings": settings}
    found = trained(states, weight, recorder, **how)
    assert recorder.replays > 10 and recorder.limit > 0
    plain = trained(states, weight, Recorder(device, limit=0), **how)
    same(found, plain, atol=1e-5 if dtype == torch.float32 else 2e-4)
    again = trained(states, weight, Recorder(device), **how)
    assert [m.curve for m in found] == [m.curve for m in again]  # a GPU repeats itself
