"""Learning from a file of rows: the same after a break, nothing ahead of its time, failed rows apart."""

import json

import numpy as np
import pytest
import torch

from chameleon_lite.app import learn as learning
from chameleon_lite.app.learn import LearningStream, learn_file
from chameleon_lite.errors import UserError
from chameleon_lite.heads import LoraHead
from chameleon_lite.streams.memory import LearnSettings

FOUR = LearnSettings(batch_rows=4)


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" if not isinstance(row, bytes) else "{\n" for row in rows))
    return path


def results(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def rows(some_texts):
    return [{"id": f"r{i}", "text": text} for i, text in enumerate(some_texts(26))]


def test_every_row_has_its_losses_and_learning_helps(tiny, rows, tmp_path):
    source = written(tmp_path / "in.jsonl", rows * 4)
    summary = learn_file(tiny, source, tmp_path / "out.jsonl", rate=0.02, settings=FOUR)
    out = results(tmp_path / "out.jsonl")
    assert [r["id"] for r in out] == [f"r{i % 26}" for i in range(104)]
    assert all(r["loss"] == pytest.approx(r["loss_frozen"], abs=1e-5) for r in out[:4])
    gaps = np.array([(r["loss"] - r["loss_frozen"]) * r["tokens"] for r in out])
    tokens = np.array([r["tokens"] for r in out])
    gain = gaps.sum() / tokens.sum()
    half = 1.96 * np.sqrt(((gaps - gain * tokens) ** 2).sum()) / tokens.sum()
    assert summary.gain == pytest.approx(gain) and summary.high < 0
    assert (summary.low, summary.high) == (pytest.approx(gain - half), pytest.approx(gain + half))
    assert "times as long as scoring alone" in str(summary) and (summary.rows, summary.failed) == (104, 0)


@pytest.mark.parametrize("how", [{}, {"memory": "cluster", "clusters": 3}, {"layers": True, "rank": 2}])
@pytest.mark.parametrize("killed", [1, 3, 5])
def test_a_killed_run_goes_on_to_the_same_file_and_state(tiny, rows, tmp_path, monkeypatch, how, killed):
    monkeypatch.setattr(learning, "SAVED_EVERY", 2)
    source = written(tmp_path / "in.jsonl", [*rows[:9], {"text": "no"}, b"", *rows[9:]])
    how = {"rate": 0.02, "settings": FOUR} | how
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    learn_file(tiny, source, whole, **how)
    real, calls = LearningStream.__call__, []

    def dies(self, window):
        calls.append(window)
        if len(calls) > killed:
            raise KeyboardInterrupt
        return real(self, window)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LearningStream, "__call__", dies)
        learn_file(tiny, source, broken, **how)
    assert not broken.exists()
    summary = learn_file(tiny, source, broken, resume=True, **how)
    assert broken.read_bytes() == whole.read_bytes()
    states = [torch.load(path.with_name(path.name + ".state"), weights_only=True) for path in (whole, broken)]
    assert states[0]["sums"] == states[1]["sums"]
    for name, value in states[0]["memory"].items():
        assert torch.equal(value, states[1]["memory"][name])
    assert (summary.rows, summary.failed) == (28, 2)
    assert learn_file(tiny, source, broken, resume=True, **how).gain == summary.gain  # it is complete
    assert [p.name for p in tmp_path.iterdir() if ".part" in p.name] == []


def test_later_rows_change_no_result_before(tiny, rows, tmp_path):
    how = {"memory": "cluster", "clusters": 3, "settings": FOUR}
    learn_file(tiny, written(tmp_path / "a.jsonl", rows), tmp_path / "a.out", **how)
    other = [*rows[:12], *({"id": r["id"], "text": r["text"][::-1]} for r in rows[12:])]
    learn_file(tiny, written(tmp_path / "b.jsonl", other), tmp_path / "b.out", **how)
    a, b = results(tmp_path / "a.out"), results(tmp_path / "b.out")
    assert a[:12] == b[:12] and all(x != y for x, y in zip(a[12:], b[12:]))


def test_rows_that_fail_have_their_error_and_change_nothing(tiny, rows, tmp_path):
    plain = learn_file(tiny, written(tmp_path / "a.jsonl", rows[:8]), tmp_path / "a.out", settings=FOUR)
    bad = [*rows[:4], {"text": "short"}, {"other": 1}, {"text": "  "}, b"", *rows[4:8]]
    summary = learn_file(tiny, written(tmp_path / "b.jsonl", bad), tmp_path / "b.out", settings=FOUR)
    out = results(tmp_path / "b.out")
    assert [("error" in r) for r in out] == [False] * 4 + [True] * 4 + [False] * 4
    assert "too short" in out[4]["error"] and "no column" in out[5]["error"]
    good = [{k: v for k, v in r.items() if k not in ("row",)} for r in out if "error" not in r]
    assert good == [{k: v for k, v in r.items() if k not in ("row",)} for r in results(tmp_path / "a.out")]
    assert summary.gain == plain.gain and summary.failed == 4


def test_a_finished_state_is_where_another_file_begins(tiny, rows, tmp_path):
    source, state = written(tmp_path / "in.jsonl", rows), tmp_path / "kept.state"
    first = learn_file(tiny, source, tmp_path / "1.out", state=state, rate=0.02, settings=FOUR)
    second = learn_file(tiny, source, tmp_path / "2.out", state=state, rate=0.02, settings=FOUR)
    assert second.gain < first.gain and second.rows == first.rows
    frozen = LearnSettings(batch_rows=4, freeze_after=0)
    third = [
        learn_file(tiny, source, tmp_path / "3.out", state=state, rate=0.02, settings=frozen)
        for _ in range(2)
    ]
    assert third[0].gain == third[1].gain


def test_a_trained_head_is_where_learning_begins(tiny, rows, tmp_path):
    head = LoraHead(tiny.width, tiny.vocab, 2)
    torch.nn.init.normal_(head.up, std=0.2)
    source = written(tmp_path / "in.jsonl", rows[:4])
    learn_file(tiny, source, tmp_path / "out", start=head, settings=FOUR)
    assert all(abs(r["loss"] - r["loss_frozen"]) > 1e-4 for r in results(tmp_path / "out"))


def test_wrong_use_is_refused(tiny, rows, tmp_path):
    source = written(tmp_path / "in.jsonl", rows[:4])
    with pytest.raises(UserError, match="no file"):
        learn_file(tiny, tmp_path / "none.jsonl", tmp_path / "out")
    with pytest.raises(UserError, match="global or cluster"):
        learn_file(tiny, source, tmp_path / "out", memory="all")
    with pytest.raises(UserError, match="do not go together"):
        learn_file(tiny, source, tmp_path / "out", layers=True, start=LoraHead(tiny.width, tiny.vocab))
    learn_file(tiny, source, tmp_path / "out", memory="cluster", clusters=2)
    with pytest.raises(UserError, match="another"):
        learn_file(tiny, source, tmp_path / "out")


def test_a_part_of_other_settings_is_refused(tiny, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "SAVED_EVERY", 1)
    source, real, calls = written(tmp_path / "in.jsonl", rows), LearningStream.__call__, []

    def dies(self, window):
        calls.append(window)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return real(self, window)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LearningStream, "__call__", dies)
        learn_file(tiny, source, tmp_path / "out", settings=FOUR)
    with pytest.raises(UserError, match="other settings"):
        learn_file(tiny, source, tmp_path / "out", resume=True, rate=0.5, settings=FOUR)
    calls.append(None)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # begun anew, and killed at once
        patch.setattr(LearningStream, "__call__", dies)
        learn_file(tiny, source, tmp_path / "out", settings=FOUR)
    learn_file(tiny, source, tmp_path / "out", resume=True, settings=FOUR)
    assert [r["id"] for r in results(tmp_path / "out")] == [row["id"] for row in rows]
