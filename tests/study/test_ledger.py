"""Verdicts come from records: a made-up results folder with known differences gives known verdicts."""

import json

import numpy as np
import pandas as pd
import pytest

from chameleon_lite.config import load_experiment
from chameleon_lite.study.evidence import REGISTERED, Evidence, registered
from chameleon_lite.study.ledger import RULES, ledger, ledger_frame, predictions, write_verdicts
from chameleon_lite.study.paper import claims
from chameleon_lite.study.records import Record
from chameleon_lite.study.regimes import REGIMES
from chameleon_lite.study.rules import VERDICTS, worst
from chameleon_lite.study.scoreboard import scoreboard

LOSS = {name: 3.5 for name in REGIMES} | {
    "R0": 3.7, "R1": 3.5, "R2": 3.40, "R3": 3.451, "R4": 3.45, "R5": 3.45, "R6": 3.50, "R8": 3.49, "R9": 3.35,
    "R4-g2": 3.49, "R4-g4": 3.48, "R4-g8": 3.47, "R4-g16": 3.46, "R11": 3.42, "R12-oracle": 3.30, "R4-stream": 3.46,
}  # fmt: skip
DOCUMENTS, SEEDS = 60, 5


def write_study(folder, corpus="mixed", regimes=LOSS, backbone="smollm2"):
    """Records and losses of one corpus in which regime r has LOSS[r] nats a token, give or take a little."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(20, 60, DOCUMENTS)
    hard = generator.normal(0, 0.3, DOCUMENTS)
    records, frames = [], []
    for regime, loss in regimes.items():
        for seed in range(SEEDS):
            name = f"{regime}--{backbone}--{corpus}--00000000--seed{seed}"
            noise = generator.normal(0, 0.001) + generator.normal(0, 0.004, DOCUMENTS)
            for reading, more in (("test", 0.0), ("foreign-50", 0.02 if regime == "R4" else 0.2)):
                frames.append(pd.DataFrame({
                    "split": reading, "document": [f"d{i:03d}" for i in range(DOCUMENTS)], "group": "g",
                    "tokens": tokens, "nll": (loss + more + hard + noise) * tokens, "run": name}))  # fmt: skip
            metrics = {"test_nll": loss, "seen_nll": loss - 0.05, "validation_nll": loss}
            curve = [{"epoch": e, "train_nll": loss, "validation_nll": loss + 0.5 / (1 + e)} for e in (0.0, 1.0, 2.0)]
            clusters = {"adjusted_mutual_information": 0.4, "length_variance_explained": 0.1,
                        "sizes": {"min": 1, "median": 20.0, "max": 90}}  # fmt: skip
            records.append(Record(
                name=name, experiment=f"honest-{corpus}", regime=regime, backbone=backbone, corpus=corpus, seed=seed,
                profile="paper", settings={"train": {"epochs": 2}}, learning_rate=1e-3, metrics=metrics, curve=curve,
                trainable_parameters={"R1": 200_000}.get(regime, 6_600_000), stored_bytes=4, seconds={},
                peak_memory_bytes={}, data={"clusters": clusters}, provenance={"command": "made up"}))  # fmt: skip
    lines = "".join(r.model_dump_json() + "\n" for r in records)
    (folder / f"honest-{corpus}-{backbone}.jsonl").write_text(lines)
    pd.concat(frames).to_parquet(folder / f"honest-{corpus}-{backbone}.parquet", index=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_study(folder)
    write_study(folder, "docstrings", {k: v for k, v in LOSS.items() if k != "R12-oracle"})
    return folder


@pytest.fixture(scope="module")
def found(results):
    return ledger(results, draws=500)


@pytest.mark.parametrize(("claim", "expected"), [
    (1, "refuted"),  # below R1, yet not below R2
    (2, "not tested"),
    (3, "equivalent"),  # R3, told nothing, does as well
    (4, "equivalent"),  # clusters or random batches: the same
    (5, "confirmed"),
    (6, "confirmed"),
    (7, "confirmed"),
    (8, "equivalent"),
    (9, "equivalent"),
    (10, "refuted"),
    (12, "refuted"),
    (13, "not decidable here"),  # one backbone decides nothing about any
    (14, "refuted"),
    (15, "confirmed"),
    (16, "not tested"),
    (18, "refuted"),
    (19, "refuted"),  # reading whole rows pays
    (20, "not tested"),  # no instructions among these corpora
])  # fmt: skip
def test_verdict(found, claim, expected):
    assert found[claim].verdict == expected, found[claim]


def test_every_claim_has_a_rule_and_a_verdict_of_the_five(found):
    assert set(RULES) == set(found) == {c["claim"] for c in claims()} == set(range(1, 23))
    assert {f.verdict for f in found.values()} <= set(VERDICTS)
    frame = ledger_frame(found)
    assert len(frame) == 22 and not frame.isna().any().any()


def test_without_records_nothing_is_tested(tmp_path):
    assert {f.verdict for f in ledger(tmp_path).values()} == {"not tested"}


def test_the_scoreboard_reads_what_the_ledger_writes(found, tmp_path):
    write_verdicts(found, tmp_path / "verdicts.json")
    board = {row["claim"]: row["status"] for row in scoreboard(tmp_path)}
    assert board[10] == "refuted" and board[16] == "not measured yet"
    rows = json.loads((tmp_path / "verdicts.json").read_text())
    assert all(set(row) == {"claim", "status", "number"} for row in rows)


def test_a_claim_holds_only_if_it_holds_everywhere():
    assert worst(["confirmed", "confirmed"]) == "confirmed"
    assert worst(["confirmed", "equivalent", "refuted"]) == "refuted"
    assert worst(["confirmed", "not decidable here"]) == "not decidable here"
    assert worst([]) == worst(["confirmed", "not tested"]) == "not tested"


def test_a_family_is_adjusted_together(results):
    evidence = Evidence(results, draws=500)
    family = evidence.family("docstrings")
    assert set(family) <= set(registered()["contrasts"])
    assert all(j.adjusted_p >= j.found.p for j in family.values())
    assert evidence.family_frame()["n seeds"].eq(SEEDS).all()


def test_predictions_are_judged(results):
    frame = predictions(Evidence(results, draws=500)).set_index(["prediction", "corpus"])
    assert bool(frame.loc[("b", "docstrings"), "as expected"])  # R3 has 98 % of the advantage
    assert bool(frame.loc[("c", "docstrings"), "as expected"])


def test_registered_contrasts_name_what_is_run():
    run = {n for path in REGISTERED.parent.glob("honest-*.yaml") for n in load_experiment(path, "paper").regimes}
    for contrast in registered()["contrasts"].values():
        assert {contrast["first"], contrast["second"]} <= run
        leaks = {n for n in (contrast["first"], contrast["second"]) if REGIMES[n].leak}
        assert bool(leaks) == contrast.get("leak", False)
    for prediction in registered()["predictions"].values():
        assert prediction.get("contrast", "R4<R1") in registered()["contrasts"]
