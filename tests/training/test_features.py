import json

import numpy as np
import pytest
import torch

from chameleon_lite.data.tokens import tokenise
from chameleon_lite.errors import RunFailed
from chameleon_lite.model.backbones import load_backbone
from chameleon_lite.training import features as module
from chameleon_lite.training.features import feature_key, features
from chameleon_lite.training.scored import scored_states


def states_of(backbone, table, document):
    ids = torch.from_numpy(table.ids[table.offsets[document] : table.offsets[document + 1]].astype(np.int64))[
        None
    ]
    with torch.no_grad():
        return backbone.lm.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]


def test_stored_states_are_the_models_own_document_by_document(tiny, tiny_table, tiny_states):
    for document in range(0, len(tiny_table), 7):
        h, target, row = tiny_states.batch(torch.tensor([document]))
        expected = states_of(tiny, tiny_table, document)[tiny_table.prefix[document] - 1 : -1]
        assert torch.allclose(h.float(), expected, atol=2e-3, rtol=1e-3)  # fp16 storage
        ids = tiny_table.ids[tiny_table.offsets[document] : tiny_table.offsets[document + 1]]
        assert target.tolist() == ids[tiny_table.prefix[document] :].tolist()
        assert row.tolist() == [0] * len(target)


def test_a_batch_keeps_the_order_of_its_rows(tiny_states):
    rows = torch.tensor([5, 2, 9])
    h, target, row = tiny_states.batch(rows)
    alone = [tiny_states.batch(r[None]) for r in rows]
    assert torch.equal(h, torch.cat([a[0] for a in alone]))
    assert torch.equal(target, torch.cat([a[1] for a in alone]))
    assert row.bincount().tolist() == [len(a[1]) for a in alone]


def test_shards_and_memory_map_give_the_same_batches(tiny, tiny_table, tiny_states, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_TOKENS", 300)
    store = features(tiny, tiny_table, dtype=torch.float32, folder=tmp_path)
    assert len(store.bounds) > 5  # several shards
    mapped = scored_states(store, tiny_table, budget=0)
    assert mapped.states is None
    rows = torch.tensor([11, 3, 40, 7])
    for ours, theirs in zip(mapped.batch(rows), tiny_states.batch(rows)):
        assert torch.allclose(ours.float(), theirs.float(), atol=2e-3)


def test_an_interrupted_pass_resumes_and_a_truncated_shard_is_made_again(
    tiny, tiny_table, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "SHARD_TOKENS", 300)
    whole = features(tiny, tiny_table, dtype=torch.float32, folder=tmp_path / "whole")
    calls = []
    real = module.hidden_rows

    def dies_at_third(backbone, table, rows):
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(backbone, table, rows)

    monkeypatch.setattr(module, "hidden_rows", dies_at_third)
    with pytest.raises(KeyboardInterrupt):
        features(tiny, tiny_table, dtype=torch.float32, folder=tmp_path / "killed")
    made = features(tiny, tiny_table, dtype=torch.float32, folder=tmp_path / "killed")
    assert len(calls) == len(whole.bounds) - 1 + 1  # every shard once, the interrupted one twice
    first = made.folder / "shard-00000.npy"
    first.write_bytes(first.read_bytes()[:-10])
    again = features(tiny, tiny_table, dtype=torch.float32, folder=tmp_path / "killed")
    for (_, a), (_, b) in zip(whole.shards(), again.shards()):
        assert np.array_equal(a, b)


def test_the_second_call_runs_nothing(tiny, tiny_table, tmp_path, monkeypatch):
    features(tiny, tiny_table, dtype=torch.float32, folder=tmp_path)

    def never(*_):
        raise AssertionError("the backbone ran again")

    monkeypatch.setattr(module, "hidden_rows", never)
    store = features(tiny, tiny_table, dtype=torch.float32, folder=tmp_path)
    assert json.loads((store.folder / "manifest.json").read_text())["width"] == tiny.width


def test_the_key_covers_tokens_weights_and_arithmetic(tiny, tiny_table):
    keys = {
        feature_key(tiny, tiny_table, torch.float32),
        feature_key(tiny, tiny_table, torch.bfloat16),
        feature_key(tiny, tiny_table.take(np.arange(5)), torch.float32),
    }
    assert len(keys) == 3


def test_sixteen_bit_pass_gives_the_weights_back(tiny, tiny_table, tmp_path):
    before = {k: v.clone() for k, v in tiny.lm.state_dict().items()}
    store = features(tiny, tiny_table, dtype=torch.bfloat16, folder=tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in tiny.lm.state_dict().items())
    assert tiny.head.weight.dtype == torch.float32
    assert next(iter(store.shards()))[1].dtype == np.float16


def test_states_that_are_not_finite_are_refused(tiny, tiny_table, tmp_path, monkeypatch):
    class Broken:
        name, hash, width, lm, head = "broken", "x", tiny.width, tiny.lm, tiny.head

        @staticmethod
        def hidden(ids, mask):
            return torch.full((*ids.shape, tiny.width), float("nan"))

    with pytest.raises(RunFailed, match="not finite"):
        features(Broken, tiny_table, dtype=torch.float32, folder=tmp_path)
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_pass_in_16_bits_leaves_the_backbone_as_it_was(some_documents, tmp_path):
    """Rotary frequencies are no weights: rounded in the pass, they would stay rounded after it."""
    llama = load_backbone("tiny-llama")
    table = tokenise(some_documents, llama.tokenizer, max_length=96, prefix_tokens=8, min_scored=4)
    ids = torch.arange(80)[None]
    before = llama.lm(ids).logits
    features(llama, table, dtype=torch.bfloat16, folder=tmp_path, progress=False)
    assert torch.equal(llama.lm(ids).logits, before)
