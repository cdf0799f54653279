"""Verdicts come from records: a made-up results folder with known differences gives known verdicts."""

import json

import pytest

from chameleon_study.claims.contrasts import REGISTERED, StoredRuns, registered
from chameleon_study.claims.ledger import RULES, ledger, ledger_frame, predictions, scoreboard, write_verdicts
from chameleon_study.claims.paper import claims
from chameleon_study.claims.rules import VERDICTS, worst
from chameleon_study.config import load_experiment
from chameleon_study.regimes import REGIMES


@pytest.fixture(scope="module")
def found(made_up_results):
    return ledger(made_up_results, draws=500)


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
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
    ],
)
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
    assert all(set(row) == {"claim", "status", "number", "deciding"} for row in rows)
    assert all(row["deciding"].split(": ", 1)[-1] in row["number"] for row in rows)


def test_a_claim_holds_only_if_it_holds_everywhere():
    assert worst(["confirmed", "confirmed"]) == "confirmed"
    assert worst(["confirmed", "equivalent", "refuted"]) == "refuted"
    assert worst(["confirmed", "not decidable here"]) == "not decidable here"
    assert worst([]) == worst(["confirmed", "not tested"]) == "not tested"


def test_a_family_is_adjusted_together(made_up_results):
    evidence = StoredRuns(made_up_results, draws=500)
    family = evidence.family("docstrings")
    assert set(family) <= set(registered()["contrasts"])
    assert all(j.adjusted_p >= j.contrast.p for j in family.values())
    assert evidence.family_frame()["n seeds"].eq(5).all()


def test_predictions_are_judged(made_up_results):
    frame = predictions(StoredRuns(made_up_results, draws=500)).set_index(["prediction", "corpus"])
    assert bool(frame.loc[("b", "docstrings"), "as expected"])  # R3 has 98 % of the advantage
    assert bool(frame.loc[("c", "docstrings"), "as expected"])


def test_registered_contrasts_name_what_is_run():
    run = {
        n for path in REGISTERED.parent.glob("honest-*.yaml") for n in load_experiment(path, "paper").regimes
    }
    for contrast in registered()["contrasts"].values():
        assert {contrast["first"], contrast["second"]} <= run
        leaks = {n for n in (contrast["first"], contrast["second"]) if REGIMES[n].leak}
        assert bool(leaks) == contrast.get("leak", False)
    for prediction in registered()["predictions"].values():
        assert prediction.get("contrast", "R4<R1") in registered()["contrasts"]


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        ({"R1": 3.50, "R4": 3.45}, "confirmed"),
        ({"R1": 3.50, "R4": 3.55}, "refuted"),
        (
            {"R1": 3.50},
            "not decidable here",
        ),  # the second model has no such contrast: one alone decides nothing
    ],
)
def test_claim_13_needs_two_backbones(tmp_path, study_of, other, verdict):
    study_of(tmp_path, "docstrings", {"R1": 3.50, "R4": 3.45})
    study_of(tmp_path, "docstrings", other, backbone="gpt2")
    found = ledger(tmp_path, draws=500)[13]
    assert found.verdict == verdict and found.corpora["smollm2"] == "confirmed"
    assert (
        ledger(tmp_path, "gpt2", draws=500)[13].verdict == verdict
    )  # whichever backbone the ledger is asked for


def test_other_experiments_decide_nothing_alone_and_are_never_mixed_in(tmp_path, study_of):
    study_of(tmp_path, "docstrings", {"R1": 3.50, "R2": 3.50, "R4": 3.60})
    for kind in ("jsonl", "parquet"):
        (tmp_path / f"honest-docstrings-smollm2.{kind}").rename(tmp_path / f"four-regimes.{kind}")
    assert StoredRuns(tmp_path).corpora == []
    assert {f.verdict for f in ledger(tmp_path, draws=500).values()} == {"not tested"}
    study_of(tmp_path, "docstrings", {"R1": 3.50, "R2": 3.50, "R4": 3.45})
    evidence = StoredRuns(tmp_path, draws=500)
    assert len(evidence.records["docstrings", "R4"]) == 5
    assert ledger(tmp_path, draws=500)[1].verdict == "confirmed"
