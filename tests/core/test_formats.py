import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, masking_utils

from chameleon_lite.backbone import load_backbone
from chameleon_lite.backbones.formats import set_format, unmasked


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


@pytest.mark.parametrize("name", ["tiny", "tiny-llama"])
def test_without_masks_the_states_are_the_same_bits_and_no_mask_is_made(name, monkeypatch):
    made, real = [], masking_utils.find_packed_sequence_indices
    monkeypatch.setattr(
        masking_utils, "find_packed_sequence_indices", lambda *given: made.append(1) or real(*given)
    )
    backbone = load_backbone(name)
    ids = torch.randint(3, 90, (4, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        usual = backbone.hidden(ids)
        assert made
        made.clear()
        with unmasked(backbone.lm):
            assert torch.equal(backbone.hidden(ids), usual) and not made
        assert torch.equal(backbone.hidden(ids), usual) and made


def test_a_model_whose_layers_see_less_keeps_its_masks():
    sizes = {"vocab_size": 96, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "sliding_window": 4}
    config = MistralConfig(**sizes)
    lm = MistralForCausalLM(config).eval()
    before = lm.config._attn_implementation
    with unmasked(lm):
        assert lm.config._attn_implementation == before
