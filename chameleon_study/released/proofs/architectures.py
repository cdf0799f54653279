"""On which kinds of model the head can be built: by this package, and by what the released scripts need of a model.

kind ─ small, random weights ─ saved ─▶ fit(head = hyper) ─▶ 1 if held-out loss falls, else 0
                                    └─▶ 1 if every part that the scripts name is there
"""

import tempfile

import torch

from chameleon_lite.app.fit import fit
from chameleon_lite.app.fit_settings import FitSettings
from chameleon_lite.backbones.tiny import byte_tokenizer

from .subject import Shown, Subject

NAMED = {"transformer.wte", "transformer.wpe", "lm_head"}  # GPT-2's names, audit row 18
SIZES = dict(vocab_size=257, hidden_size=16, num_hidden_layers=2, max_position_embeddings=128)
HEADS, ENDS = ("num_attention_heads", "num_key_value_heads"), ("bos_token_id", "eos_token_id", "pad_token_id")
COMMON = SIZES | dict.fromkeys(HEADS, 4) | dict.fromkeys(ENDS, 256)
KINDS = {name: {} for name in ("gpt2", "gpt_bigcode", "gpt_neox", "llama", "opt", "phi", "qwen2")}
KINDS["gpt_neo"] = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
TEXTS = 100
SETTINGS = FitSettings(head="hyper", train={"epochs": 10}, tokens={"max_length": 64})


def architectures(subject: Subject) -> Shown:
    """Small models of eight kinds with random weights: heads fitted to a hundred texts of the corpus."""
    from transformers import AutoConfig, AutoModelForCausalLM

    texts = [document.text for document in subject.texts.splits["train"][:TEXTS]]
    built, named = {}, {}
    for kind, own in KINDS.items():
        subject.say(f"a small {kind}")
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = AutoConfig.for_model(kind, **COMMON | own)
            lm = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            lm.save_pretrained(folder)
            byte_tokenizer(128).save_pretrained(folder)
            fitted = fit(texts, backbone=folder, settings=SETTINGS, device="cpu", progress=False)
        subject.say(str(fitted))
        built[kind] = fitted.helped
        named[kind] = {name for name, _ in lm.named_modules()} >= NAMED
    numbers = {"kinds": float(len(KINDS)), "built": float(sum(built.values()))}
    numbers |= {"released_built": float(sum(named.values()))}
    return numbers, {"those": ", ".join(kind for kind in KINDS if named[kind])}
