"""The tables: published beside re-derived, what is missing said in place, and the published improvements."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from chameleon_study.claims.paper import paper, published
from chameleon_study.records import load_records
from chameleon_study.released.tables import (
    NOT_MEASURED,
    circumstances,
    controls_frame,
    dropout_frame,
    lengths_frame,
    stored_table,
    table_of,
)


def test_published_improvements_follow_from_the_tables():
    exact = {
        (1, "validation_loss"): 0.2528,
        (1, "validation_perplexity"): 0.1193,
        (2, "validation_loss"): 0.2914,
    }
    for (table, field), share in exact.items():
        found = 1 - published(table, "R4", field) / published(table, "R1", field)
        assert round(found, 4) == share
    for gain in paper()["improvements"]:
        assert gain["published"] == pytest.approx(exact[gain["table"], gain["metric"]], abs=0.01)


def test_what_was_not_measured_keeps_its_place(tmp_path):
    frame = stored_table(tmp_path, ["table1-released", "table1-released-lite"])
    assert frame["experiment"].tolist() == ["table1-released", "table1-released-lite"]
    assert set(frame["loss"]) == {NOT_MEASURED}


def test_controls_are_paired_by_seed_and_add_up():
    results, name = Path(__file__).parents[2] / "results", "table1-released-lite"
    loss = {(r.regime, r.seed): r.metrics["reported_nll"] for r in load_records(results / f"{name}.jsonl")}
    frame = controls_frame(results, [name, "never-run"]).set_index("difference")
    assert set(frame["experiment"]) == {name} and (frame["low"] < frame["high"]).all()
    by_hand = [loss["R4", s] - loss["R2", s] for s in range(5)]
    assert (
        frame.loc["R4 − R2", "nats"] == pytest.approx(sum(by_hand) / 5)
        and frame.loc["R4 − R2", "n seeds"] == 5
    )
    for _, row in frame.iterrows():
        says = "lower" if row["high"] < 0 else "higher" if row["low"] > 0 else "not told apart"
        assert row["R4's loss"] == says


def test_every_experiment_has_its_circumstances_or_says_that_it_was_not_run():
    results, name = Path(__file__).parents[2] / "results", "table1-released-lite"
    frame = circumstances(results, [name, "never-run"]).set_index("experiment")
    assert frame.loc["never-run", "protocol"] == NOT_MEASURED and frame.loc["never-run", "seeds"] == "–"
    assert frame.loc[name, "protocol"] == "as_released" and frame.loc[name, "seeds"] == 5
    assert isinstance(frame.loc[name, "length"], int) and frame.loc[name, "command"].startswith(
        "chameleon-lite run"
    )


def test_instructions_belong_to_table_2():
    for corpus, table in (("alpaca-cleaned", 2), ("docstrings-instructions", 2), ("wikitext-2-lite", 1)):
        assert table_of(SimpleNamespace(corpus=corpus)) == table


def test_the_stored_table_says_what_was_run_and_what_was_not():
    results = Path(__file__).parents[2] / "results"
    table = stored_table(results, ["table1-released-lite", "no-such-run"])
    run = table[table["experiment"] == "table1-released-lite"]
    assert set(run["regime"]) == {"R0", "R1", "R2", "R3", "R4"} and all(n >= 4 for n in run["n seeds"])
    assert all(isinstance(n, int) for n in run["n seeds"])
    missing = table[table["experiment"] == "no-such-run"]
    assert missing["loss"].tolist() == [NOT_MEASURED] and missing["n seeds"].tolist() == ["–"]


def test_both_lengths_of_table_2_stand_side_by_side(tmp_path):
    results = Path(__file__).parents[2] / "results"
    frame = lengths_frame(results, ["table2-released-lite", "table2-released-lite-512"])
    assert list(frame.index) == ["R0", "R1", "R2", "R3", "R4"]
    assert frame.loc["R1", "published loss"] == published(2, "R1", "validation_loss")
    assert (frame["full rows, 400 tokens"] > frame["full rows, 512 tokens"]).all()
    assert set(lengths_frame(tmp_path, ["never-run"])["loss"]) == {NOT_MEASURED}


def test_the_control_with_dropout_is_compared_with_the_cached_run_of_its_seed(tmp_path):
    results = Path(__file__).parents[2] / "results"
    frame = dropout_frame(results, "table1-released-lite", "table1-released-dropout-lite")
    live = {(r.regime, r.seed): r for r in load_records(results / "table1-released-dropout-lite.jsonl")}
    assert len(frame) == 2 * len(live)
    assert (frame["lowest cached"] <= frame["cached"]).all() and (
        frame["cached"] <= frame["highest cached"]
    ).all()
    for row in frame[frame["what"] == "validation loss"].itertuples():
        assert row.live == live[row.regime, row.seed].metrics["reported_nll"]
        assert row.change == pytest.approx(row.live - row.cached)
    assert dropout_frame(tmp_path, "never-run", "neither").empty
