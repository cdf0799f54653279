"""The twelve experiments that show what the released tables measure, in the order a doubting reader would want them.

Subject (corpus, backbone, released procedure, one seed trained) ─ PROOFS ─▶ Proof: numbers, a sentence, audit rows
"""

from collections.abc import Callable, Iterable

from chameleon_lite.errors import unknown

from ...provenance import provenance
from . import clustering, data_and_training, parameters, scoring
from .store import Proof
from .subject import Subject

PROOFS: dict[str, Callable[[Subject], Proof | None]] = {
    "padding_share": scoring.padding_share,
    "decomposition": scoring.decomposition,
    "model_free": scoring.model_free,
    "clustering_spread": clustering.clustering_spread,
    "length_clusters": clustering.length_clusters,
    "instruction_vectors": clustering.instruction_vectors,
    "alpaca_overlap": data_and_training.alpaca_overlap,
    "full_mode": scoring.full_mode,
    "untouched_layers": parameters.untouched_layers,
    "adapter_bank": parameters.adapter_bank,
    "kmeans_start": clustering.kmeans_start,
    "dropout_and_selection": data_and_training.dropout_and_selection,
}


def prove_all(subject: Subject, command: str, names: Iterable[str] | None = None) -> list[Proof]:
    """Run the named proofs (all by default) on a subject; those that do not apply to its corpus are left out."""
    proofs = []
    for name in names or PROOFS:
        if name not in PROOFS:
            raise unknown("proof", name, PROOFS)
        subject.say(f"proof {name}")
        proof = PROOFS[name](subject)
        if proof is not None:
            circumstances = {
                "backbone": subject.settings.backbone,
                "corpus": subject.corpus,
                "profile": subject.settings.profile,
                "settings": subject.settings.model_dump(mode="json"),
                "data": subject.material.facts(subject.seed),
                "provenance": provenance(str(subject.backbone.device), command),
            }
            proofs.append(proof.model_copy(update=circumstances))
    return proofs
