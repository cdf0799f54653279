import json
import sys

import numpy as np
import pytest
import torch

from chameleon_lite.app.fit import FitSettings, Fitted, compared, fit
from chameleon_lite.app.parts import corpus_of
from chameleon_lite.app.stream import adapt
from chameleon_lite.errors import UserError
from chameleon_lite.settings import ClusterSettings, TokenSettings, TrainSettings


def small(**changes) -> FitSettings:
    values = {
        "head": "hyper",
        "learning_rate": 1e-2,
        "dropout": 0.0,
        "tokens": TokenSettings(max_length=96),
        "clusters": ClusterSettings(batch_rows=16),
        "train": TrainSettings(epochs=3, rows_per_step=16),
    }
    return FitSettings(**values | changes)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(tmp_path / "cache"))


def test_fit_save_load_and_adapt_in_three_lines(tmp_path, two_kinds):
    fitted = fit(two_kinds(200), backbone="tiny", out=tmp_path / "adapter", settings=small())
    results = adapt(tmp_path / "adapter", two_kinds(30, seed=1))
    assert fitted.helped and fitted.after < fitted.before - 0.1 and fitted.low <= fitted.after - fitted.before
    assert str(fitted).startswith("helped: ")
    assert sum(r["loss"] < r["loss_frozen"] for r in results) == 30
    notes = fitted.model.config.notes
    assert (notes["before"], notes["after"]) == (fitted.before, fitted.after) and len(
        notes["corpus_hash"]
    ) == 64
    assert len(fitted.curve) == 4 and fitted.folder == tmp_path / "adapter"
    assert fitted.model.config.prompts["max_length"] == 96


def test_the_same_seed_gives_the_same_adapter(two_kinds):
    one, two, other = (fit(two_kinds(90), backbone="tiny", settings=small(seed=s)) for s in (0, 0, 1))
    assert one.after == two.after != other.after
    assert torch.equal(one.model.head.last.weight, two.model.head.last.weight)
    assert torch.equal(one.model.centroids, two.model.centroids)


def test_says_so_when_it_does_not_help(two_kinds):
    fitted = fit(two_kinds(120), backbone="tiny", settings=small(learning_rate=1e-12))
    assert not fitted.helped and abs(fitted.after - fitted.before) < 1e-3
    assert str(fitted).startswith("did not help") and "use the backbone as it is" in str(fitted)


def test_held_out_numbers_are_the_models_own(two_kinds):
    """The frozen loss of `fit` is the backbone's loss on the held-out split, computed afresh."""
    corpus = corpus_of(two_kinds(90))
    fitted = fit(corpus, backbone="tiny", settings=small())
    rows = adapt(fitted.model, [d.text for d in corpus.splits["test"]])
    tokens = np.array([r["tokens"] for r in rows])
    frozen = sum(r["loss_frozen"] * r["tokens"] for r in rows) / tokens.sum()
    assert fitted.held_out == len(rows) and fitted.before == pytest.approx(frozen, rel=2e-3)  # 16-bit states


@pytest.mark.parametrize(
    "texts, says",
    [
        ([], "0 rows, all empty"),
        (["one text alone, long enough to score"], "too few"),
        ([1, 2], "row 1: a row is an object or a string, not int"),
        ("no-such-corpus", "unknown corpus"),
    ],
)
def test_what_cannot_be_fitted_is_refused(texts, says):
    with pytest.raises(UserError, match=says):
        fit(texts, backbone="tiny", settings=small())


def test_texts_too_short_to_score_are_refused():
    with pytest.raises(UserError, match="lower prefix_tokens or min_scored"):
        fit([f"short {i}" for i in range(40)], backbone="tiny", settings=small())


def test_objects_are_rows_too_and_a_bad_one_is_named(two_kinds):
    rows = [{"prompt": "Say: ", "completion": text, "group": "g"} for text in two_kinds(30)]
    assert {d.prompt for d in corpus_of(rows).splits["train"]} == {"Say: "}
    assert corpus_of(two_kinds(30)).hash == corpus_of([{"text": text} for text in two_kinds(30)]).hash
    with pytest.raises(UserError, match="the list of texts, row 2: 'text' holds half a character"):
        corpus_of(["fine", "cut \ud83d", "fine"])


