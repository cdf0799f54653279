"""The published numbers: internally consistent, and equal to what the package counts."""

import json
import math

import pytest

from chameleon_lite.errors import DamagedFile, UserError
from chameleon_study import page
from chameleon_study.claims.ledger import OPEN, scoreboard
from chameleon_study.claims.paper import claims, paper, published, published_parameters


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
    from chameleon_study.parameters import parameter_table

    counted = parameter_table("random-gpt2")
    assert published_parameters() == {part: counted[part] for part in published_parameters()}
    assert paper()["source"]["vocabulary"] == counted["vocab"]
    assert [r["parameters"] for r in rows(1)] == [r["parameters"] for r in rows(2)]


@pytest.mark.parametrize("wrong", [(3, "R0", "train_loss"), (1, "R2", "train_loss"), (1, "R0", "train_los")])
def test_names_that_do_not_exist_are_named(wrong):
    with pytest.raises(UserError, match="unknown .*valid:"):
        published(*wrong)


def test_scoreboard_has_every_claim_once_and_open_ones_say_so(tmp_path):
    board = scoreboard(tmp_path)
    assert [row["claim"] for row in board] == list(range(1, 23)) == [c["claim"] for c in claims()]
    assert {row["status"] for row in board} == {OPEN}


def test_scoreboard_shows_stored_verdicts_and_refuses_a_damaged_file(tmp_path):
    path = tmp_path / "verdicts.json"
    path.write_text(
        json.dumps([{"claim": 3, "status": "equivalent", "number": "a, b", "deciding": "0.001 nats"}])
    )
    board = {row["claim"]: row for row in scoreboard(tmp_path)}
    assert (board[3]["status"], board[3]["number"]) == ("equivalent", "0.001 nats") and board[4][
        "status"
    ] == OPEN
    path.write_text('[{"claim": 3}]')
    with pytest.raises(DamagedFile, match="verdicts.json"):
        scoreboard(tmp_path)


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
