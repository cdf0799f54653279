"""The proofs in the order a doubting reader would ask for them."""

from collections.abc import Callable, Iterable

from ...errors import unknown
from ..records import provenance
from . import (
    adapter_bank,
    alpaca_overlap,
    clustering_spread,
    decomposition,
    dropout_and_selection,
    full_mode,
    instruction_vectors,
    kmeans_start,
    length_clusters,
    model_free,
    padding_share,
    untouched_layers,
)
from .store import Proof
from .subject import Subject

PROOFS: dict[str, Callable[[Subject], Proof | None]] = {
    module.__name__.rsplit(".", 1)[1]: module.prove
    for module in (
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
    found = []
    for name in names or PROOFS:
        if name not in PROOFS:
            raise unknown("proof", name, PROOFS)
        subject.say(f"proof {name}")
        proof = PROOFS[name](subject)
        if proof is not None:
            about = {
                "backbone": subject.settings.backbone,
                "corpus": subject.corpus,
                "profile": subject.settings.profile,
                "settings": subject.settings.model_dump(mode="json"),
                "data": subject.material.facts(),
                "provenance": provenance(str(subject.backbone.device), command),
            }
            found.append(proof.model_copy(update=about))
    return found
