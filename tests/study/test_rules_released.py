"""Claim 2 is decided by the stored proofs of the released tables."""

import pytest

from chameleon_lite.study.evidence import Evidence
from chameleon_lite.study.ledger import RULES
from chameleon_lite.study.proofs.store import Proof, store_proofs


def proof(corpus, free, lora):
    return Proof(proof="model_free", title="", audit=(), where="", shows="x.", backbone="smollm2", corpus=corpus,
                 profile="paper", settings={"tokens": {"max_length": 256}},
                 numbers={"model_free_loss": free, "LoRA_loss": lora, "hyper_network_loss": 0.4})  # fmt: skip


@pytest.mark.parametrize(
    ("proofs", "verdict"),
    [
        ([], "not tested"),
        ([("wikitext-2-lite-released", 0.48, 0.50)], "refuted"),
        ([("wikitext-2-lite-released", 0.52, 0.50)], "not decidable here"),
        ([("wikitext-2-lite-released", 0.52, 0.50), ("alpaca", 0.1, 0.2)], "refuted"),
    ],
)
def test_claim_2(tmp_path, proofs, verdict):
    if proofs:
        store_proofs([proof(*p) for p in proofs], tmp_path)
    found = RULES[2][1](Evidence(tmp_path))
    assert found.verdict == verdict and len(found.corpora) == len(proofs)
