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
    released_frame,
    released_table,
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


def _losses(name, regime):
    records = load_records(Path(__file__).parents[2] / "results" / f"{name}.jsonl")
    return [r.metrics["reported_nll"] for r in records if r.regime == regime]


def test_both_lengths_and_all_rows_of_table_2_stand_side_by_side(tmp_path):
    results = Path(__file__).parents[2] / "results"
    names = [f"table2-released-{part}" for part in ("lite", "lite-512", "full")]
    frame = lengths_frame(results, names)
    assert list(frame.index) == ["R0", "R1", "R2", "R3", "R4"]
    assert frame.loc["R1", "published loss"] == published(2, "R1", "validation_loss")
    full = frame.filter(regex="^full rows, ").astype(int)
    assert (full.iloc[:, 0] > full.iloc[:, 1]).all()
    for column, name in zip(frame.filter(regex="^loss, "), names):
        losses = _losses(name, "R1")
        assert float(frame.loc["R1", column].split()[0]) == pytest.approx(sum(losses) / len(losses), abs=5e-5)
    assert set(lengths_frame(tmp_path, ["never-run"])["loss"]) == {NOT_MEASURED}


def test_experiments_that_differ_in_their_rows_are_no_seeds_of_one_table():
    results = Path(__file__).parents[2] / "results"
    names = ["table2-released-full", "table2-released-lite-512"]
    records = [r for name in names for r in load_records(results / f"{name}.jsonl")]
    together = released_frame(records)
    assert len(together) == 10 and set(together["n seeds"]) == {5}
    assert together["training rows"].nunique() == 2


@pytest.mark.parametrize(
    "change", [{"experiment": "another"}, {"data": {"documents": {"train": 1, "validation": 2}}}]
)
def test_another_experiment_or_other_rows_are_another_table(change):
    records = load_records(Path(__file__).parents[2] / "results" / "table2-released-lite-512.jsonl")
    changed = change | {"data": records[0].data | change.get("data", {})}
    others = [r.model_copy(update=changed) for r in records]
    assert {released_table(r) for r in records}.isdisjoint(map(released_table, others))
    frame = released_frame([r for pair in zip(records, others) for r in pair])
    assert len(frame) == 10 and set(frame["n seeds"]) == {5}


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
