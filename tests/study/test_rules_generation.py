"""Claim 16's rule on made-up scores: every verdict, and which of the two contrasts decides."""

import numpy as np
import pandas as pd
import pytest

from chameleon_study.claims.continuations import MARGIN, Generations, coherent_outputs, generation_frame
from chameleon_study.claims.contrasts import StoredRuns
from chameleon_study.claims.ledger import ledger, write_verdicts
from chameleon_study.records import SCORES, Record

DOCUMENTS, SEEDS = 80, 5
MADE_UP = {"command": "made up", "device_name": "none", "commit": "none", "source": "none"}


def write_coherence(folder, scores, corpus="alpaca", noise=0.01, backbone="smollm2"):
    """Records and scores in which regime r has scores[r] of ROUGE-L, give or take `noise` a document."""
    generator = np.random.default_rng(0)
    hard, records, frames = generator.normal(0, 0.05, DOCUMENTS), [], []
    for regime, score in scores.items():
        for seed in range(SEEDS):
            name = f"{regime}--{backbone}--{corpus}--00000000--seed{seed}"
            own = score + hard + generator.normal(0, noise, DOCUMENTS)
            columns = {c: own if c == "rouge_l" else 0.5 + 0.1 * (regime == "R4") for c in SCORES}
            frame = pd.DataFrame(
                {
                    "split": "test",
                    "document": [f"d{i:03d}" for i in range(DOCUMENTS)],
                    "group": "g",
                    "tokens": 50,
                    "nll": 100.0,
                    **columns,
                    "batch": 0.0,
                    "run": name,
                }
            )
            unwritten = frame.iloc[:5].assign(
                document=lambda f: "x" + f["document"], **dict.fromkeys(SCORES, np.nan)
            )
            frames += [frame, unwritten, unwritten.assign(split="foreign-50")]
            records.append(
                Record(
                    name=name,
                    experiment=f"coherence-{corpus}",
                    regime=regime,
                    backbone=backbone,
                    corpus=corpus,
                    seed=seed,
                    profile="paper",
                    settings={},
                    learning_rate=1e-3,
                    metrics={"generated_rouge_l": score},
                    trainable_parameters=1,
                    stored_bytes=4,
                    seconds={},
                    peak_memory_bytes={},
                    data={},
                    provenance=MADE_UP,
                )
            )
    (folder / f"coherence-{corpus}.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in records))
    pd.concat(frames).to_parquet(folder / f"coherence-{corpus}.parquet", index=False)


@pytest.mark.parametrize(
    ("scores", "noise", "verdict"),
    [
        ({"R1": 0.20, "R3": 0.21, "R4": 0.25}, 0.01, "confirmed"),
        ({"R1": 0.20, "R3": 0.25, "R4": 0.25}, 0.01, "equivalent"),  # above R1, and told nothing does as well
        ({"R1": 0.25, "R3": 0.20, "R4": 0.20}, 0.01, "refuted"),
        ({"R1": 0.245, "R3": 0.245, "R4": 0.25}, 0.01, "equivalent"),  # above, by less than matters
        ({"R1": 0.235, "R3": 0.235, "R4": 0.25}, 0.30, "not decidable here"),
        (
            {"R0": 0.20, "R1": 0.20, "R4": 0.25},
            0.01,
            "not tested",
        ),  # without R3 nothing says it is the context
    ],
)
def test_verdict(tmp_path, scores, noise, verdict):
    write_coherence(tmp_path, scores, noise=noise)
    found = ledger(tmp_path, draws=500)[16]
    assert found.verdict == verdict, found
    if verdict != "not tested":
        assert found.corpora == {"alpaca": verdict} and found.deciding.split(": ", 1)[1] in found.number
        named = [f"{name} R4 − R{n}" for name in ("ROUGE-L", "distinct-2", "repeated") for n in (1, 3)]
        assert all(name in found.number for name in named)


def test_the_sign_says_that_r4_is_higher(tmp_path):
    write_coherence(tmp_path, {"R1": 0.20, "R3": 0.18, "R4": 0.25})
    family = Generations(tmp_path, draws=500).family("alpaca")
    assert family["R4 − R1"].contrast.difference == pytest.approx(0.05, abs=5e-3)
    assert family["R4 − R3"].contrast.low > MARGIN and family["R4 − R3"].contrast.documents == DOCUMENTS
    assert all(j.adjusted_p >= j.contrast.p for j in family.values())


def test_a_batchs_variety_is_drawn_over_seeds_alone(tmp_path):
    write_coherence(tmp_path, {"R1": 0.20, "R3": 0.18, "R4": 0.25})
    found = Generations(tmp_path, draws=500).gain("alpaca", "R4", "R1", "batch_distinct_2")
    assert found.documents == 1 and found.n == SEEDS and found.difference == pytest.approx(0.1)


def test_other_documents_are_never_paired(tmp_path):
    write_coherence(tmp_path, {"R1": 0.20, "R3": 0.20, "R4": 0.25})
    path = tmp_path / "coherence-alpaca.parquet"
    frame = pd.read_parquet(path)
    others = frame["run"].str.startswith("R3")
    frame.loc[others, "document"] = "of another split, " + frame.loc[others, "document"]
    frame.to_parquet(path, index=False)
    generations = Generations(tmp_path, draws=500)
    assert (
        generations.gain("alpaca", "R4", "R3") is None and generations.gain("alpaca", "R4", "R1") is not None
    )
    assert coherent_outputs(StoredRuns(tmp_path, draws=500)).verdict == "not tested"


def test_every_corpus_must_agree(tmp_path):
    write_coherence(tmp_path, {"R1": 0.20, "R3": 0.20, "R4": 0.25})
    write_coherence(tmp_path, {"R1": 0.25, "R3": 0.20, "R4": 0.20}, "docstrings-instructions")
    found = coherent_outputs(StoredRuns(tmp_path, draws=500))
    assert found.verdict == "refuted" and found.deciding.startswith("docstrings-instructions: ")
    assert found.corpora == {"alpaca": "confirmed", "docstrings-instructions": "refuted"}


def test_without_records_or_with_another_models_nothing_is_tested(tmp_path):
    assert ledger(tmp_path, draws=500)[16].verdict == "not tested"
    assert generation_frame(Generations(tmp_path)).empty
    write_coherence(tmp_path, {"R1": 0.20, "R3": 0.20, "R4": 0.25}, backbone="gpt2")
    assert ledger(tmp_path, draws=500)[16].verdict == "not tested"


def test_the_table_has_n_and_interval_and_the_verdicts_of_the_family(tmp_path):
    write_coherence(tmp_path, {"R0": 0.22, "R1": 0.20, "R3": 0.20, "R4": 0.25, "R7": 0.25})
    frame = generation_frame(Generations(tmp_path, draws=500)).set_index("regime")
    assert (frame["n seeds"] == SEEDS).all() and (frame["documents"] == DOCUMENTS).all()
    assert frame["low"].notna().sum() == 4 and frame.loc["R4", "verdict"] == frame.loc["R7", "verdict"] == "–"
    assert frame.loc["R1", "verdict"] == frame.loc["R3", "verdict"] == "confirmed"
    assert frame["reference, nats a token"].tolist() == pytest.approx([2.0] * 5)


def test_no_other_claim_reads_these_records(tmp_path):
    write_coherence(tmp_path, {"R1": 0.20, "R3": 0.20, "R4": 0.25})
    found = ledger(tmp_path, draws=500)
    assert {n for n, f in found.items() if f.verdict != "not tested"} == {16}
    write_verdicts(found, tmp_path / "verdicts.json")
