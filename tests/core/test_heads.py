"""Heads: parameter counts are the paper's, the start is an exact no-op that still learns, forms agree."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chameleon_lite import errors
from chameleon_lite.heads import Condition, HyperHead, LoraHead, apply_update, matched_rank

GPT2, SMOLLM2 = (768, 50_257), (576, 49_152)  # (C, V)


@pytest.mark.parametrize(
    "sizes, lora, hyper, rank", [(GPT2, 204_100, 6_786_596, 133), (SMOLLM2, 198_912, 6_603_104, 133)]
)
def test_parameter_counts(sizes, lora, hyper, rank):
    with torch.device("meta"):
        assert LoraHead(*sizes).trainable_parameters() == lora
        assert HyperHead(*sizes).trainable_parameters() == hyper
    assert matched_rank(*sizes) == rank


def small_heads():
    return [LoraHead(16, 50, rank=2), HyperHead(16, 50, rank=2).eval()]


@pytest.mark.parametrize("which", range(2))
def test_starts_as_the_frozen_head_exactly(which):
    torch.manual_seed(0)
    weight, h, condition = torch.randn(50, 16), torch.randn(1, 5, 16), Condition(torch.randn(1, 16))
    head = small_heads()[which]
    frozen = F.linear(h, weight)
    assert torch.equal(frozen + apply_update(h, head.factors(condition)), frozen)


@pytest.mark.parametrize("which", [0, 1])
def test_still_gets_gradient_at_the_start(which):
    torch.manual_seed(0)
    head, h = small_heads()[which], torch.randn(1, 5, 16)
    logits = F.linear(h, torch.randn(50, 16)) + apply_update(h, head.factors(Condition(torch.randn(1, 16))))
    F.cross_entropy(logits[0], torch.randint(50, (5,))).backward()
    if isinstance(head, LoraHead):
        down, up = head.down.grad, head.up.grad
    else:
        down, up = head.last.bias.grad.split([2 * 16, 50 * 2])
    assert down.abs().sum() == 0 and up.abs().sum() > 0  # the first step moves `up` alone


def test_static_lora_equals_pefts_on_the_same_factors():
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    host = nn.Sequential(nn.Linear(16, 50, bias=False))
    head, h = LoraHead(16, 50, rank=2, released_init=True), torch.randn(7, 16)
    frozen = host(h)
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=6, target_modules=["0"]), host)
    with torch.no_grad():
        host[0].lora_A["default"].weight.copy_(head.down)
        host[0].lora_B["default"].weight.copy_(head.up)
    ours = frozen + apply_update(h, head.factors(), scale=6 / 2)
    torch.testing.assert_close(ours, host(h), rtol=1e-6, atol=1e-6)


def test_released_initialisations():
    torch.manual_seed(0)
    lora, wikitext, alpaca = (
        LoraHead(64, 3_000, released_init=True),
        HyperHead(64, 3_000, released_init="wikitext"),
        HyperHead(64, 3_000, released_init="alpaca"),
    )
    assert lora.up.std().item() == pytest.approx(0.01, rel=0.05)
    assert lora.down.std().item() == pytest.approx(0.01, rel=0.15)  # 256 draws only
    assert wikitext.last.weight.std().item() == pytest.approx(1e-3, rel=0.05)
    assert wikitext.last.bias.std().item() == pytest.approx(1e-3, rel=0.05)
    assert abs(wikitext.last.bias.mean().item()) < 1e-4
    assert alpaca.last.weight.abs().max().item() == pytest.approx(32**-0.5, rel=0.01)
    with pytest.raises(errors.UserError, match="did you mean 'wikitext'"):
        HyperHead(4, 5, released_init="wikitex")


def trained_like_hyper_head() -> HyperHead:
    torch.manual_seed(0)
    return HyperHead(6, 9, rank=2, released_init="alpaca").eval()


def test_each_condition_makes_its_own_update():
    update = trained_like_hyper_head().factors(Condition(torch.randn(3, 6)))
    assert update.down.shape == (3, 2, 6) and update.up.shape == (3, 9, 2)
    assert not torch.equal(update.up[0], update.up[1])


def test_the_affine_form_gives_the_same_factors():
    head, condition = trained_like_hyper_head(), Condition(torch.randn(3, 6))
    code, basis, update = head.code(condition), head.basis(), head.factors(condition)
    assert code.shape == (3, 33) and basis.groups == 33
    torch.testing.assert_close(torch.einsum("gj,jrc->grc", code, basis.down), update.down)
    torch.testing.assert_close(torch.einsum("gj,jvr->gvr", code, basis.up), update.up)


def test_folding_a_constant_condition_gives_a_static_head():
    head, condition = trained_like_hyper_head().train(), Condition(torch.randn(1, 6))
    folded = head.fold(condition)
    assert head.training and isinstance(folded, LoraHead)
    update = head.eval().factors(condition)
    assert torch.equal(folded.down, update.down[0]) and torch.equal(folded.up, update.up[0])
    with pytest.raises(errors.UserError, match="one condition"):
        head.fold(Condition(torch.randn(2, 6)))
