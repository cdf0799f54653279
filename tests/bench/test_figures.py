import json

import matplotlib
import pytest

from chameleon_bench import figures, tables
from chameleon_bench.measure import EXTRAS, ROWS, measured
from chameleon_study import page

matplotlib.use("Agg")
ROW = {
    "what": "head",
    "status": "missed",
    "reason": "ours by stage: product 90%",
    "unavailable": "",
    "comparisons": [
        {
            "peer": "released way",
            "quantity": "time",
            "goal": 9.0,
            "ratio": 4.0,
            "met": False,
            "absent": "",
            "ours": {"median": 1.0, "low": 0.9, "high": 1.1},
            "theirs": {"median": 4.0, "low": 3.3, "high": 4.5},
        },
        {
            "peer": "Liger",
            "quantity": "time",
            "goal": 4.0,
            "ratio": None,
            "met": None,
            "absent": "peer not installed",
            "ours": {"median": 1.0, "low": 0.9, "high": 1.1},
            "theirs": None,
        },
    ],
}
CURVE = {
    "stage": "tokenise",
    "against": "rows",
    "sizes": [10, 100],
    "values": [1.0, 10.0],
    "unit": "s",
    "slope": 1.0,
    "expected": 1,
}
SCALING = {"steps shared": {"seconds": {"1": 4.0, "2": 2.5}}}
LADDER = {
    "steps": [
        {"step": "released way", "idea": "all again", "seconds": 90.0},
        {"step": "states kept", "idea": "once", "seconds": 9.0},
    ]
}


@pytest.fixture
def axes():
    import matplotlib.pyplot as plt

    yield plt.subplots()[1]
    plt.close("all")


def test_the_ladder_names_its_ideas_and_factors(axes):
    figures.ladder(axes, LADDER)
    assert "10.0 ×" in "".join(t.get_text() for t in axes.texts)


def test_roofline_has_a_point_a_stage(axes, small_bench):
    found = measured("roofline", small_bench)
    figures.roofline(axes, found)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert all(any(p["stage"] in label for label in labels) for p in found["points"])


def test_growth_and_scaling_draw_what_there_is(axes):
    assert (
        "1.00 (1 expected)"
        in figures.growth(axes, {"curves": [CURVE]}, "rows").get_legend().texts[0].get_text()
    )
    axes.clear()
    assert len(figures.scaling(axes, SCALING).lines) == 2


def test_a_results_folder_becomes_tables(tmp_path):
    kept = {"machine": {"device": "m"}, "rows": {"B5": ROW, "growth": {"status": "shown", "curves": [CURVE]}}}
    (tmp_path / "m.json").write_text(json.dumps(kept))
    (tmp_path / "m-quick.json").write_text(json.dumps(kept))
    found = tables.load(tmp_path)
    assert list(found) == ["m"]
    frame = tables.goals_frame(found["m"]).set_index("against")
    assert (
        frame.loc["released way", "verdict"] == "missed"
        and frame.loc["Liger", "verdict"] == "peer not installed"
    )
    assert frame.loc["released way", "times better"] == "4 [3, 5]"
    assert tables.missed_frame(found)["reason"].tolist() == [ROW["reason"]]
    assert tables.growth_frame(found["m"]["rows"]["growth"])["slope"].tolist() == [1.0]
    assert tables.entry(found, "B5", prefer="h100")[0] == "m" and tables.entry(found, "B6") is None


def machine(device, **rows):
    return {
        "machine": {"device": device},
        "rows": {name: {"status": "shown"} | row for name, row in rows.items()},
    }


def test_a_machine_with_a_few_rows_says_which_it_lacks():
    found = {"a": machine("one", B5=ROW, ladder=LADDER), "b": machine("other", B5=ROW)}
    text = tables.not_yet(found["b"])
    assert text.startswith("not measured on this machine yet: B1, B3, B4, B6") and "ladder" in text
    assert "B5" not in text and "scaling" not in text
    assert tables.not_yet(machine("full", **dict.fromkeys([*ROWS, *EXTRAS], {}))) == ""
    counts = tables.summary_frame(found)
    assert counts.loc["goal missed"].tolist() == [1, 1] and counts.loc["could not be run here"].tolist() == [
        1,
        1,
    ]
    assert counts.loc["rows not measured yet", "b"] == counts.loc["rows not measured yet", "a"] + 1


def test_a_file_about_several_gpus_alone_has_no_goals_to_show():
    found = {"one": machine("one", B5=ROW), "two": machine("two", scaling=SCALING)}
    assert list(tables.with_goals(found)) == ["one"]
    assert tables.summary_frame(tables.with_goals(found)).columns.tolist() == ["one"]


def test_panels_are_drawn_for_machines_that_have_them_and_never_stay_empty():
    import matplotlib.pyplot as plt

    found = {"a": machine("one", ladder=LADDER), "b": machine("other", B5=ROW)}
    panels = figures.panels(found, "ladder", figures.ladder, height=4.0)
    assert [ax.get_title() for ax in panels.flat] == ["one"]
    assert panels.flat[0].figure.get_supxlabel() == "not measured yet on: other"
    for nothing in (found, {}):
        ((ax,),) = figures.panels(nothing, "roofline", figures.roofline, height=4.0)
        assert ax.texts[0].get_text() == "not measured on any machine yet: chameleon-lite bench roofline"
    plt.close("all")


def test_stored_files_become_tables():
    stored = tables.load(page.root() / "benchmarks" / "results")
    assert all(name == kept["machine"]["name"] for name, kept in stored.items())
    assert tables.entry(stored, "scaling")[1]["gates"][0]["passed"]
    found = tables.with_goals(stored)
    assert len(tables.summary_frame(found).columns) == len(found)
    for kept in stored.values():
        commits = tables.commits(kept)
        assert commits.index.str.fullmatch(r"[0-9a-f]{40}\+?").all()
        assert sorted(", ".join(commits["rows"]).split(", ")) == sorted(kept["rows"])
    for kept in found.values():
        goals = tables.goals_frame(kept)
        assert set(goals["row"]) == {name for name, row in kept["rows"].items() if row.get("comparisons")}
        assert goals["times better"].str.match(r"–|[\d.e+]+").all()
        if tables.usable(kept["rows"].get("tried")):
            assert tables.tried_frame(kept)["gain"].str.fullmatch(r"[\d.]+ ×").all()
    assert not (tables.missed_frame(found)["reason"] == "").any()
