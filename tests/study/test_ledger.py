"""Verdicts come from records: a made-up results folder with known differences gives known verdicts."""

import json

import pytest

from chameleon_study.claims.contrasts import StoredRuns, registered
from chameleon_study.claims.ledger import (
    decided,
    ledger,
    ledger_frame,
    predictions,
    scoreboard,
    write_verdicts,
)
from chameleon_study.claims.paper import paper, parts, rulebook
from chameleon_study.claims.rules import headline, worst
from chameleon_study.claims.statistics import VERDICTS
from chameleon_study.stored import storing


@pytest.fixture(scope="module")
def found(made_up_results):
    return ledger(made_up_results, draws=500)


@pytest.fixture(scope="module")
def evidence(made_up_results):
    return StoredRuns(made_up_results, draws=500)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("1c", "supported on both corpora"),  # below R19-R1
        ("1e", "contradicted on both corpora"),  # yet not below R19-R2
        ("2c", "not tested"),
        # of 500 draws the smallest p, adjusted in its family, is above 0.05 where the bootstrap decides
        ("4b", "supported on 1 of 2 corpora, 1 not decidable here"),
        ("5b", "supported on both corpora"),
        ("6a", "supported on both corpora"),
        ("7a", "contradicted on both corpora"),  # 0.02 more, and another cluster's vector is noticed
        ("8a", "equivalent on both corpora"),
        ("10a", "contradicted on both corpora"),
        ("13b", "not decidable here"),  # one backbone decides nothing about any
        ("14a", "contradicted"),
        ("15a", "contradicted on both corpora"),  # R4-stream is made 0.01 worse
        ("16a", "not tested"),
        ("18a", "supported on both corpora"),
        ("18b", "contradicted on both corpora"),
        ("20b", "not tested"),  # no instructions among these corpora
    ],
)
def test_headline(found, part, expected):
    assert found[part]["headline"] == expected, found[part]


def test_every_claim_has_a_rule_and_every_verdict_is_of_the_five(found):
    assert {p["claim"] for p in parts()} == set(rulebook()) == {c["claim"] for c in paper()["claims"]}
    verdicts = {cell["verdict"] for row in found.values() for cell in row["cells"].values()}
    assert verdicts <= set(VERDICTS)
    frame = ledger_frame(found)
    assert (
        set(frame["part"]) == set(found) and not frame[["says", "asks", "supported if"]].isna().values.any()
    )


def test_beside_is_printed_and_decides_nothing(found):
    row = found["19a"]
    assert row["headline"] == "not tested" and "R9<R4 -0.1" in row["beside"]["docstrings"]


def test_an_equivalent_cell_says_what_could_have_been_detected(found):
    cell = found["8a"]["cells"]["docstrings"]
    assert cell["detectable"] >= 0.01


def test_without_records_nothing_is_tested(tmp_path):
    assert {row["headline"] for row in ledger(tmp_path).values()} == {"not tested"}


def test_the_scoreboard_reads_what_the_ledger_writes(found, tmp_path):
    write_verdicts(found, tmp_path)
    board = {row["part"]: row["status"] for row in scoreboard(tmp_path)}
    assert board == {part: row["headline"] for part, row in found.items()}
    assert json.loads((tmp_path / "verdicts.json").read_text())["parts"][0]["part"] == "1a"


def test_contrasts_that_must_all_hold():
    assert worst(["supported", "supported"]) == "supported"
    assert worst(["supported", "equivalent", "contradicted"]) == "contradicted"
    assert worst(["equivalent", "not decidable here"]) == "not decidable here"
    assert worst(["supported", "equivalent"]) == "equivalent" and worst([]) == "not tested"


def test_a_headline_counts_and_never_chooses():
    e, s, u = "equivalent", "supported", "not decidable here"
    assert headline([e, u, e, u, e], "corpora") == "equivalent on 3 of 5 corpora, 2 not decidable here"
    assert headline([s, s, s], "tables") == "supported on all 3 tables"
    assert headline([s, s], "tables") == "supported on both tables"
    assert headline([s], "tables") == "supported" and headline([], "tables") == "not tested"


def test_families_are_adjusted_together_and_apart(evidence):
    family, plans = evidence.family("docstrings"), registered()["contrasts"]
    kinds = {name: plans[name].get("family", "claims") for name in family}
    assert {"claims", "beside", "own"} == set(kinds.values())
    for name, member in family.items():
        p = member.contrast.p
        assert member.adjusted_p == p if kinds[name] == "own" else member.adjusted_p >= p
    assert evidence.family_frame()["n seeds"].eq(5).all()


def test_other_margins_are_tabled(evidence):
    frame = evidence.sensitivity_frame().set_index(["corpus", "contrast"])
    row = frame.loc[("docstrings", "R19-R1<R1")]
    assert {"0.005", "0.01", "0.02", "10 % of R2"} <= set(frame) and row["that is"] == pytest.approx(
        0.03, abs=2e-3
    )
    assert row["0.01"] == row["10 % of R2"] == "equivalent"
    worse = frame.loc[("docstrings", "R4-stream<R4")]  # 0.01 above
    assert (worse["0.005"], worse["0.02"]) == ("contradicted", "equivalent")


def test_predictions_are_judged(evidence):
    frame = predictions(evidence).set_index(["prediction", "corpus"])
    assert bool(frame.loc[("b", "docstrings"), "as expected"])  # a constant input has 98 % of the advantage
    assert not frame.loc[("c", "docstrings"), "as expected"]  # whole rows were made to pay


def test_other_experiments_decide_nothing_alone_and_are_never_mixed_in(tmp_path, study_of):
    study_of(tmp_path, "docstrings", {"R19-R1": 3.50, "R19-R2": 3.50, "R4": 3.60})
    for kind in ("jsonl", "parquet"):
        (tmp_path / f"honest-docstrings-smollm2.{kind}").rename(tmp_path / f"four-regimes.{kind}")
    assert StoredRuns(tmp_path).corpora == []
    part = next(p for p in parts() if p["part"] == "1c")
    assert decided(StoredRuns(tmp_path, draws=500), part)["headline"] == "not tested"
    study_of(tmp_path, "docstrings", {"R19-R1": 3.50, "R19-R2": 3.50, "R4": 3.45})
    evidence = StoredRuns(tmp_path, draws=500)
    assert len(evidence.records["docstrings", "R4"]) == 5
    assert decided(evidence, part)["headline"] == "supported"


def test_stored_verdicts_are_shown_while_they_are_up_to_date(command, tmp_path, study_of, monkeypatch):
    folder = tmp_path / "results"
    folder.mkdir()
    study_of(folder, "docstrings", {"R0": 3.7, "R19-R1": 3.5, "R4": 3.4})
    made = command("claims", "--results", folder, "--write")
    with monkeypatch.context() as patch:
        patch.setattr("chameleon_study.claims.ledger.ledger", None)
        assert command("claims", "--results", folder) == made
        rows = json.loads(command("claims", "--results", folder, "--json")[1])
        assert "18a" in {row["part"] for row in rows}
        assert "of the rows" in command("claims", "--results", folder, "--wide")[1]
        assert max(map(len, made[1].splitlines())) <= 80
    proof = '{"proof": "x", "title": "", "audit": [1], "where": "", "shows": "", "numbers": {}}'
    with storing(folder / "proofs.jsonl") as part:
        part.write_text(proof + "\n")
    monkeypatch.setattr("chameleon_study.claims.ledger.ledger", lambda *a, **k: {})
    assert command("claims", "--results", folder)[1] != made[1]
