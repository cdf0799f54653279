"""The published numbers: internally consistent, and equal to what the package counts."""

import json
import math

import pytest

from chameleon_lite.errors import DamagedFile, UserError
from chameleon_study import page
from chameleon_study.claims.ledger import OPEN, changes_frame, scoreboard
from chameleon_study.claims.paper import paper, parts, published


def rows(table):
    return next(t["rows"] for t in paper()["tables"] if t["table"] == table)


@pytest.mark.parametrize("table", [1, 2])
def test_perplexity_is_exp_of_loss(table):
    for row in rows(table):  # four decimals are printed, so a small loss fixes exp(loss) to 4 digits
        assert math.exp(row["validation_loss"]) == pytest.approx(row["validation_perplexity"], rel=2e-4)


def test_stated_improvements_follow_from_the_tables():
    for gain in paper()["improvements"]:
        better, than = (published(gain["table"], gain[who], gain["metric"]) for who in ("better", "than"))
        assert 1 - better / than == pytest.approx(gain["published"], abs=0.01)


def test_parameter_columns_are_what_the_package_counts():
    from chameleon_study.tables import parameter_frame, parameter_table

    counted, frame = parameter_table("random-gpt2"), parameter_frame("random-gpt2").set_index("part")
    printed = frame[frame["paper"] != "–"]
    assert len(printed) == 3 and (printed["paper"] == printed["derived"]).all()
    assert paper()["source"]["vocabulary"] == counted["vocab"]
    assert [r["parameters"] for r in rows(1)] == [r["parameters"] for r in rows(2)]


@pytest.mark.parametrize("wrong", [(3, "R0", "train_loss"), (1, "R2", "train_loss"), (1, "R0", "train_los")])
def test_names_that_do_not_exist_are_named(wrong):
    with pytest.raises(UserError, match="unknown .*valid:"):
        published(*wrong)


def test_scoreboard_has_every_part_once_and_open_ones_say_so(tmp_path):
    rows = scoreboard(tmp_path)
    assert [row["part"] for row in rows] == [part["part"] for part in parts()]
    assert (
        sorted({row["claim"] for row in rows})
        == [c["claim"] for c in paper()["claims"]]
        == list(range(1, 23))
    )
    assert {row["status"] for row in rows} == {OPEN}
    assert all(row["says"] and row["section"] and row["asks"] and row["supported if"] for row in rows)


def test_scoreboard_shows_stored_verdicts_and_refuses_a_damaged_file(tmp_path):
    path = tmp_path / "verdicts.json"
    row = {"claim": 3, "part": "3a", "headline": "equivalent", "cells": {}, "beside": {}}
    path.write_text(json.dumps({"evidence": "", "parts": [row]}))
    board = {row["part"]: row["status"] for row in scoreboard(tmp_path)}
    assert board["3a"] == "equivalent" and board["4a"] == OPEN
    for damaged in ('[{"claim": 3}]', '{"parts": [{"part": "3a"}]}', "{"):
        path.write_text(damaged)
        with pytest.raises(DamagedFile, match="verdicts.json"):
            scoreboard(tmp_path)


def test_what_changed_since_version_1_has_every_claim_and_a_reason(tmp_path):
    frame = changes_frame(page.root() / "results").set_index("claim")
    assert list(frame.index) == list(range(1, 23)) and frame.loc[21, "version 1"] == "not tested"
    old = json.loads((page.root() / "results" / "v1" / "verdicts.json").read_text())
    assert {row["claim"]: row["status"] for row in old}.items() <= frame["version 1"].to_dict().items()
    assert (frame["why"].str.len() > 5).all() and frame["now"].str.contains("a: ").all()


def test_start_seeds_torch_and_numpy_and_refuses_unknown_profiles(capsys):
    import numpy
    import torch

    def draw():
        assert page.start("smoke", seed=3) in ("cpu", "cuda")
        return torch.rand(2).tolist(), numpy.random.rand(2).tolist()

    assert draw() == draw()
    assert "profile smoke" in capsys.readouterr().out
    with pytest.raises(UserError, match="did you mean 'smoke'"):
        page.start("smok")


def test_keep_stores_values_for_the_text(monkeypatch):
    myst_nb = pytest.importorskip("myst_nb")
    stored = {}
    monkeypatch.setattr(myst_nb, "glue", lambda name, value, display: stored.update({name: (value, display)}))
    page.keep(loss=1.5, n=3)
    assert stored == {"loss": (1.5, False), "n": (3, False)}
    assert (page.root() / "_toc.yml").exists()
