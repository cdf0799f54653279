"""The twelve experiments that show what the released tables measure, in the order a doubting reader would want them.

Subject (corpus, backbone, released procedure, one seed trained) ─ PROOFS ─▶ Proof: numbers, a sentence, audit rows
"""

from collections.abc import Callable, Iterable

from chameleon_lite.errors import unknown

from ...provenance import provenance
from .clustering import clustering_spread, instruction_vectors, kmeans_start, length_clusters
from .data_and_training import alpaca_overlap, dropout_and_selection
from .parameters import adapter_bank, untouched_layers
from .scoring import decomposition, full_mode, model_free, padding_share
from .store import Proof, checks_frame, load_proofs, store_proofs, stored_sentences
from .subject import Subject

PROOFS: dict[str, Callable[[Subject], Proof | None]] = {
    prove.__name__: prove
    for prove in (
        padding_share,
        decomposition,
        model_free,
        clustering_spread,
        length_clusters,
        instruction_vectors,
        alpaca_overlap,
        full_mode,
        untouched_layers,
        adapter_bank,
        kmeans_start,
        dropout_and_selection,
    )
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
                "data": subject.material.facts(),
                "provenance": provenance(str(subject.backbone.device), command),
            }
            proofs.append(proof.model_copy(update=circumstances))
    return proofs


__all__ = [
    "PROOFS",
    "Proof",
    "Subject",
    "checks_frame",
    "load_proofs",
    "prove_all",
    "store_proofs",
    "stored_sentences",
]
