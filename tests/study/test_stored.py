"""What `results/` holds is admissible, complete in its circumstances, and says what the pages say of it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from chameleon_study.claims.contrasts import StoredRuns
from chameleon_study.claims.ledger import ledger
from chameleon_study.claims.rules import UNTESTED
from chameleon_study.records import NOT_RECORDS, REFUSED_BACKBONES, load_records
from chameleon_study.regimes import REGIMES
from chameleon_study.tables import losses_of

RESULTS = Path(__file__).parents[2] / "results"
STORED = sorted(p for p in RESULTS.glob("*.jsonl") if p.stem not in NOT_RECORDS)


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
def test_every_record_may_be_kept_and_names_its_circumstances(path):
    records = load_records(path)
    assert len({r.name for r in records}) == len(records)
    for r in records:
        assert r.profile != "smoke" and not r.backbone.startswith(REFUSED_BACKBONES)
        assert r.provenance["commit"] not in ("", "unknown") and r.provenance["device_name"]
        assert r.provenance["command"].startswith("chameleon-lite run experiments/")
        assert r.data["hash"] and r.data["backbone_hash"] and r.seconds and r.peak_memory_bytes
        assert not [word for word in ("/tmp", "/root", "/home") if word in r.model_dump_json()]


def test_a_table_never_mixes_arithmetic():
    for path in STORED:
        found = {(r.data["feature_dtype"], r.data["matmul_dtype"]) for r in load_records(path)}
        assert len(found) == 1, path.name


def test_rank_four_lora_is_below_the_frozen_model_on_docstrings():
    found = StoredRuns(RESULTS, experiments="four-regimes").contrast("docstrings", "R1", "R0")
    assert found.n == 5 and found.documents > 300
    assert found.high < 0  # the whole 95 % interval, over seeds and documents


def test_per_document_losses_add_up_to_the_recorded_mean():
    records = load_records(RESULTS / "four-regimes.jsonl")
    losses = losses_of(records, RESULTS)
    for record in records:
        nll, tokens = losses[record.name]
        assert nll.sum() / tokens.sum() == pytest.approx(record.metrics["test_nll"], abs=1e-5)


def facts(text: str) -> list[str]:
    """The regimes and numbers of a sentence, numbers to 4 significant digits, and the corpus it begins with."""
    found = re.findall(r"^[\w-]+(?=:)|\bR\d+[\w-]*|[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?", text)
    return [f"{float(x.replace(',', '')):.4g}" if x[0] in "+-0123456789" else x for x in found]


def test_facts_are_read_from_a_sentence_whatever_its_words():
    assert facts("a-b: R4<R7b -0.012344 in 3 of 1,204") == ["a-b", "R4", "R7b", "-0.01234", "3", "1204"]
    assert facts("p 1.23412e-7 here") == facts("there 1.2341e-07") != facts("1.236e-07")


def test_the_stored_verdicts_are_what_the_rules_make_of_the_stored_records():
    """Verdict, deciding contrast and numbers: to word a sentence anew changes no result."""
    stored = json.loads((RESULTS / "verdicts.json").read_text(encoding="utf-8"))
    findings = {n: f for n, f in ledger(RESULTS).items() if f.verdict != UNTESTED}
    assert {row["claim"]: row["status"] for row in stored} == {n: f.verdict for n, f in findings.items()}
    for row in stored:
        finding = findings[row["claim"]]
        assert facts(row["number"]) == facts(finding.number), row["claim"]
        assert facts(row["deciding"]) == facts(finding.deciding or finding.number), row["claim"]
        assert facts(row["deciding"])


def test_the_honest_study_is_whole():
    files = [p for p in STORED if p.stem.startswith("honest-")]
    assert files
    for path in files:
        records = load_records(path)
        by_regime = {
            name: {r.seed for r in records if r.regime == name} for name in {r.regime for r in records}
        }
        uncached = {
            r.regime for r in records if REGIMES[r.regime].procedure
        }  # each step runs the whole backbone
        assert all(len(seeds) >= (3 if name in uncached else 5) for name, seeds in by_regime.items()), (
            path.name
        )
        assert len({r.provenance["device_name"] for r in records}) == 1, path.name
        for r in records:  # a trained regime's rate was swept, and the reported seeds are not the sweep's
            if REGIMES[r.regime].trained:
                swept = r.learning_rate_trials
                assert f"{r.learning_rate:g}" in swept and str(r.seed) not in swept[f"{r.learning_rate:g}"]


AGAIN = [
    ("honest-alpaca", "coherence-alpaca"),
    ("honest-docstrings", "four-regimes"),
    ("honest-mixed", "foreign-mixed"),
]
# Single rows in random groups at the highest rate: other rounding ends one seed of five 0.006 nats away, which is more
# than seeds differ by. Its mean over seeds is held to a tenth of the margin of equivalence.
UNSTEADY = {"R5-g1": 0.001}


@pytest.mark.parametrize("first, again", AGAIN)
def test_runs_made_again_from_their_settings_agree_within_the_spread_over_seeds(first, again):
    """The same heads, rates and seeds, trained in other processes, by other source, on another GPU of the same kind."""
    before, after = (
        {(r.regime, r.seed): r for r in load_records(RESULTS / f"{name}.jsonl")} for name in (first, again)
    )
    shared = [key for key in after if key in before and before[key].learning_rate == after[key].learning_rate]
    trained = {regime for regime, _ in shared if after[regime, 0].learning_rate is not None}
    assert len(trained) >= 3 and all(
        before[k].provenance["source"] != after[k].provenance["source"] for k in shared
    )
    for regime in trained:
        seeds = [seed for name, seed in shared if name == regime]
        spread = np.std([before[regime, s].metrics["test_nll"] for s in seeds], ddof=1)
        gaps = [after[regime, s].metrics["test_nll"] - before[regime, s].metrics["test_nll"] for s in seeds]
        assert len(seeds) == 5 and abs(np.mean(gaps)) < UNSTEADY.get(regime, spread)
        assert regime in UNSTEADY or np.abs(gaps).max() < spread
