"""Packed pieces: the same states, loss and gradients as padded ones, in every architecture that takes them."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers

from chameleon_lite.backbone import copied, load_backbone
from chameleon_lite.backbones.tiny import byte_tokenizer
from chameleon_lite.batches import Arrangement
from chameleon_lite.fast.recorded_layers import Layers
from chameleon_lite.heads import LoraHead
from chameleon_lite.lora import add_lora, lora_parameters
from chameleon_lite.loss import HeadWeight, pick_next_token
from chameleon_lite.train_layers import (
    Layered,
    StepLayers,
    Texts,
    gradients,
    packed_pieces,
    padded_pieces,
    row_length,
    step_layers,
    takes_packed,
)

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


def adapted(backbone) -> Layered:
    """LoRA in the layers and on the head, all factors away from zero."""
    torch.manual_seed(1)
    add_lora(backbone, rank=2)
    weight = HeadWeight(backbone.head.weight, dtype=torch.float32)
    both = Layered(backbone, LoraHead(backbone.width, backbone.vocab, 2), weight, 0.7)
    for parameter in both.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return both


def step(both, layers, table):
    """Nats, gradients and states by document of one step over the whole table."""
    for parameter in both.parameters():
        parameter.grad = None
    rows, states = torch.arange(len(table)), {}
    order, count = Arrangement(rows), int(table.n_scored.sum())
    nats = gradients(both, layers, Texts(table, lambda number: order), order, rows, count)
    for piece in layers.pieces(table, rows):
        h = layers.states(piece).detach()
        states |= {int(n): h[piece.owner == d] for d, n in enumerate(piece.documents)}
    flat = torch.cat([p.grad.flatten() for p in both.parameters()])
    return float(nats), flat, torch.cat([states[n] for n in range(len(table))])


@pytest.mark.parametrize("kind", ["GPT2", "Llama", "GPTNeoX", "Qwen2", "OPT"])
def test_packed_is_padded(small, tiny_table, kind):
    table, both = tiny_table.take(np.arange(24)), adapted(small(kind))
    assert takes_packed(both.backbone, int(table.lengths.max()))
    padded = StepLayers(Layers(both.backbone), CPU, 10**6, None)
    packed = StepLayers(Layers(both.backbone), CPU, 256, 112)  # two rows a piece
    fixed = dataclasses.replace(packed, n_rows=3)
    loss, gradient, states = step(both, padded, table)
    assert (
        len(padded.pieces(table, torch.arange(24))) == 1 and len(packed.pieces(table, torch.arange(24))) > 3
    )
    for layers in (packed, fixed):
        found = step(both, layers, table)
        assert found[0] == pytest.approx(loss, rel=1e-5)
        assert (found[1] - gradient).norm() < 1e-5 * gradient.norm()
        assert torch.allclose(found[2], states, atol=1e-5, rtol=1e-5)


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
    add_lora(small_bloom := small("Bloom"), rank=1)
    layers = step_layers(small_bloom, tiny_table)
    assert layers.length is None and layers.pieces(tiny_table, torch.arange(9))[0].position is None


def test_a_sliding_window_counts_where_a_document_is_longer(small):
    assert takes_packed(small("Mistral"), 20) and not takes_packed(small("Mistral"), 60)


def test_the_probe_leaves_lora_as_it_was(small):
    both = adapted(small("Llama"))
    ids = torch.arange(12)[None]
    before, drawn = both.backbone.hidden(ids), torch.get_rng_state()
    assert takes_packed(both.backbone, 30)
    assert torch.equal(both.backbone.hidden(ids), before) and torch.equal(torch.get_rng_state(), drawn)
    assert all(p.requires_grad for p in lora_parameters(both.backbone).values())


def pairs(pieces):
    """(document, place in its piece, target) of every scored pair, sorted."""
    return sorted(
        (int(piece.documents[owner]), place, int(target))
        for piece in pieces
        for place, (owner, target) in enumerate(zip(piece.owner, piece.target))
    )


def test_pairs_are_those_of_next_token(tiny_table):
    rows = torch.tensor([5, 2, 40, 11, 7])
    ids, mask = tiny_table.padded(rows)
    row, _, target = pick_next_token(ids, mask, torch.from_numpy(tiny_table.prefix[rows.numpy()]).long())
    expected = [(int(r), int(t)) for r, t in zip(row, target)]
    for pieces in (packed_pieces(tiny_table, rows, 112, 256, CPU), padded_pieces(tiny_table, rows, 200, CPU)):
        assert [(n, t) for n, _, t in pairs(pieces)] == expected


def test_pieces_hold_what_the_budget_allows_and_shapes_where_one_is_asked_for(tiny_table):
    rows = torch.arange(len(tiny_table))
    free = list(packed_pieces(tiny_table, rows, 96, 200, CPU))
    assert (
        all(p.ids.numel() <= 200 for p in free)
        and sum(p.ids.numel() for p in free) < 1.4 * tiny_table.lengths.sum()
    )
    fixed = list(packed_pieces(tiny_table, rows, 96, 200, CPU, n_rows=5))
    assert {tuple(p.ids.shape) for p in fixed} == {(5, 96)}
    short = int(np.median(tiny_table.lengths))  # half of the documents are longer than such a row
    for pieces in (list(packed_pieces(tiny_table, rows, short, 200, CPU, n_rows=n)) for n in (None, 5)):
        assert sorted(torch.cat([p.documents for p in pieces]).tolist()) == rows.tolist()
        assert sum(len(p.target) for p in pieces) == tiny_table.n_scored.sum()
    assert list(packed_pieces(tiny_table, rows[:0], 96, 200, CPU)) == []


def test_a_row_is_as_long_as_the_longest_document_within_the_budget():
    assert [row_length(longest, 2_048) for longest in (5, 256, 257, 9_999)] == [256, 256, 272, 2_048]
    assert row_length(900, 100) == 256
