"""A model whose text part has a configuration of its own inside the whole one's, as those that see images have."""

import json
import warnings

import pytest
import torch

from chameleon_lite.app.export import export
from chameleon_lite.backbone import load_backbone
from chameleon_lite.backbones.tiny import byte_tokenizer
from chameleon_lite.chameleon import ChameleonLiteForCausalLM

IDS = torch.arange(2, 22)[None]
TEXT = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
TEXT |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}
TEXT |= {"initializer_range": 0.2, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 0}
SIGHT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SIGHT |= {"image_size": 28, "patch_size": 14}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small Gemma 3 that sees images, its head tied, in a folder."""
    from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3TextConfig, SiglipVisionConfig

    folder = tmp_path_factory.mktemp("nested")
    parts = {"text_config": Gemma3TextConfig(**TEXT), "vision_config": SiglipVisionConfig(**SIGHT)}
    images = {"image_token_index": 299, "boi_token_index": 297, "eoi_token_index": 298}
    config = Gemma3Config(**parts, **images, mm_tokens_per_image=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    assert lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
    lm.save_pretrained(folder)
    byte_tokenizer(128).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layers", [0, 2])
def test_both_formats_give_our_logits_and_no_part_of_the_configuration_ties_them_again(
    place, layers, tmp_path
):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = ChameleonLiteForCausalLM.from_backbone(
        load_backbone(str(place)), head="lora", rank=2, lora_rank=layers
    )
    torch.nn.init.normal_(model.head.up, std=0.3)
    with torch.no_grad():
        logits = model(IDS, condition=torch.zeros(1, 16)).logits
        assert (logits - load_backbone(str(place)).lm(IDS).logits).abs().max() > 0.1
        merged = export(model, tmp_path / "merged", format="merged")
        plain = AutoModelForCausalLM.from_pretrained(merged, trust_remote_code=False)
        assert (plain(IDS).logits - logits).abs().max() < 1e-5
        base = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            served = PeftModel.from_pretrained(base, export(model, tmp_path / "peft"))
            assert (served(IDS).logits - logits).abs().max() < 1e-5
    config = json.loads((merged / "config.json").read_text())
    assert config["tie_word_embeddings"] is config["text_config"]["tie_word_embeddings"] is False
