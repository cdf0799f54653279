"""LoRA in the layers: all of them, exactly nothing at the start, and an error rather than a silent no-op."""

import pytest
import torch
from torch import nn

from chameleon_lite import errors
from chameleon_lite.backbone import load_backbone
from chameleon_lite.lora import adapted_layers, add_lora, lora_parameters, merge_lora, without_lora

IDS = torch.arange(12).view(2, 6)


def trained(name="tiny", **options):
    """A backbone with LoRA whose factors are all nonzero."""
    backbone = load_backbone(name, **options)
    add_lora(backbone, rank=2, alpha=4)
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lora_parameters(backbone).values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=gen))
    return backbone


@pytest.mark.parametrize("name, per_layer", [("tiny", 4), ("tiny-llama", 7)])
def test_adapts_every_layer_as_a_no_op_that_gets_gradient(name, per_layer):
    backbone = load_backbone(name)
    frozen = backbone.hidden(IDS)
    names = add_lora(backbone, rank=2)
    assert len(names) == 2 * per_layer == len(set(names))
    assert torch.equal(backbone.hidden(IDS), frozen)
    trainable = {n for n, p in backbone.lm.named_parameters() if p.requires_grad}
    assert len(trainable) == 4 * per_layer and all(".lora_" in n for n in trainable)
    backbone.hidden(IDS).square().sum().backward()
    assert sum(p.grad.abs().sum() for n, p in lora_parameters(backbone).items() if "lora_B" in n) > 0


def test_gpt2s_conv1d_gets_the_update_that_the_formula_says():
    backbone = load_backbone("tiny")
    names = add_lora(backbone, rank=2, alpha=6)
    layer = backbone.body.get_submodule(names[0])
    nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(3, layer.in_features)
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight  # (out, in)
    merged = x @ (layer.base_layer.weight + 6 / 2 * update.T) + layer.base_layer.bias
    torch.testing.assert_close(layer(x), merged)


def test_nothing_to_match_is_an_error():
    class Bodyless(nn.Module):
        base_model = nn.Sequential(nn.Embedding(4, 4), nn.LayerNorm(4))

    with pytest.raises(errors.UserError, match="adapt nothing"):
        add_lora(Bodyless(), rank=2)
    backbone = trained()
    with pytest.raises(errors.UserError, match="already"):
        add_lora(backbone, rank=2)


def test_off_is_exactly_the_frozen_model():
    frozen, backbone = load_backbone("tiny").hidden(IDS), trained()
    adapted = backbone.hidden(IDS)
    assert not torch.equal(adapted, frozen)
    with without_lora(backbone):
        assert torch.equal(backbone.hidden(IDS), frozen)
        with without_lora(backbone):
            assert torch.equal(backbone.hidden(IDS), frozen)
        assert torch.equal(backbone.hidden(IDS), frozen)  # an inner block's end is not the outer one's
    assert torch.equal(backbone.hidden(IDS), adapted)
    with pytest.raises(KeyError), without_lora(backbone):
        raise KeyError
    assert torch.equal(backbone.hidden(IDS), adapted)


@pytest.mark.parametrize("name", ["tiny", "tiny-llama"])
def test_merged_factors_give_the_same_model_without_lora(name):
    backbone = trained(name)
    adapted = backbone.hidden(IDS)
    merge_lora(backbone.lm)
    assert adapted_layers(backbone) == {} == lora_parameters(backbone)
    torch.testing.assert_close(backbone.hidden(IDS), adapted)


def test_factors_stay_in_float32_on_a_16_bit_model():
    backbone = trained(dtype=torch.bfloat16)
    assert {p.dtype for p in lora_parameters(backbone).values()} == {torch.float32}
    assert backbone.hidden(IDS).dtype == torch.bfloat16
