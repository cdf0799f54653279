"""Proofs about parameters: the hyper-network is a bank of 33 adapters, and no transformer layer is adapted."""

import torch
from torch import nn

from chameleon_lite.heads import Condition, HyperHead, LoraHead

from ...claims.paper import published
from ...parameters import parameter_table
from .subject import Shown, Subject

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
    through = torch.einsum("mc,krc,gk->gmkr", x, basis.down, code)
    whole = torch.einsum("gmkr,kvr->gmv", through, basis.up)
    return error, float((blended - whole).norm() / blended.norm())


@torch.no_grad()
def adapter_bank(subject: Subject) -> Shown:
    """Rebuild the trained hyper-network's factors from its stored adapters and count what is stored."""
    head = subject.trained["R4"][0].head.eval()
    vectors = subject.material.condition_vectors["validation"][:CONDITIONS]
    error, cross = rebuilt(head.double(), Condition(vectors.double()))
    head.float()
    lora = LoraHead(head.width, head.vocab, head.rank).trainable_parameters()
    last = sum(p.numel() for p in head.last.parameters())
    return {
        "stored_adapters": last / lora,
        "last_layer_parameters": float(last),
        "one_adapter_parameters": float(lora),
        "gate_parameters": float(head.trainable_parameters() - last),
        "relative_error": error,
        "difference_to_blended_updates": cross,
    }, {"rank": head.rank}


def untouched_layers(subject: Subject) -> Shown:
    """Layers that a search for nn.Linear adapts: in GPT-2's exact geometry (no weights needed), in this backbone."""
    from transformers import AutoModelForCausalLM, GPT2Config
    from transformers.pytorch_utils import Conv1D

    def modules(body: nn.Module, kind: type) -> float:
        return float(sum(isinstance(m, kind) for m in body.modules()))

    with torch.device("meta"):
        body = AutoModelForCausalLM.from_config(GPT2Config()).base_model
    counts = parameter_table("random-gpt2")
    return {
        "gpt2_linear_modules": modules(body, nn.Linear),
        "gpt2_conv1d_modules": modules(body, Conv1D),
        "backbone_linear_modules": modules(subject.backbone.body, nn.Linear),
        "head_LoRA_parameters": float(counts["lora_head"]),
        "published_LoRA_parameters": published(1, "R1", "parameters"),
        "layer_LoRA_parameters": float(counts["lora_layers"]),
        "hyper_network_parameters": float(counts["hyper_head"]),
        "published_hyper_network_parameters": published(1, "R4", "parameters"),
    }, {}
