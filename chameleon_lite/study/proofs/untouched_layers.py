"""How many transformer layers a search for nn.Linear adapts in GPT-2: none of 48."""

from torch import nn

from ...model.parameters import parameter_table
from ..paper import published
from .store import Proof
from .subject import Subject


def linear_and_conv(body: nn.Module) -> tuple[int, int]:
    """How many nn.Linear and how many Conv1D modules a model's body holds."""
    from transformers.pytorch_utils import Conv1D

    kinds = [type(m) for m in body.modules()]
    return sum(issubclass(k, nn.Linear) for k in kinds), sum(issubclass(k, Conv1D) for k in kinds)


def prove(subject: Subject) -> Proof:
    """Count in GPT-2's exact geometry (no weights needed) and in this run's backbone."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config

    with torch.device("meta"):
        linear, conv = linear_and_conv(AutoModelForCausalLM.from_config(GPT2Config()).base_model)
    counts = parameter_table("random-gpt2")
    numbers = {
        "gpt2_linear_modules": float(linear),
        "gpt2_conv1d_modules": float(conv),
        "backbone_linear_modules": float(linear_and_conv(subject.backbone.body)[0]),
        "head_LoRA_parameters": float(counts["lora_head"]),
        "published_LoRA_parameters": published(1, "R1", "parameters"),
        "layer_LoRA_parameters": float(counts["lora_layers"]),
        "hyper_network_parameters": float(counts["hyper_head"]),
        "published_hyper_network_parameters": published(1, "R4", "parameters"),
    }
    return Proof(
        proof="untouched_layers",
        title="No transformer layer is adapted",
        audit=(12, 13, 15, 18),
        where="apply_lora_to_module",
        shows=f"GPT-2's layers hold {linear} nn.Linear and {conv} Conv1D modules; the head alone has "
        f"{counts['lora_head']:,} LoRA parameters, the published number, and the layers would add "
        f"{counts['lora_layers']:,}.",
        numbers=numbers,
    )
