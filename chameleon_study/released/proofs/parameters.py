"""Proofs about parameters: the hyper-network is a bank of 33 adapters, and no transformer layer is adapted."""

import torch
from torch import nn

from chameleon_lite.heads import Condition, HyperHead, LoraHead

from ...claims.paper import published
from ...parameters import parameter_table
from .store import Shown, proof
from .subject import Subject

CONDITIONS = 8


def rebuilt(head: HyperHead, condition: Condition) -> tuple[float, float]:
    """For each condition, `down` and `up` from the stored pairs and the gate: largest relative error of either.

    Also how far the update differs from the same blend of whole updates (ΔW = Σ u_k B_k A_k), on unit inputs:
    blending factors has cross terms, so the bank is one by storage and not by function.
    """
    update, basis = head.factors(condition), head.basis()  # (G, …), (33, …)
    code = head.code(condition)  # (G, 33)
    down = torch.einsum("gk,krc->grc", code, basis.down)
    up = torch.einsum("gk,kvr->gvr", code, basis.up)
    error = max(float((a - b).norm() / b.norm()) for a, b in ((down, update.down), (up, update.up)))
    x = torch.eye(head.width, device=down.device, dtype=down.dtype)[: min(16, head.width)]
    blended = torch.einsum("gvr,grc,mc->gmv", update.up, update.down, x)
    whole = torch.zeros_like(blended)
    for k in range(code.shape[1]):
        whole += code[:, k, None, None] * (x @ basis.down[k].T @ basis.up[k].T)
    return error, float((blended - whole).norm() / blended.norm())


@proof("A bank of 33 adapters and a gate", (14, 15), "LoRALinearHyper")
@torch.no_grad()
def adapter_bank(subject: Subject) -> Shown:
    """Rebuild the trained hyper-network's factors from its stored adapters and count what is stored."""
    head = subject.trained["R4"][0].head.eval()
    vectors = subject.material.condition_vectors["validation"][:CONDITIONS]
    error, cross = rebuilt(head.double(), Condition(vectors.double()))
    head.float()
    lora = LoraHead(head.width, head.vocab, head.rank).trainable_parameters()
    last = sum(p.numel() for p in head.last.parameters())
    numbers = {
        "stored_adapters": last / lora,
        "last_layer_parameters": float(last),
        "one_adapter_parameters": float(lora),
        "gate_parameters": float(head.trainable_parameters() - last),
        "relative_error": error,
        "difference_to_blended_updates": cross,
    }
    return numbers, (
        f"The last layer stores {last / lora:g} rank-{head.rank} adapters; its factors are "
        f"rebuilt from them to {error:.0e}. Blending whole updates instead would differ by {cross:.0%}."
    )


def linear_and_conv(body: nn.Module) -> tuple[int, int]:
    """How many nn.Linear and how many Conv1D modules a model's body holds."""
    from transformers.pytorch_utils import Conv1D

    modules = list(body.modules())
    return sum(isinstance(m, nn.Linear) for m in modules), sum(isinstance(m, Conv1D) for m in modules)


@proof("No transformer layer is adapted", (12, 13, 15, 18), "apply_lora_to_module")
def untouched_layers(subject: Subject) -> Shown:
    """Layers that a search for nn.Linear adapts: in GPT-2's exact geometry (no weights needed), in this backbone."""
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
    return numbers, (
        f"GPT-2's layers hold {linear} nn.Linear and {conv} Conv1D modules; the head alone has "
        f"{counts['lora_head']:,} LoRA parameters, the published number, and the layers would add "
        f"{counts['lora_layers']:,}."
    )
