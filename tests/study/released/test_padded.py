"""States of padded rows: cached equal live, each under the mask and with the targets its scoring names."""

import pytest
import torch

from chameleon_lite.backbone import copied
from chameleon_lite.backbones import stored
from chameleon_lite.states import ScoredStates, hidden_states
from chameleon_study.released.states import LivePaddedStates, Scoring, live_dropout, padded_states

LENGTH = 64


def both(tiny, table, scoring, folder):
    cached = padded_states(tiny, table, scoring, dtype=torch.float32, folder=folder)
    return cached, LivePaddedStates(tiny, table, scoring, dtype=torch.float32)


@pytest.mark.parametrize("objective", ["last", "next_token"])
def test_cached_and_live_states_agree(tiny, tiny_table, tmp_path, objective):
    scoring = Scoring(
        objective, LENGTH if objective != "next_token" else 96, objective != "next_token", False
    )
    cached, live = both(tiny, tiny_table, scoring, tmp_path)
    rows = torch.tensor([3, 0, 17])
    (h, target, row), (h2, target2, row2) = cached.batch(rows), live.batch(rows)
    assert torch.equal(target, target2) and torch.equal(row, row2) and torch.equal(cached.counts, live.counts)
    assert torch.allclose(h.float(), h2, atol=0.02)


def test_last_position_is_the_pad_token_or_the_last_token(tiny, tiny_table, tmp_path):
    states = padded_states(
        tiny, tiny_table, Scoring("last", LENGTH, True, False), dtype=torch.float32, folder=tmp_path
    )
    full = torch.from_numpy(tiny_table.lengths >= LENGTH)
    assert 0 < full.sum() < len(full) and (states.counts == 1).all()
    assert (states.target[~full] == tiny_table.pad_id).all()
    cut = [int(tiny_table.ids[tiny_table.offsets[n] + LENGTH - 1]) for n in full.nonzero().flatten()]
    assert states.target[full].tolist() == cut


def test_ignoring_padding_scores_full_rows_alone(tiny, tiny_table, tmp_path):
    states = padded_states(
        tiny, tiny_table, Scoring("last", LENGTH, False, True), dtype=torch.float32, folder=tmp_path
    )
    assert states.counts.bool().tolist() == (tiny_table.lengths >= LENGTH).tolist()


def test_next_token_pairs_are_those_of_all_hidden_states(tiny, tiny_table, tmp_path):
    ours = padded_states(
        tiny, tiny_table, Scoring("next_token", 96, False, True), dtype=torch.float32, folder=tmp_path
    )
    theirs = ScoredStates(tiny_table, hidden_states(tiny, tiny_table, torch.float32, tmp_path))
    assert torch.equal(ours.target, theirs.target) and torch.equal(ours.counts, theirs.counts)
    rows = torch.arange(len(tiny_table))
    assert torch.allclose(ours.batch(rows)[0].float(), theirs.batch(rows)[0].float(), atol=0.02)


def test_a_second_call_reads_the_file(tiny, tiny_table, tmp_path, monkeypatch):
    scoring = Scoring("last", LENGTH, True, False)
    first = padded_states(tiny, tiny_table, scoring, dtype=torch.float32, folder=tmp_path)
    monkeypatch.setattr(stored, "_whole", {})  # as in another process
    monkeypatch.setattr(stored, "_compute", None)
    again = padded_states(tiny, tiny_table, scoring, dtype=torch.float32, folder=tmp_path)
    assert torch.equal(first.states, again.states)


def test_each_scoring_has_a_file_of_its_own_and_a_damaged_one_is_made_again(
    tiny, tiny_table, tmp_path, monkeypatch
):
    last, other = (Scoring("last", LENGTH, attention, False) for attention in (True, False))
    first = padded_states(tiny, tiny_table, last, dtype=torch.float32, folder=tmp_path)
    (path,) = set(tmp_path.glob("*.npy")) - set(tmp_path.glob("*.marks.npy"))
    padded_states(tiny, tiny_table, other, dtype=torch.float32, folder=tmp_path)
    assert len(list(tmp_path.glob("*.marks.npy"))) == 2
    path.write_bytes(path.read_bytes()[:-2] + b"ab")
    monkeypatch.setattr(stored, "_whole", {})
    with pytest.warns(UserWarning, match=f"{path.name} is damaged: 1 documents"):
        again = padded_states(tiny, tiny_table, last, dtype=torch.float32, folder=tmp_path)
    assert torch.equal(first.states, again.states)


def test_where_nothing_is_scored_nothing_is_stored(tiny, tiny_table, tmp_path):
    scoring = Scoring("last", 97, False, True)  # no document fills such a row
    few = tiny_table.take([0, 1])
    states = padded_states(tiny, few, scoring, dtype=torch.float32, folder=tmp_path)
    assert states.total == 0 and states.batch(torch.arange(2))[0].shape == (0, tiny.width)


def test_dropout_of_the_frozen_backbone_is_live_only_when_asked(tiny, tiny_table):
    import copy

    backbone = copy.deepcopy(tiny)
    found = live_dropout(backbone.lm)
    assert found["applies"] and found["configured"] == 0.1 and found["set"] is None
    rows, scoring = torch.arange(4), Scoring("last", LENGTH, True, False)
    on = LivePaddedStates(backbone, tiny_table, scoring, dtype=torch.float32, train_mode=True)
    off = LivePaddedStates(backbone, tiny_table, scoring, dtype=torch.float32)
    assert not torch.equal(on.batch(rows)[0], on.batch(rows)[0])
    assert torch.equal(off.batch(rows)[0], off.batch(rows)[0])
    assert not backbone.lm.training


def test_a_pass_that_fails_leaves_the_backbones_mode(tiny, tiny_table):
    backbone, scoring = copied(tiny), Scoring("last", LENGTH, True, False)
    modes = []

    def stop(module, inputs):
        modes.append(module.training)
        raise KeyboardInterrupt

    backbone.body.register_forward_pre_hook(stop)
    for mode in (False, True):
        live = LivePaddedStates(backbone, tiny_table, scoring, dtype=torch.float32, train_mode=not mode)
        backbone.lm.train(mode)
        with pytest.raises(KeyboardInterrupt):
            live.batch(torch.arange(4))
        assert backbone.lm.training is mode and modes.pop() is not mode


def test_dropout_is_set_where_the_architecture_has_it_at_zero():
    from chameleon_lite.backbone import load_backbone

    lm = load_backbone("tiny-llama").lm
    assert live_dropout(lm) == {"applies": True, "configured": 0.0, "set": 0.1, "sites": 2}
    assert all(layer.self_attn.attention_dropout == 0.1 for layer in lm.model.layers)
    assert live_dropout(torch.nn.Linear(2, 2))["applies"] is False
