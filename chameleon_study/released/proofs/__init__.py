"""The experiments that show what the released tables measure, in a doubting reader's order.

Subject (corpus, backbone, one seed trained) ─ PROOFS ─▶ numbers, and words that are no numbers
  ─ proofs.yaml: title, audit rows, a sentence ─▶ Proof
"""

from collections.abc import Callable, Iterable
from importlib.resources import files

import yaml

from chameleon_lite.errors import known

from ...provenance import circumstances, placeless
from . import clustering, scoring, training
from .store import Proof
from .subject import Shown, Subject

TEXTS = yaml.safe_load((files(__package__) / "proofs.yaml").read_text(encoding="utf-8"))
_PARTS = vars(scoring) | vars(clustering) | vars(training)
# name ▶ numbers, and words for its sentence that are no numbers; None where it does not apply to the corpus
PROOFS: dict[str, Callable[[Subject], Shown | None]] = {name: _PARTS[name] for name in TEXTS}
BARE = ("paper_tokens", "study_clusters", "architectures")  # proofs that need no hidden states


def prove_all(subject: Subject, command: str, names: Iterable[str] | None = None) -> list[Proof]:
    """Run the named proofs (or all) on a subject; those that do not apply to its corpus are left out."""
    proofs, names = [], list(names or PROOFS)
    known("proof", names, PROOFS)
    for name in names:
        subject.say(f"proof {name}")
        if shown := PROOFS[name](subject):
            numbers, words = shown
            texts = TEXTS[name] | {"shows": TEXTS[name]["shows"].format(**numbers, **words)}
            made = circumstances(subject.settings, subject.backbone.device, command)
            made = {field: made[field] for field in ("backbone", "profile", "settings", "provenance")}
            data = subject.facts() if name in BARE else subject.material.facts(subject.seed)
            made |= {"corpus": placeless(subject.corpus), "data": data}
            proofs.append(Proof(proof=name, **texts, numbers=numbers, **made))
    return proofs
