import json

import matplotlib
import pytest

from chameleon_lite.bench import figures, results
from chameleon_lite.bench.report import EXTRAS

matplotlib.use("Agg")
ROW = {"what": "head", "status": "missed", "reason": "ours by stage: product 90%", "unavailable": "", "comparisons": [
    {"peer": "released way", "quantity": "time", "goal": 9.0, "ratio": 4.0, "met": False, "absent": "",
     "ours": {"median": 1.0, "low": 0.9, "high": 1.1}, "theirs": {"median": 4.0, "low": 3.3, "high": 4.5}},
    {"peer": "Liger", "quantity": "time", "goal": 4.0, "ratio": None, "met": None, "absent": "peer not installed",
     "ours": {"median": 1.0, "low": 0.9, "high": 1.1}, "theirs": None}]}
CURVE = {"stage": "tokenise", "against": "rows", "sizes": [10, 100], "values": [1.0, 10.0], "unit": "s", "slope": 1.0,
         "expected": 1}
SCALING = {"steps": {"seconds": {"1": 4.0, "2": 2.5}}, "seeds": {}}
LADDER = {"steps": [{"step": "released way", "idea": "all again", "seconds": 90.0},
                    {"step": "states kept", "idea": "once", "seconds": 9.0}]}


@pytest.fixture
def axes():
    import matplotlib.pyplot as plt

    yield plt.subplots()[1]
    plt.close("all")


def test_the_ladder_names_its_ideas_and_factors(axes):
    figures.ladder(axes, LADDER)
    assert "10.0 ×" in "".join(t.get_text() for t in axes.texts)


def test_roofline_has_a_point_a_stage(axes, small_bench):
    found = EXTRAS["roofline"](small_bench)
    figures.roofline(axes, found)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert all(any(p["stage"] in label for label in labels) for p in found["points"])


def test_growth_and_scaling_draw_what_there_is(axes):
    assert "1.00 (1 expected)" in figures.growth(axes, {"curves": [CURVE]}, "rows").get_legend().texts[0].get_text()
    axes.clear()
    assert len(figures.scaling(axes, SCALING).lines) == 2


def test_a_results_folder_becomes_tables(tmp_path):
    kept = {"machine": {"name": "m"}, "rows": {"B5": ROW, "growth": {"status": "shown", "curves": [CURVE]}}}
    (tmp_path / "m.json").write_text(json.dumps(kept))
    (tmp_path / "m-quick.json").write_text(json.dumps(kept))
    found = results.load(tmp_path)
    assert list(found) == ["m"]
    frame = results.goals_frame(found["m"]).set_index("against")
    assert frame.loc["released way", "verdict"] == "missed" and frame.loc["Liger", "verdict"] == "peer not installed"
    assert frame.loc["released way", "times better"] == "4 [3, 5]"
    assert results.missed_frame(found)["reason"].tolist() == [ROW["reason"]]
    assert results.growth_frame(found["m"]["rows"]["growth"])["slope"].tolist() == [1.0]
    assert results.entry(found, "B5", prefer="h100")[0] == "m" and results.entry(found, "B6") is None


def test_what_was_tried_is_timed_on_both_sides(small_bench):
    entry = EXTRAS["tried"](small_bench)
    assert len(entry["tried"]) >= 6 and all(t["with"] > 0 and t["without"] > 0 and t["why"] for t in entry["tried"])
    assert len(results.tried_frame({"rows": {"tried": entry}})) == len(entry["tried"])
