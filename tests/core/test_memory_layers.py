"""Layers with factors of each row's own, and a memory of them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chameleon_lite.backbone import copied, load_backbone
from chameleon_lite.lora import add_lora, lora_parameters
from chameleon_lite.loss import HeadWeight
from chameleon_lite.streams import online
from chameleon_lite.streams.memory import HEAD, LearnSettings, Memory, fresh_start
from chameleon_lite.streams.online import (
    LayerStates,
    layer_shapes,
    learn,
    linear_layers,
    step_tokens,
    tokens_that_fit,
)


def fresh(shapes, slots, rate):
    start = fresh_start(shapes, torch.Generator().manual_seed(0))
    return Memory(shapes, start, torch.full((slots,), rate), LearnSettings(batch_rows=4))


def test_layers_with_rows_of_their_own_are_those_that_peft_adapts(tiny_table):
    backbone = load_backbone("tiny-llama")
    rows = torch.tensor([3, 1, 2])
    live = LayerStates(backbone, tiny_table)
    shapes = layer_shapes(backbone, 2)
    adapted = copied(backbone)
    assert add_lora(adapted, rank=2) == sorted(shapes)
    numbers, states = torch.Generator().manual_seed(0), {}
    for name, value in lora_parameters(adapted).items():
        states[name] = value.data = torch.randn(value.shape, generator=numbers) * 0.3
    ids, mask = tiny_table.padded(rows)
    with torch.no_grad():
        expected, frozen = adapted.hidden(ids, mask), backbone.hidden(ids, mask)
    numbers = []
    for name in shapes:  # row 1 has the factors, the others none
        down, up = (states[f"{name}.lora_{side}.default.weight"] for side in "AB")
        own = torch.tensor([0.0, 1.0, 0.0])[:, None]
        numbers += [down.flatten().expand(3, -1), up.flatten() * own]
    h, target, row = live.batch(rows, torch.cat(numbers, 1), torch.arange(3)[:, None], shapes)
    assert target.tolist() == [
        int(t) for n in rows for t in tiny_table.ids[slice(*tiny_table.offsets[n : n + 2])][8:]
    ]
    for n in range(3):
        scored = slice(7, int(mask[n].sum()) - 1)
        want = (expected if n == 1 else frozen)[n, scored]
        torch.testing.assert_close(h[row == n], want, atol=1e-5, rtol=1e-4)
    assert not any(module._forward_hooks for module in backbone.body.modules())


@pytest.mark.parametrize("model", ["tiny", "tiny-llama"])
def test_layers_learn_and_look_only_back(model, tiny_table):
    backbone = load_backbone(model)
    weight = HeadWeight(backbone.head.weight, backbone.head.bias, dtype=torch.float32)
    table = tiny_table.take(np.arange(16))
    labels = torch.arange(16) % 2
    changed = table.ids.copy()
    changed[table.offsets[8] + 10 :] = (
        65  # the ninth document from its third scored token on, and all later ones
    )
    losses, memories = [], []
    for ids in (table.ids, changed):
        live = LayerStates(backbone, replace(table, ids=ids), piece_tokens=200)
        shapes = {HEAD: (2, backbone.width, backbone.vocab)} | layer_shapes(backbone, 2)
        memory = fresh(shapes, slots=3, rate=0.01)
        losses.append(learn(live, weight, torch.arange(16), memory, labels=labels))
        memories.append(memory)
    assert torch.equal(losses[0][:8], losses[1][:8])
    assert (losses[0][8:] != losses[1][8:]).all()
    again = fresh(shapes, slots=3, rate=0.01)
    live, rows = LayerStates(backbone, table, piece_tokens=200), torch.arange(16)
    first = learn(live, weight, rows, again, labels=labels)
    second = learn(live, weight, rows, again, labels=labels)
    assert torch.equal(first, losses[0]) and second.sum() < first.sum()


@pytest.mark.parametrize("model", ["tiny", "tiny-llama"])
def test_tokens_that_fit_keep_no_more_than_the_share_of_the_memory(model, tiny_table):
    backbone, table, kept = load_backbone(model), tiny_table.take(np.arange(8)), {}
    live, shapes = LayerStates(backbone, table), layer_shapes(backbone, 2)
    size = sum(rank * (inputs + outputs) for rank, inputs, outputs in shapes.values())
    values = torch.ones(8, size, requires_grad=True)
    own = {p.untyped_storage().data_ptr() for p in backbone.body.parameters()}

    def keep(x):
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = 0 if storage.data_ptr() in own else storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        live.batch(torch.arange(8), values, torch.arange(8)[:, None], shapes)
    tokens = 8 * int(table.lengths.max())
    memory = int(sum(kept.values()) / online.GPU_SHARE)
    assert 64 < tokens_that_fit(live.linear.values(), memory) <= tokens
    assert tokens_that_fit(live.linear.values(), 1) == 64
    assert live.piece_tokens == online.CPU_TOKENS


@pytest.mark.parametrize("memory, tokens", [(80e9, 4_096), (1e5, None)])
def test_a_piece_of_a_step_is_larger_than_usual_where_memory_allows_and_never_smaller(
    monkeypatch, memory, tokens
):
    backbone, device = load_backbone("tiny-llama"), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d: SimpleNamespace(total_memory=memory))
    assert step_tokens(backbone) is None  # on a CPU
    alone = set(linear_layers(backbone))
    add_lora(backbone, rank=4)
    assert {n.removesuffix(".base_layer") for n in linear_layers(backbone)} == alone
    assert step_tokens(SimpleNamespace(device=device, body=backbone.body)) == tokens