def test_interval_of_the_difference():
    counts = np.array([10, 30] * 50)
    found = compared(np.stack([2.0 * counts, 1.5 * counts]), counts, seed=0)
    assert found == pytest.approx({"before": 2.0, "after": 1.5, "low": -0.5, "high": -0.5})
    noise = np.random.default_rng(0).normal(size=100) * counts
    found = compared(np.stack([2.0 * counts, 2.0 * counts + noise]), counts, seed=0)
    assert found["low"] < 0 < found["high"]


@pytest.fixture
def source(tmp_path, two_kinds):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in two_kinds(120)))
    return path


FIT = ("--backbone", "tiny", "--epochs", 1, "--device", "cpu", "--out")


def test_command_line(source, command, tmp_path):
    adapter, out = tmp_path / "a", tmp_path / "o.jsonl"
    code, said, errors = command("fit", source, *FIT, adapter)
    assert code == 0 and "held-out texts" in said, errors
    words = ("--model", adapter, "--out", out, "--continue", 3, "--device", "cpu")
    code, said, errors = command("adapt", source, *words)
    assert code == 0 and "120 rows, 0 failed" in said, errors
    assert len(out.read_text().splitlines()) == 120


@pytest.mark.parametrize(
    "wrong, says",
    [
        (["adapt", "no.jsonl", "--model", "nowhere", "--out", "o.jsonl"], "no file or folder at no.jsonl"),
        (
            ["adapt", "no.jsonl", "--model", "m", "--out", "o", "--score", "--continue", "3"],
            "exclude each other",
        ),
        (["fit", "x", "--out", "o", "--condition", "clustre"], "condition"),
    ],
)
def test_wrong_use_is_one_line(wrong, says, capsys, monkeypatch):
    from chameleon_lite.app import cli

    monkeypatch.setattr(sys, "argv", ["chameleon-lite", *wrong])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and says in err and len(err.splitlines()) == 1


def test_two_processes_fit_what_one_does(source, command, machine, tmp_path):
    assert command("fit", source, *FIT, tmp_path / "one")[0] == 0
    machine.together(machine.command("fit", source, *FIT, "two"), tmp_path)
    notes = [json.loads((tmp_path / n / "config.json").read_text())["notes"] for n in ("one", "two")]
    assert (
        notes[0]["after"] == pytest.approx(notes[1]["after"], abs=1e-3)
        and notes[0]["after"] < notes[0]["before"]
    )


def fitted(held_out: int, low: float, high: float, dropped: int = 0) -> Fitted:
    numbers = {"before": 2.0, "after": 2.0 + (low + high) / 2, "low": low, "high": high}
    return Fitted(None, **numbers, held_out=held_out, trained_on=9, seconds=1.0, curve=[], dropped=dropped)


@pytest.mark.parametrize(
    "held_out, low, high, verdict",
    [
        (1, -0.5, -0.5, "too few to tell"),
        (9, -0.5, -0.4, "too few to tell"),
        (9, 0.4, 0.5, "too few to tell"),
        (10, -0.5, -0.4, "helped"),
        (500, -0.5, 0.1, "did not help"),
        (500, -4e-5, -1e-5, "did not help"),
        (500, -0.0, -0.0, "did not help"),
        (500, 1e-5, 4e-5, "did not help"),
        (500, 0.1, 0.2, "made things worse"),
    ],
)
def test_a_verdict_needs_texts_and_a_change_that_shows(held_out, low, high, verdict):
    found = fitted(held_out, low, high)
    assert str(found).startswith(f"{verdict}: ") and found.helped == (verdict == "helped")
    assert "dropped" not in str(found) and "7 texts were dropped" in str(
        fitted(held_out, low, high, dropped=7)
    )


def test_dropped_texts_are_counted(two_kinds):
    found = fit([*two_kinds(120), "", "  ", "short", "also short"], backbone="tiny", settings=small())
    assert found.dropped == 4 and "4 texts were dropped" in str(found)
