"""Claims that the released tables themselves decide: rules over the stored proofs."""

from .evidence import Evidence
from .proofs.store import load_proofs
from .rules import REFUTED, UNDECIDED, Finding, worst


def without_a_model(evidence: Evidence) -> Finding:
    """Claim 2: refuted as a statement on language models where a predictor without one is as good as the LoRA row.

    Where it is not, the released loss does not decide the claim: chapter 08 asks it of next tokens.
    """
    found, numbers = {}, []
    for proof in load_proofs(evidence.folder):
        if proof.proof != "model_free" or proof.backbone != evidence.backbone:
            continue
        name, n = f"{proof.corpus} ({proof.key[3]} tokens)", proof.numbers
        found[name] = REFUTED if n["model_free_loss"] <= n["LoRA_loss"] else UNDECIDED
        numbers.append(f"{name}: without a model {n['model_free_loss']:.4f}, LoRA {n['LoRA_loss']:.4f}, "
                       f"hyper-network {n['hyper_network_loss']:.4f}")  # fmt: skip
    return Finding(worst(list(found.values())), "; ".join(numbers), found) if found else Finding()
