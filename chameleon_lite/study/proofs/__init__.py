"""The twelve experiments that show what the released tables measure: one file each, each returning a `Proof`.

Subject (corpus, backbone, released procedure, one seed trained) ─ prove ─▶ Proof: numbers, a sentence, audit rows
"""

from .checks import checks_frame
from .registry import PROOFS, prove_all
from .store import Proof, load_proofs, store_proofs, stored_sentences
from .subject import Subject

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
