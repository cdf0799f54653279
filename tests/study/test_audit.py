"""The audit's table: every difference once, with a place and a decision; proofs point at existing rows."""

from chameleon_study.released.proofs import PROOFS, TEXTS
from chameleon_study.released.proofs.store import Proof, audit_frame


def test_every_row_says_where_and_what_decides_it():
    frame = audit_frame()
    assert frame.index.tolist() == list(range(1, 49)) and frame.attrs["commit"] == "f163587"
    assert not frame.isna().any().any()


def test_proofs_named_in_the_table_exist_and_all_are_named():
    named = set(" ".join(audit_frame()["decided by"]).replace(",", " ").replace(";", " ").split())
    assert {name for name in PROOFS if TEXTS[name]["audit"]} <= named  # the others decide no difference
    assert {word for word in named if "_" in word} <= set(PROOFS) | {"validation_clusters"}


def test_rows_with_a_proof_at_hand_are_marked():
    proof = Proof(proof="x", title="", audit=(1, 46), where="", shows="", numbers={})
    assert audit_frame([proof]).query("shown == 'yes'").index.tolist() == [1, 46]
