"""Claim 2 is decided by the stored proofs of the released tables, claim 22 by the tables themselves."""

import pytest

from chameleon_study.claims.contrasts import REGISTERED, StoredRuns
from chameleon_study.claims.ledger import RULES
from chameleon_study.claims.paper import paper, published
from chameleon_study.claims.rules_stored import RELEASED
from chameleon_study.config import load_experiment
from chameleon_study.records import Record
from chameleon_study.released.proofs.store import Proof, store_proofs
from chameleon_study.released.protocol import protocol_of
from chameleon_study.released.tables import protocol_label


def proof(corpus, free, lora):
    return Proof(
        proof="model_free",
        title="",
        audit=(),
        where="",
        shows="x.",
        backbone="smollm2",
        corpus=corpus,
        profile="paper",
        settings={"tokens": {"max_length": 256}},
        numbers={"model_free_loss": free, "LoRA_loss": lora, "hyper_network_loss": 0.4},
    )


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
    found = RULES[2][1](StoredRuns(tmp_path))
    assert found.verdict == verdict and len(found.corpora) == len(proofs)


NEAR = (-0.01, 0.0, 0.01)  # what the seeds of a made-up table add to the published loss


def released(table, regime, seed, loss, **more):
    """A record as table<n>-released stores it, of the paper's own model and data unless told otherwise."""
    length = RELEASED[table][0]
    settings = load_experiment(REGISTERED.parent / f"table{table}-released.yaml", "paper").model_dump()
    settings["protocol"]["switches"] |= more.pop("switches", {})
    protocol = {"preset": settings["protocol"]["preset"], "switches": settings["protocol"]["switches"]}
    settings |= {"tokens": {"max_length": more.pop("length", length)}, "protocol": protocol}
    corpus = more.pop("corpus", next(t["corpus"] for t in paper()["tables"] if t["table"] == table))
    made = protocol_of(load_experiment(REGISTERED.parent / f"table{table}-released.yaml", "paper").protocol)
    data = {"protocol": made.model_dump() | protocol["switches"]}
    backbone = more.pop("backbone", "gpt2")
    assert not more
    return Record(
        name=f"{regime}--{backbone}--{corpus}--{seed}",
        experiment=f"table{table}-released",
        regime=regime,
        backbone=backbone,
        corpus=corpus,
        seed=seed,
        profile="paper",
        settings=settings,
        learning_rate=1e-4,
        metrics={"reported_nll": loss},
        trainable_parameters=1,
        stored_bytes=1,
        seconds={},
        peak_memory_bytes={},
        data=data,
        provenance={"command": "made up"},
    )


def claim_22(folder, table=1, off=None, seeds=NEAR, regimes=("R1", "R4"), **more):
    """The finding for a table whose losses are the published ones plus `off[regime]`, over seeds."""
    lines = [
        released(table, r, k, published(table, r, "validation_loss") + (off or {}).get(r, 0.0) + add, **more)
        for r in regimes
        for k, add in enumerate(seeds)
    ]
    path = folder / f"table{table}-released.jsonl"
    path.write_text("".join(r.model_dump_json() + "\n" for r in lines))
    return RULES[22][1](StoredRuns(folder))


@pytest.mark.parametrize("table", [1, 2])
@pytest.mark.parametrize(
    ("how", "verdict"),
    [
        ({}, "confirmed"),
        ({"off": {"R4": 0.019}}, "confirmed"),  # sd 0.01: just inside two of them
        ({"off": {"R4": 0.021}}, "refuted"),  # just outside
        ({"off": {"R1": -0.1}}, "refuted"),
        ({"seeds": (0.0,)}, "not decidable here"),  # one seed has no spread
        ({"regimes": ("R1",)}, "not decidable here"),
        ({"backbone": "smollm2"}, "not decidable here"),
        ({"backbone": "smollm2", "off": {"R1": 5.0}}, "not decidable here"),
        ({"length": 100}, "not decidable here"),
        ({"switches": {"kmeans": "plusplus"}}, "not decidable here"),
    ],
)
def test_claim_22(tmp_path, table, how, verdict):
    found = claim_22(tmp_path, table, **how)
    assert found.verdict == verdict, found
    assert str(published(table, "R4", "validation_loss")) in found.number  # printed whoever measured it


def test_claim_22_needs_the_papers_own_data(tmp_path):
    assert claim_22(tmp_path, corpus="wikitext-2-lite-released").verdict == "not decidable here"


def test_claim_22_on_both_tables_and_beside_another_backbone(tmp_path):
    claim_22(tmp_path, 2, off={"R1": 0.1})
    assert claim_22(tmp_path).verdict == "refuted"  # one table of the two is enough
    claim_22(tmp_path, 2)
    other = released(1, "R1", 0, 3.0, backbone="smollm2").model_dump_json()
    (tmp_path / "table1-released-smollm2.jsonl").write_text(other + "\n")
    found = claim_22(tmp_path)
    assert found.verdict == "confirmed" and sorted(found.corpora.values())[-1] == "not decidable here"


def test_without_tables_claim_22_is_not_tested(tmp_path):
    assert RULES[22][1](StoredRuns(tmp_path)).verdict == "not tested"


@pytest.mark.parametrize("table", [1, 2])
def test_the_released_procedure_is_that_of_the_experiments(table):
    record = released(table, "R1", 0, 1.0)
    assert (record.settings["tokens"]["max_length"], protocol_label(record)) == RELEASED[table]
    own = load_experiment(REGISTERED.parent / f"table{table}-released.yaml", "paper")
    assert own.tokens.max_length == RELEASED[table][0]
    assert (own.backbone, *own.corpora) == (record.backbone, record.corpus)
