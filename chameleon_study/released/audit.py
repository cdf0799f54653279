"""The paper's text beside its released scripts: 48 differences, and how each is decided."""

from importlib.resources import files

import pandas as pd

from .proofs.store import COMMIT, Proof


def audit_frame(proofs: list[Proof] = ()) -> pd.DataFrame:
    """One row per difference: paper, code, place, what decides it; `shown` where a given proof does."""
    frame = pd.read_csv(files(__package__) / "audit.csv").set_index("row")
    shown = {row for proof in proofs for row in proof.audit}
    frame["shown"] = ["yes" if row in shown else "" for row in frame.index]
    frame.attrs["commit"] = COMMIT
    return frame
