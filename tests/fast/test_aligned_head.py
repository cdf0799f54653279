"""A head's product through a padded copy of its weight."""

import pytest
import torch
from torch import nn

from chameleon_lite.fast.mixed_update import AlignedHead, MixedUpdate, aligned, gains
from chameleon_lite.heads import HeadUpdate
from chameleon_lite.loss import VOCAB_MULTIPLE


def head_of(vocab: int, bias: bool, dtype=torch.float64) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(16, vocab, bias=bias, dtype=dtype).requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("vocab", [64, 65, 100, 127])
def test_the_padded_copy_gives_the_heads_logits(vocab, bias):
    head, h = head_of(vocab, bias), torch.randn(3, 2, 16, dtype=torch.float64)
    found = AlignedHead(head)(h)
    assert found.shape == (3, 2, vocab)
    assert found.stride(-2) % VOCAB_MULTIPLE == 0  # what the copy is for
    torch.testing.assert_close(found, head(h), rtol=1e-12, atol=1e-12)


def test_updates_of_several_groups_are_added_to_its_view():
    head, h = head_of(100, True), torch.randn(6, 2, 16, dtype=torch.float64)
    update = HeadUpdate(
        torch.randn(3, 4, 16, dtype=torch.float64),
        torch.randn(3, 100, 4, dtype=torch.float64),
        torch.randn(3, 100, dtype=torch.float64),
    )
    mixed = MixedUpdate(update, torch.tensor([2, 0, 1, 1, 0, 0]))
    with torch.no_grad():
        torch.testing.assert_close(mixed(AlignedHead(head), h), mixed(head, h), rtol=1e-12, atol=1e-12)


def test_a_changed_or_replaced_weight_is_noticed():
    head = head_of(70, True)
    aligned = AlignedHead(head)
    assert aligned.serves(head)
    head.weight.mul_(2)
    assert not aligned.serves(head)
    aligned = AlignedHead(head)
    head.bias = nn.Parameter(head.bias + 1, requires_grad=False)
    assert not aligned.serves(head)


def test_a_cpu_and_an_aligned_vocabulary_get_no_copy():
    assert not gains(head_of(100, False, torch.bfloat16))
    if torch.cuda.is_available():
        assert gains(head_of(100, False, torch.bfloat16).cuda())
        assert not gains(head_of(128, False, torch.bfloat16).cuda())
        assert not gains(head_of(100, False, torch.float32).cuda())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_adapted_logits_on_a_gpu_are_the_plain_heads_but_for_rounding():
    from chameleon_lite.backbone import load_backbone
    from chameleon_lite.chameleon import ChameleonLiteForCausalLM

    backbone = load_backbone("tiny", device="cuda", dtype=torch.bfloat16)
    model = ChameleonLiteForCausalLM.from_backbone(backbone)
    ids = torch.arange(2, 34, device="cuda").view(2, 16) % backbone.vocab
    with torch.no_grad():
        expected = model(input_ids=ids).logits.float()
        found = model(
            input_ids=ids,
            condition=torch.zeros(1, backbone.width, device="cuda"),
            group=torch.zeros(2, dtype=torch.int64),
        ).logits.float()
    head = model.get_output_embeddings()
    with torch.no_grad():
        assert isinstance(aligned(head), AlignedHead) == (backbone.vocab % VOCAB_MULTIPLE > 0)
        assert aligned(head) is aligned(head)
    assert aligned(head) is head  # training gets the head itself, and its memory
    assert float((found - expected).abs().max()) <= 2**-7 * float(expected.abs().max())
