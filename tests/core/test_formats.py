import pytest
import torch

from chameleon_lite.backbones.formats import set_format


def test_a_model_is_bit_for_bit_what_it_was(architecture, small_backbone):
    backbone = small_backbone(architecture)
    ids = torch.arange(60).reshape(2, 30)
    before, head = backbone.lm(ids).logits, backbone.head
    with pytest.raises(KeyError), set_format(backbone.lm, torch.bfloat16):
        assert backbone.lm(ids).logits.dtype == torch.bfloat16
        raise KeyError
    assert torch.equal(backbone.lm(ids).logits, before)
    assert backbone.lm.get_output_embeddings() is head and head.weight.dtype == torch.float32


def test_rotary_frequencies_are_not_rounded(small_backbone):
    lm = small_backbone("llama-untied").lm
    frequencies = {n: b.clone() for n, b in lm.named_buffers() if "inv_freq" in n}
    undo = set_format(lm, torch.bfloat16)
    assert frequencies and all(
        torch.equal(dict(lm.named_buffers())[n], value) for n, value in frequencies.items()
    )
    undo.close()
    assert all(p.dtype == torch.float32 for p in lm.parameters())


def test_tied_matrices_stay_tied(small_backbone):
    lm = small_backbone("qwen2-tied").lm
    with set_format(lm, torch.bfloat16):
        assert lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
    assert lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
