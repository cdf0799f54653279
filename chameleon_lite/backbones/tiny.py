"""Backbones that need no file: random weights, the same in every process, and a byte tokenizer.

    tiny         GPT-2's architecture at width 16 (Conv1D layers, tied head)         unit tests
    tiny-llama   Llama's architecture at width 16 (Linear layers, untied head)       unit tests
    random-gpt2  GPT-2's exact geometry                                              counts, shapes, speed

The tokenizer gives every UTF-8 byte its own id (0 … 255, the byte's value) and adds one end-of-text token, so
English text is one token per character and every text can be encoded and decoded without loss.
"""

from pathlib import Path

import torch
import yaml

WEIGHT_SEED = 0
WORD_END = "<|endoftext|>"
GEOMETRIES = Path(__file__).with_name("geometries.yaml")


def byte_tokenizer(model_max_length: int):
    """A fast tokenizer of 257 entries: bytes by value, then end-of-text; adds no special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocab = {symbol: value for value, symbol in bytes_to_unicode().items()} | {WORD_END: 256}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    options = {"eos_token": WORD_END, "model_max_length": model_max_length}
    return PreTrainedTokenizerFast(tokenizer_object=core, **options)


def built_in_config(name: str):
    """The transformers configuration of a built-in backbone, from geometries.yaml."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**yaml.safe_load(GEOMETRIES.read_text(encoding="utf-8"))[name])


def build(name: str, dtype: torch.dtype):
    """A built-in model with seeded random weights and its tokenizer; changes no random state."""
    from transformers import AutoModelForCausalLM

    config = built_in_config(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(WEIGHT_SEED)
        lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return lm.to(dtype), byte_tokenizer(config.max_position_embeddings)
