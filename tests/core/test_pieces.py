"""Packed pieces: the same states, loss and gradients as padded ones, in every architecture that takes them."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers

from chameleon_lite import engine
from chameleon_lite.backbone import copied, load_backbone
from chameleon_lite.backbones.tiny import byte_tokenizer
from chameleon_lite.batches import Arrangement
from chameleon_lite.fast.layers import PackedPass, layer_pass, row_length, takes_packed
from chameleon_lite.heads import LoraHead
from chameleon_lite.lora import add_lora, lora_parameters
from chameleon_lite.loss import HeadWeight, next_token_pairs
from chameleon_lite.processes import Processes
from chameleon_lite.settings import TrainSettings
from chameleon_lite.train import Common, Member, evaluate, step
from chameleon_lite.train_layers import Layers, LiveStates, WithLayers

CPU = torch.device("cpu")
COMMON = {"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256, "initializer_range": 0.2}
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
} | COMMON
KINDS = {
    "GPT2": {"n_positions": 128, "n_embd": 16, "n_layer": 2, "n_head": 2} | COMMON,
    "Llama": LLAMA | {"num_key_value_heads": 2},
    "GPTNeoX": LLAMA,
    "Qwen2": LLAMA | {"num_key_value_heads": 2},
    "OPT": {
        "hidden_size": 32,
        "word_embed_proj_dim": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "init_std": 0.2,
        "pad_token_id": 0,
    }
    | COMMON,
    "Bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2} | COMMON,  # ALiBi: no positions to give
    "Mistral": LLAMA | {"num_key_value_heads": 2, "sliding_window": 24},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """kind -> backbone with seeded random weights, and a model of its own."""
    made = {}

    def get(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                config = getattr(transformers, f"{kind}Config")(**KINDS[kind])
                transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            byte_tokenizer(128).save_pretrained(folder)
            made[kind] = load_backbone(str(folder))
        return copied(made[kind])

    return get


def adapted(backbone) -> WithLayers:
    """LoRA in the layers and on the head, all factors away from zero."""
    torch.manual_seed(1)
    add_lora(backbone, rank=2)
    both = WithLayers(LoraHead(backbone.width, backbone.vocab, 2), lora_parameters(backbone).values())
    for parameter in both.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return both


class Kept:
    """An optimiser that keeps the gradients and moves nothing."""

    def __init__(self, head):
        self.head = head

    def step(self):
        self.gradient = torch.cat([p.grad.flatten() for p in self.head.parameters()])

    def zero_grad(self, set_to_none):
        for p in self.head.parameters():
            p.grad = None


def step_of(both, backbone, live):
    """Nats, gradients and states by document of one step over a whole table."""
    rows, kept, states = torch.arange(len(live.counts)), Kept(both), {}
    weight = HeadWeight(backbone.head.weight, dtype=torch.float32)
    common = Common(live, weight, TrainSettings(scale=0.7), Processes(), {"both": kept})
    nats = step([Member("both", both, None, None, 0.0)], [(None, None)], rows, 1, common)
    for places in live.pieces(rows):
        h, _, row = live.batch(rows[places])
        states |= {int(n): h.detach()[row == d] for d, n in enumerate(places)}
    return float(nats), kept.gradient, torch.cat([states[n] for n in range(len(rows))])


def packed_pass(backbone, table, budget=256, length=112, n_rows=None) -> PackedPass:
    return PackedPass(Layers(backbone), CPU, table, budget, length, n_rows)


@pytest.mark.parametrize("kind", ["GPT2", "Llama", "GPTNeoX", "Qwen2", "OPT"])
def test_packed_is_padded_on_the_other_engine(small, tiny_table, kind):
    table, backbone = tiny_table.take(np.arange(24)), small(kind)
    both = adapted(backbone)
    found = {}
    for name, kind_of_pass in (("plain", type(None)), ("fast", PackedPass)):
        with engine.use(name):
            live = LiveStates(backbone, table)
            found[name] = step_of(both, backbone, live)
            assert type(live.training_pass) is kind_of_pass and len(live.pieces(torch.arange(24))) > 3
    for n_rows in (None, 3):  # two rows of 112 per piece, or three
        live = LiveStates(backbone, table)
        live.training_pass = packed_pass(backbone, table, n_rows=n_rows)
        assert len(live.pieces(torch.arange(24))) > 2
        found[n_rows] = step_of(both, backbone, live)
    loss, gradient, states = found.pop("plain")
    for nats, other, h in found.values():
        assert nats == pytest.approx(loss, rel=1e-5)
        assert (other - gradient).norm() < 1e-5 * gradient.norm()
        assert torch.allclose(h, states, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_readings_on_packed_rows_are_those_on_padded_ones(small, tiny_table, kind):
    table, backbone = tiny_table.take(np.arange(24)), small(kind)
    heads, weight = (
        [(None, None), (adapted(backbone), None)],
        HeadWeight(backbone.head.weight, dtype=torch.float32),
    )
    order, found = Arrangement(torch.randperm(24, generator=torch.Generator().manual_seed(0))), []
    for name, kind_of_pass in (("plain", type(None)), ("fast", PackedPass)):
        with engine.use(name):
            live = LiveStates(backbone, table)
            found.append(evaluate(heads, live, order, weight, rows=9))  # (2, 24)
            assert type(live.reading_pass) is kind_of_pass
    assert torch.allclose(*found, rtol=1e-4) and (found[0] > 0).all()


def test_models_that_read_positions_or_masks_in_another_way_keep_padded_rows(small, tiny_table):
    class Deaf(torch.nn.Module):
        """A body that takes positions and does not use them."""

        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, input_ids, attention_mask, use_cache, position_ids=None):
            return self.body(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    gpt2, eager = small("GPT2"), small("Llama")
    assert not takes_packed(dataclasses.replace(gpt2, body=Deaf(gpt2.body)), 60)
    eager.lm.set_attn_implementation("eager")  # adds the mask to the scores
    assert not takes_packed(eager, 60) and not takes_packed(small("Bloom"), 60)
    bloom = small("Bloom")
    add_lora(bloom, rank=1)
    assert layer_pass(bloom, tiny_table) is None
    with engine.use("fast"):
        assert LiveStates(bloom, tiny_table).training_pass is None


def test_larger_pieces_hold_a_step_in_one(small, tiny_table):
    backbone, rows = small("Llama"), torch.arange(24)
    usual, large = (layer_pass(backbone, tiny_table, tokens=tokens) for tokens in (None, 4_096))
    assert len(usual.pieces(rows)) > 3 and len(large.pieces(rows)) == 1


def test_a_sliding_window_counts_where_a_document_is_longer(small):
    assert takes_packed(small("Mistral"), 20) and not takes_packed(small("Mistral"), 60)


def test_the_probe_leaves_lora_as_it_was(small):
    backbone = small("Llama")
    adapted(backbone)
    ids = torch.arange(12)[None]
    before, drawn = backbone.hidden(ids), torch.get_rng_state()
    assert takes_packed(backbone, 30)
    assert torch.equal(backbone.hidden(ids), before) and torch.equal(torch.get_rng_state(), drawn)
    assert all(p.requires_grad for p in lora_parameters(backbone).values())


def pairs(way, rows):
    """(document, target) of every scored pair, documents in order."""
    found = []
    for places in way.pieces(rows):
        h, target, row = way.batch(rows[places])
        assert len(h) == len(target) == len(row)
        found += [(int(places[r]), n, int(t)) for n, (r, t) in enumerate(zip(row, target))]
    return [(document, target) for document, _, target in sorted(found)]


def test_pairs_are_those_of_next_token(tiny, tiny_table):
    rows = torch.tensor([5, 2, 40, 11, 7])
    ids, mask = tiny_table.padded(rows)
    row, _, target = next_token_pairs(ids, mask, torch.from_numpy(tiny_table.prefix[rows.numpy()]).long())
    expected = [(int(r), int(t)) for r, t in zip(row, target)]
    for name in ("plain", "fast"):
        with engine.use(name):
            assert pairs(LiveStates(tiny, tiny_table), rows) == expected
    assert pairs(packed_pass(tiny, tiny_table), rows) == expected
    with torch.no_grad():
        assert pairs(LiveStates(tiny, tiny_table), rows) == expected


def test_pieces_hold_what_the_budget_allows_and_shapes_where_one_is_required(tiny, tiny_table):
    rows = torch.arange(len(tiny_table))

    def shapes(**options):
        way = packed_pass(tiny, tiny_table, budget=200, **options)
        pieces = way.pieces(rows)
        assert sorted(torch.cat(pieces).tolist()) == rows.tolist()
        packed = [way.packed(rows[places])[0] for places in pieces]
        assert sum(len(p.target) for p in packed) == tiny_table.n_scored.sum()
        return [tuple(p.ids.shape) for p in packed]

    free = shapes(length=96)
    assert all(b * t <= 200 for b, t in free) and sum(b * t for b, t in free) < 1.4 * tiny_table.lengths.sum()
    assert set(shapes(length=96, n_rows=5)) == {(5, 96)}
    short = int(np.median(tiny_table.lengths))  # half of the documents are longer than such a row
    for n_rows in (None, 5):
        assert len(set(shapes(length=short, n_rows=n_rows))) > 1
    assert packed_pass(tiny, tiny_table).pieces(rows[:0]) == []


def test_a_piece_is_packed_as_it_was_planned(tiny, tiny_table):
    """First fit of a piece's documents alone needs no more rows than the piece has."""
    rows = torch.randperm(len(tiny_table), generator=torch.Generator().manual_seed(0))
    for at_once in (1, 2, 3, 7):
        way = packed_pass(tiny, tiny_table, length=128, n_rows=at_once)
        for places in way.pieces(rows):
            packed, place = way.packed(rows[places])
            assert packed.ids.shape == (at_once, 128) and sorted(place.tolist()) == list(range(len(places)))


def test_a_row_is_as_long_as_the_longest_document_within_the_budget():
    assert [row_length(longest, 2_048) for longest in (5, 256, 257, 9_999)] == [256, 256, 272, 2_048]
    assert row_length(900, 100) == 256
