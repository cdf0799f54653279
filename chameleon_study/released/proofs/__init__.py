"""The twelve experiments that show what the released tables measure, in the order a doubting reader would want them."""

from collections.abc import Callable, Iterable
from importlib.resources import files

import yaml

from chameleon_lite.errors import unknown

from ...provenance import provenance
from . import clustering, scoring, training
from .store import Proof
from .subject import Shown, Subject

TEXTS = yaml.safe_load((files(__package__) / "proofs.yaml").read_text(encoding="utf-8"))
_PARTS = vars(scoring) | vars(clustering) | vars(training)
# name ▶ numbers, and words for its sentence that are no numbers; None where it does not apply to the corpus
PROOFS: dict[str, Callable[[Subject], Shown | None]] = {name: _PARTS[name] for name in TEXTS}


def prove_all(subject: Subject, command: str, names: Iterable[str] | None = None) -> list[Proof]:
    """Run the named proofs (all by default) on a subject; those that do not apply to its corpus are left out."""
    proofs, settings, names = [], subject.settings, list(names or PROOFS)
    if odd := [name for name in names if name not in PROOFS]:
        raise unknown("proof", odd[0], PROOFS)
    subjects = {"backbone": settings.backbone, "corpus": subject.corpus, "profile": settings.profile}
    subjects |= {"settings": settings.model_dump(mode="json"), "data": subject.material.facts(subject.seed)}
    for name in names:
        subject.say(f"proof {name}")
        if shown := PROOFS[name](subject):
            numbers, words = shown
            texts = TEXTS[name] | {"shows": TEXTS[name]["shows"].format(**numbers, **words)}
            made = provenance(str(subject.backbone.device), command)
            proofs.append(Proof(proof=name, **texts, numbers=numbers, **subjects, provenance=made))
    return proofs
