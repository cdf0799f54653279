"""Small models of several architectures, saved as folders so that they load like anyone's own model."""
import pytest
import torch

from chameleon_lite.model.backbones import load_backbone
from chameleon_lite.model.tiny import byte_tokenizer

COMMON = {"vocab_size": 257, "max_position_embeddings": 128, "bos_token_id": 256, "eos_token_id": 256}
LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "initializer_range": 0.2} | COMMON
KINDS = {  # name -> configuration class, its settings, what the tokenizer's pad token is
    "gpt2-tied": ("GPT2Config", {"vocab_size": 257, "n_positions": 128, "n_embd": 16, "n_layer": 2, "n_head": 2,
                                 "initializer_range": 0.2, "bos_token_id": 256, "eos_token_id": 256}, "missing"),
    "llama-untied": ("LlamaConfig", {"num_key_value_heads": 2, "tie_word_embeddings": False} | LLAMA, "eos"),
    "qwen2-tied": ("Qwen2Config", {"num_key_value_heads": 2, "tie_word_embeddings": True} | LLAMA, "zero"),
    "neox-untied": ("GPTNeoXConfig", LLAMA, "own"),
    "opt-projected": ("OPTConfig", {"hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 2,
                                    "num_attention_heads": 4, "init_std": 0.2, "pad_token_id": 0} | COMMON, "own"),
    "phi-bias": ("PhiConfig", LLAMA, "eos"),
}


def save_small(kind: str, folder, seed: int = 0):
    """A model of the kind with seeded random weights and the byte tokenizer, in a folder."""
    import transformers

    config_name, settings, pad = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lm = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config_name)(**settings))
        for name, value in lm.named_parameters():
            if name.endswith("bias"):  # zero by default: a forgotten bias would go unseen
                torch.nn.init.normal_(value, std=0.2)
    tokenizer = byte_tokenizer(128)
    pads = {"missing": None, "eos": tokenizer.eos_token, "zero": tokenizer.convert_ids_to_tokens(0),
            "own": tokenizer.convert_ids_to_tokens(1)}
    tokenizer.pad_token = pads[pad]
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
    """kind -> folder, made on first use."""
    made = {}

    def get(kind: str, seed: int = 0):
        if (kind, seed) not in made:
            made[kind, seed] = save_small(kind, tmp_path_factory.mktemp(kind), seed)
        return made[kind, seed]
    return get


@pytest.fixture
def small_backbone(small_folder):
    return lambda kind, seed=0: load_backbone(str(small_folder(kind, seed)))


@pytest.fixture
def small_kinds():
    return list(KINDS)


def pytest_generate_tests(metafunc):
    """A test that takes `architecture` runs once for every architecture."""
    if "architecture" in metafunc.fixturenames:
        metafunc.parametrize("architecture", list(KINDS))
