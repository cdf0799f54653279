"""The tables: published beside re-derived, what is missing said in place, and the published improvements."""

from pathlib import Path

import pytest

from chameleon_lite.study.figures.style import figure
from chameleon_lite.study.figures.waterfall import LABELS, waterfall
from chameleon_lite.study.paper import paper, published
from chameleon_lite.study.protocol import Protocol
from chameleon_lite.study.records import load_records
from chameleon_lite.study.released_tables import (
    NOT_MEASURED,
    circumstances,
    controls_frame,
    stored_table,
    table_of,
    walk_frame,
)


def test_published_improvements_follow_from_the_tables():
    exact = {(1, "validation_loss"): 0.2528, (1, "validation_perplexity"): 0.1193, (2, "validation_loss"): 0.2914}
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
    assert frame.loc["R4 − R2", "nats"] == pytest.approx(sum(by_hand) / 5) and frame.loc["R4 − R2", "n seeds"] == 5
    for _, row in frame.iterrows():
        says = "lower" if row["high"] < 0 else "higher" if row["low"] > 0 else "not told apart"
        assert row["R4's loss"] == says


def test_every_experiment_has_its_circumstances_or_says_that_it_was_not_run():
    results, name = Path(__file__).parents[2] / "results", "table1-released-lite"
    frame = circumstances(results, [name, "never-run"]).set_index("experiment")
    assert frame.loc["never-run", "protocol"] == NOT_MEASURED and frame.loc["never-run", "seeds"] == "–"
    assert frame.loc[name, "protocol"] == "as_released" and frame.loc[name, "seeds"] == 5
    assert isinstance(frame.loc[name, "length"], int) and frame.loc[name, "command"].startswith("chameleon-lite run")


class Made:
    """As much of a record as `walk_frame` and `table_of` read."""

    def __init__(self, switches, regime, loss, corpus="wikitext-2-lite"):
        self.settings = {"protocol": {"switches": switches}}
        self.corpus, self.backbone, self.regime, self.seed = corpus, "smollm2", regime, 0
        self.metrics = {"reported_nll": loss, "validation_nll": loss}
        self.data = {"protocol": {}, "scored_tokens": {"validation": 10}}


def test_walk_in_order_and_its_figure():
    import matplotlib.pyplot as plt

    switches = {"average": "token", "ignored": "padding"}
    stops = [dict(list(switches.items())[:n]) for n in (2, 0, 1)]
    walk = walk_frame([Made(s, regime, 1.0 + len(s)) for s in stops for regime in ("R1", "R4")])
    assert walk["mended"].tolist() == ["", "", "average", "average", "ignored", "ignored"]
    fig, ax = figure()
    waterfall(ax, walk, {"R1": "LoRA", "R4": "hyper-network"})
    assert [t.get_text() for t in ax.get_yticklabels()] == [LABELS[m] for m in ("", "average", "ignored")]
    assert len(ax.patches) == 6
    plt.close(fig)


def test_every_switch_of_a_walk_has_a_label():
    assert set(Protocol.model_fields) - set(LABELS) == {"layers", "backbone"}


def test_instructions_belong_to_table_2():
    assert table_of(Made({}, "R1", 1.0, "alpaca-cleaned")) == 2 and table_of(Made({}, "R1", 1.0)) == 1


def test_the_stored_table_says_what_was_run_and_what_was_not():
    results = Path(__file__).parents[2] / "results"
    table = stored_table(results, ["table1-released-lite", "no-such-run"])
    run = table[table["experiment"] == "table1-released-lite"]
    assert set(run["regime"]) == {"R0", "R1", "R2", "R3", "R4"} and all(n >= 4 for n in run["n seeds"])
    assert all(isinstance(n, int) for n in run["n seeds"])
    missing = table[table["experiment"] == "no-such-run"]
    assert missing["loss"].tolist() == [NOT_MEASURED] and missing["n seeds"].tolist() == ["–"]
