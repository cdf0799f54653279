"""Claim 16's rule on made-up scores: every verdict of both of its parts."""

import numpy as np
import pandas as pd
import pytest

from chameleon_study.claims.continuations import Generations, coherence, generation_frame
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


def cells(folder, column="rouge_l"):
    return {c: cell.verdict for c, cell in coherence(StoredRuns(folder, draws=500), column).items()}


@pytest.mark.parametrize("column", ["rouge_l", "batch_rouge_l"])
@pytest.mark.parametrize(
    ("scores", "noise", "verdict"),
    [
        ({"R6": 0.20, "R4": 0.25}, 0.01, "supported"),
        ({"R6": 0.25, "R4": 0.25}, 0.01, "equivalent"),
        ({"R6": 0.25, "R4": 0.20}, 0.01, "contradicted"),
        ({"R6": 0.245, "R4": 0.25}, 0.01, "equivalent"),  # above, by less than matters
        ({"R6": 0.235, "R4": 0.25}, 0.30, "not decidable here"),
    ],
)
def test_every_word(tmp_path, scores, noise, verdict, column):
    write_coherence(tmp_path, {"R1": 0.2, **scores}, noise=noise)
    path = tmp_path / "coherence-alpaca.parquet"
    frame = pd.read_parquet(path)
    spread = {r: np.linspace(-noise, noise, SEEDS) / 4 * (r == "R4") for r in ("R1", "R4", "R6")}
    seed = frame["run"].str[-1].astype(int)
    regime = frame["run"].str.split("--").str[0]
    frame["batch_rouge_l"] = [{"R1": 0.2, **scores}[r] + spread[r][s] for r, s in zip(regime, seed)]
    frame.to_parquet(path, index=False)
    assert cells(tmp_path, column) == {"alpaca": verdict}


def test_without_the_rows_own_condition_or_the_column_nothing_is_tested(tmp_path):
    write_coherence(tmp_path, {"R0": 0.20, "R1": 0.20, "R4": 0.25})
    assert cells(tmp_path) == {}
    write_coherence(tmp_path, {"R6": 0.20, "R4": 0.25})
    path = tmp_path / "coherence-alpaca.parquet"
    pd.read_parquet(path).drop(columns="batch_rouge_l").to_parquet(path, index=False)
    assert cells(tmp_path, "batch_rouge_l") == {} and cells(tmp_path) == {"alpaca": "supported"}
    assert "ROUGE-L within a batch" not in generation_frame(Generations(tmp_path, draws=50))


def test_a_text_that_is_alone_counts_for_no_batch(tmp_path):
    write_coherence(tmp_path, {"R6": 0.2, "R4": 0.25})
    path = tmp_path / "coherence-alpaca.parquet"
    frame = pd.read_parquet(path)
    frame["batch_rouge_l"] = np.where(frame["document"] == frame["document"].iloc[0], np.nan, 0.125)
    frame.to_parquet(path, index=False)
    assert Generations(tmp_path, draws=50).gain("alpaca", "R4", column="batch_rouge_l").difference == 0.125


def test_the_sign_says_that_r4_is_higher_and_a_static_update_stands_beside(tmp_path):
    write_coherence(tmp_path, {"R1": 0.20, "R6": 0.18, "R4": 0.25})
    number = coherence(StoredRuns(tmp_path, draws=500), "rouge_l")["alpaca"].number
    assert number.startswith("rouge_l R4 − R6 +0.0") and "beside: R4 − R1 +0.0" in number


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
    assert generations.gain("alpaca", "R4", "R3") is None
    assert generations.gain("alpaca", "R4", "R1") is not None


def test_each_corpus_has_its_verdict_and_another_model_none(tmp_path):
    write_coherence(tmp_path, {"R6": 0.20, "R4": 0.25})
    write_coherence(tmp_path, {"R6": 0.25, "R4": 0.20}, "docstrings-instructions")
    assert cells(tmp_path) == {"alpaca": "supported", "docstrings-instructions": "contradicted"}
    assert coherence(StoredRuns(tmp_path, "gpt2"), "rouge_l") == {}
    assert generation_frame(Generations(tmp_path, "gpt2")).empty


def test_the_table_has_n_and_interval(tmp_path):
    write_coherence(tmp_path, {"R0": 0.22, "R1": 0.20, "R3": 0.20, "R4": 0.25, "R7": 0.25})
    frame = generation_frame(Generations(tmp_path, draws=500)).set_index("regime")
    assert (frame["n seeds"] == SEEDS).all() and (frame["documents"] == DOCUMENTS).all()
    assert frame["low"].notna().sum() == 4
    assert frame["reference, nats a token"].tolist() == pytest.approx([2.0] * 5)


def test_no_other_claim_reads_these_records(tmp_path):
    write_coherence(tmp_path, {"R6": 0.20, "R3": 0.20, "R4": 0.25})
    found = ledger(tmp_path, draws=500)
    assert {part for part, row in found.items() if row["cells"]} == {"16a", "16b"}
    write_verdicts(found, tmp_path)
