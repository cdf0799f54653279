"""A run that goes on where it stopped, what it keeps, and the registered contrasts."""

import json
from copy import copy

import numpy as np
import pandas as pd
import pytest
import yaml

from chameleon_lite.app.own_texts import write_jsonl
from chameleon_lite.errors import UserError
from chameleon_study.streams.methods import METHODS, STATICS
from chameleon_study.streams.rivals import RIVALS
from chameleon_study.streams.run import run_streams
from chameleon_study.streams.tables import order_from, pays_from, running, tables
from chameleon_study.streams.verdicts import REGISTERED, decided, verdict_frame

UNITS = [
    "static R1",
    "static frozen",
    "stream S1",
    "stream S1-R1",
    "stream cache",
    "robust S1",
    "batches of 8 S1",
]


def run(corpus, settings, model, folder, only=UNITS, **how):
    return run_streams(settings, model, corpus, folder, only, say=lambda text: None, **how)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One cache for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHAMELEON_LITE_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def whole(small_corpus, small_settings, small_model, home, tmp_path_factory):
    return run(small_corpus, small_settings, small_model, tmp_path_factory.mktemp("runs") / "whole")


def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(
    whole, small_corpus, small_settings, small_model, tmp_path
):
    for only in (UNITS[:1], UNITS[:3], UNITS):
        again = run(small_corpus, small_settings, small_model, tmp_path / "broken", only)
    assert list(again.records) == list(whole.records)
    for unit, record in whole.records.items():
        for name in ("rates", "nats", "nats_per_token", "curve"):
            assert record.get(name) == again.records[unit].get(name), unit
    pd.testing.assert_frame_equal(whole.frame, again.frame)
    none = run(small_corpus, small_settings, small_model, tmp_path / "none", seconds=0)
    assert not none.records


def test_what_is_kept_is_whole_and_can_be_read_again(whole):
    records = [json.loads(line) for line in whole.path.read_text().splitlines()]
    assert {r["unit"] for r in records} == {*UNITS, "training R1"}
    s1 = next(r for r in records if r["unit"] == "stream S1")
    assert (
        set(s1["rates"]) == {str(rate) for rate in METHODS["S1"].rates} and s1["failed"] == s1["skipped"] == 0
    )
    assert set(s1["nats_per_token"]) == {"random-0", "random-1", "bursty-0", "drifting-0"}
    frame = pd.read_parquet(whole.table)
    assert frame.notna().all().all() and len(frame) == 40
    for order, nats in s1["nats_per_token"].items():
        assert frame[f"S1|{order}|32"].sum() / frame["tokens"].sum() == pytest.approx(nats, abs=1e-4)
    methods, verdicts, robust, small = tables(whole)
    assert len(robust) == 1 and small["batch"].tolist() == [8]
    assert set(methods["method"]) == {"R1", "frozen", "S1", "S1-R1", "cache"}
    assert verdicts["contrast"].tolist() == ["5 unigram cache"]


def test_running_losses_follow_the_order_that_was_read(whole):
    order, losses = order_from(whole, "bursty-0"), whole.losses()
    assert sorted(order) == list(range(40))
    frame, tokens = (
        running(whole, "S1", "frozen", "bursty-0", window=8),
        whole.frame["tokens"].to_numpy(float),
    )
    gap = losses["S1", "bursty-0"] - losses["frozen", "bursty-0"]
    assert (frame["so far"][:32].abs() < 1e-3).all()  # the first batch is read before anything is learned
    assert frame["so far"].iloc[-1] == pytest.approx(gap.sum() / tokens.sum())
    assert frame["recent"].iloc[-1] == pytest.approx(gap[order[-8:]].sum() / tokens[order[-8:]].sum())
    made = losses["frozen", "bursty-0"].copy()
    made[order[:5]] += (
        2.0  # costs at first, then gains: even after the tenth document, lower from the eleventh on
    )
    made[order[5:]] -= 2.0
    other = copy(whole)
    other.frame = whole.frame.assign(**{"made|bursty-0|32": made})
    assert pays_from(other, "made", "frozen", "bursty-0") == 11.0
    assert np.isnan(pays_from(other, "frozen", "made", "bursty-0"))
    assert pays_from(other, "made", "made", "bursty-0", margin=-1.0) == 1.0


def test_another_runs_folder_is_refused(whole, small_corpus, small_settings, small_model):
    other = small_settings.model_copy(update={"documents": 32})
    with pytest.raises(UserError, match="another run"):
        run(small_corpus, other, small_model, whole.folder)


def test_every_registered_name_is_a_method():
    plan = yaml.safe_load(REGISTERED.read_text(encoding="utf-8"))
    known = {"frozen", *STATICS, *METHODS, *RIVALS}
    for name, contrast in plan["contrasts"].items():
        assert {contrast["first"], contrast["second"]} <= known, name
        assert contrast["rule"] in ("lower", "equal")


@pytest.mark.parametrize(
    "rule, gap, noise, word",
    [
        ("lower", -0.05, 0.001, "supported"),
        ("lower", -0.001, 0.001, "equivalent"),
        ("lower", 0.05, 0.001, "contradicted"),
        ("lower", -0.01, 5.0, "not decidable here"),
        ("equal", 0.001, 0.001, "equivalent"),
        ("equal", 0.05, 0.001, "contradicted"),
        ("equal", -0.05, 0.001, "contradicted"),
        ("equal", 0.0, 5.0, "not decidable here"),
    ],
)
def test_the_rules_decide_as_they_say(rule, gap, noise, word, monkeypatch, tmp_path):
    plan = {
        "margin": 0.01,
        "orders": "random",
        "contrasts": {"c": {"first": "A", "second": "B", "rule": rule}},
    }
    path = tmp_path / "streams.yaml"
    path.write_text(yaml.safe_dump(plan))
    monkeypatch.setattr("chameleon_study.streams.verdicts.REGISTERED", path)
    numbers, tokens = np.random.default_rng(0), np.full(300, 50.0)
    losses = {}
    for seed in range(5):
        b = numbers.normal(150, 30, 300)
        losses["B", f"random-{seed}"] = b
        losses["A", f"random-{seed}"] = b + gap * 50 + numbers.normal(0, noise * 50, 300)
        losses["A", "drifting-0"] = losses["B", "drifting-0"] = b
    frame = verdict_frame(losses, tokens)
    assert frame["verdict"].tolist() == [word] and frame["orders"].tolist() == [5]
    assert decided.__doc__


def test_the_command_runs_and_refuses(small_corpus, home, tmp_path, monkeypatch, capsys):
    from chameleon_lite.app.cli import main

    corpus = write_jsonl(small_corpus, tmp_path / "stream.jsonl")
    common = ["chameleon-lite", "stream", "--corpus", str(corpus), "--out", str(tmp_path / "out")]
    only = ["--only", "static frozen", "--only", "stream cache"]
    monkeypatch.setattr("sys.argv", [*common, *only, "--backbone", "tiny-llama", "--device", "cpu"])
    main()
    assert "5 unigram cache" not in (shown := capsys.readouterr().out) and "cache" in shown
    monkeypatch.setattr("sys.argv", [*common, "--export"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2 and "--data-dir" in capsys.readouterr().err
