"""The parameter column of the paper's tables, counted on real modules of PyTorch's meta device: without weights."""

from contextlib import nullcontext
from pathlib import Path

import torch

from chameleon_lite import HyperHead, LoraHead, errors, matched_rank
from chameleon_lite.backbone import BUILT_IN, SHORT_NAMES
from chameleon_lite.backbones import tiny
from chameleon_lite.backbones.hub import load_config, reachable, readable
from chameleon_lite.lora import add_lora, lora_parameters

from .regimes import RANK


def parameter_table(backbone_name: str) -> dict[str, int]:
    """Parameter counts for a backbone, without its weights.

    total: the frozen model, a tied matrix once · lora_head, lora_layers, lora_everywhere: LoRA in the head,
    all layers, both · hyper_head: the hyper-network · matched_rank: the LoRA head's rank that matches it.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        with readable(f"the configuration of {backbone_name}"):
            config = _config(backbone_name)
            lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        total = sum(p.numel() for p in lm.parameters())
        vocab, width = lm.get_output_embeddings().weight.shape
        lora_head = LoraHead(width, vocab, RANK).trainable_parameters()
        hyper_head = HyperHead(width, vocab, RANK).trainable_parameters()
        adapted = add_lora(lm, rank=RANK)
    layers = sum(p.numel() for p in lora_parameters(lm).values())
    counts = {"total": total, "lora_head": lora_head, "hyper_head": hyper_head, "lora_layers": layers}
    counts |= {"lora_everywhere": layers + lora_head, "matched_rank": matched_rank(width, vocab, RANK)}
    return counts | {"width": width, "vocab": vocab, "adapted_layers": len(adapted)}


def _config(name: str):
    if name in (*BUILT_IN, "gpt2"):  # of which random-gpt2 has the geometry
        return tiny.built_in_config("random-gpt2" if name == "gpt2" else name)
    folder = Path(name).is_dir()
    if "/" not in name and name not in SHORT_NAMES and not folder:
        raise errors.unknown("backbone", name, [*BUILT_IN, *SHORT_NAMES])
    source = SHORT_NAMES.get(name, name)
    try:
        with readable(f"the configuration of {source}") if folder else nullcontext():
            return load_config(source, local_files_only=folder or not reachable())
    except (OSError, ValueError) as error:
        message = f"no configuration of {source!r} is at hand: use random-gpt2, smollm2 or a local folder"
        raise errors.Unreachable(f"{message}, or check the name, connect and try again") from error
