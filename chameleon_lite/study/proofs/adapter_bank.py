"""The hyper-network's last layer is 33 stored rank-4 adapters and the rest of it a gate, blended in factor space."""

import torch

from ...heads import Condition, HyperHead, LoraHead
from .store import Proof
from .subject import Subject

CONDITIONS = 8


def rebuilt(head: HyperHead, condition: Condition) -> tuple[float, float]:
    """For each condition, `down` and `up` from the stored pairs and the gate: largest relative error of either.

    Also how far the update differs from the same blend of whole updates (ΔW = Σ u_k B_k A_k), on unit inputs:
    blending factors has cross terms, so the bank is one by storage and not by function.
    """
    update, basis, code = (
        head.factors(condition),
        head.basis(),
        head.code(condition),
    )  # (G, …), (33, …), (G, 33)
    down = torch.einsum("gk,krc->grc", code, basis.down)
    up = torch.einsum("gk,kvr->gvr", code, basis.up)
    error = max(float((a - b).norm() / b.norm()) for a, b in ((down, update.down), (up, update.up)))
    x = torch.eye(head.width, device=down.device, dtype=down.dtype)[: min(16, head.width)]
    own = torch.einsum("gvr,grc,mc->gmv", update.up, update.down, x)
    mixed = torch.zeros_like(own)
    for k in range(code.shape[1]):
        mixed += code[:, k, None, None] * (x @ basis.down[k].T @ basis.up[k].T)
    return error, float((own - mixed).norm() / own.norm())


@torch.no_grad()
def prove(subject: Subject) -> Proof:
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
    return Proof(
        proof="adapter_bank",
        title="A bank of 33 adapters and a gate",
        audit=(14, 15),
        where="LoRALinearHyper",
        shows=f"The last layer stores {numbers['stored_adapters']:g} rank-{head.rank} adapters; its factors are "
        f"rebuilt from them to {error:.0e}. Blending whole updates instead would differ by {cross:.0%}.",
        numbers=numbers,
    )
