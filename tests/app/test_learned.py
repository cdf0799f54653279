"""Learning from a file: the same after a break, and what was learned kept and gone on from."""

import json

import pytest
import torch

from chameleon_lite.app import learned as learning
from chameleon_lite.app.learn import LearningStream
from chameleon_lite.app.learned import NAME, learn_file
from chameleon_lite.errors import DamagedFile, UserError
from chameleon_lite.streams.memory import LearnSettings

FOUR = LearnSettings(batch_rows=4)


def written(path, rows):
    path.write_text("".join("{\n" if isinstance(row, bytes) else json.dumps(row) + "\n" for row in rows))
    return path


def results(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def rows(some_texts):
    return [{"id": f"r{i}", "text": text} for i, text in enumerate(some_texts(26))]


@pytest.fixture
def killed(monkeypatch):
    """killed(n, model, source, out, …): learn_file, which stops before batch n, counted from 0."""

    def run(batches, *given, **how):
        real, calls = LearningStream.__call__, []

        def dies(self, window):
            calls.append(window)
            if len(calls) > batches:
                raise KeyboardInterrupt
            return real(self, window)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(LearningStream, "__call__", dies)
            learn_file(*given, **how)

    monkeypatch.setattr(learning, "SAVED_EVERY", 2)
    return run


@pytest.mark.parametrize(
    "how", [{}, {"memory": "cluster", "clusters": 3}, {"layers": True, "rank": 2}, {"on": "adapter"}]
)
@pytest.mark.parametrize("batches", [1, 3, 5])
def test_a_killed_run_goes_on_to_the_same_file_and_state(tiny, adapter, rows, tmp_path, killed, how, batches):
    source = written(tmp_path / "in.jsonl", [*rows[:9], {"text": "no"}, b"", *rows[9:]])
    how = {"rate": 0.02, "settings": FOUR} | how
    model = adapter if how.pop("on", "") else tiny
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    learn_file(model, source, whole, save=tmp_path / "1", **how)
    killed(batches, model, source, broken, save=tmp_path / "2", **how)
    assert not broken.exists() and not (tmp_path / "2").exists()
    summary = learn_file(model, source, broken, resume=True, save=tmp_path / "2", **how)
    assert broken.read_bytes() == whole.read_bytes()
    assert (tmp_path / "2" / NAME).read_bytes() == (tmp_path / "1" / NAME).read_bytes()
    assert (tmp_path / ".broken.jsonl.learned").read_bytes() == (
        tmp_path / ".whole.jsonl.learned"
    ).read_bytes()
    assert (summary.rows, summary.failed) == (28, 2)
    again = learn_file(model, source, broken, resume=True, save=tmp_path / "3", **how)  # it is complete
    assert again.gain == summary.gain and again.first_error == summary.first_error
    assert (tmp_path / "3" / NAME).read_bytes() == (tmp_path / "1" / NAME).read_bytes()
    assert [p.name for p in tmp_path.iterdir() if ".part" in p.name or p.name.endswith(".lock")] == []


def test_a_part_of_other_settings_is_refused_and_can_be_begun_anew(tiny, rows, tmp_path, killed):
    source, out = written(tmp_path / "in.jsonl", rows), tmp_path / "out"
    killed(3, tiny, source, out, settings=FOUR)
    with pytest.raises(UserError, match="leave out --resume"):
        learn_file(tiny, source, out, resume=True, rate=0.5, settings=FOUR)
    killed(0, tiny, source, out, settings=FOUR)  # begun anew, and killed at once
    learn_file(tiny, source, out, resume=True, settings=FOUR)
    assert [r["id"] for r in results(out)] == [row["id"] for row in rows]


def test_another_file_begins_where_one_was_saved(rows, tmp_path):
    source, kept = written(tmp_path / "in.jsonl", rows), tmp_path / "kept"
    first = learn_file("tiny", source, tmp_path / "1.out", save=kept, rate=0.02, settings=FOUR)
    second = learn_file(kept, source, tmp_path / "2.out", settings=FOUR)
    assert second.gain < first.gain and second.rows == first.rows == 26
    assert second.loss_without == first.loss_without
    frozen = [
        learn_file(kept, source, tmp_path / f"{n}.out", freeze_after=0, save=tmp_path / n, settings=FOUR)
        for n in "34"
    ]
    assert frozen[0].gain == frozen[1].gain < 0
    values = [learning._read(folder / NAME)[1]["memory.values"] for folder in (kept, tmp_path / "3")]
    assert torch.equal(*values)
    faster = learn_file(kept, source, tmp_path / "5.out", rate=0.05, settings=FOUR)
    assert faster.gain != second.gain


def test_what_was_learned_on_an_adapter_goes_on_with_it(adapter_folder, rows, tmp_path):
    source = written(tmp_path / "in.jsonl", rows)
    first = learn_file(adapter_folder, source, tmp_path / "1.out", save=tmp_path / "kept", rate=0.02)
    second = learn_file(tmp_path / "kept", source, tmp_path / "2.out")
    assert second.loss_without == first.loss_without and second.gain < first.gain


def test_a_saved_memory_of_another_kind_or_damaged_is_refused(rows, tmp_path):
    source, kept = written(tmp_path / "in.jsonl", rows[:4]), tmp_path / "kept"
    learn_file("tiny", source, tmp_path / "1.out", save=kept)
    with pytest.raises(UserError, match="memory cluster"):
        learn_file(kept, source, tmp_path / "2.out", memory="cluster")
    with pytest.raises(UserError, match="other weights or in another format"):
        learn_file(kept, source, tmp_path / "2.out", dtype="bfloat16")
    with pytest.raises(UserError, match="input itself"):
        learn_file(kept, source, tmp_path / "2.out", save=kept)
    (kept / NAME).write_bytes((kept / NAME).read_bytes()[:-9])
    with pytest.raises(DamagedFile, match=NAME):
        learn_file(kept, source, tmp_path / "2.out")


def test_the_command_learns_saves_and_goes_on(command, source):
    words = ["adapt", source, *"--model tiny --learn --memory cluster --rate 0.02 --device cpu".split()]
    code, out, _ = command(*words, "--out", "1.jsonl", "--save", "kept")
    assert code == 0 and "nats per token without learning" in out and "written to 1.jsonl" in out
    code, out, _ = command(
        "adapt", source, "--model", "kept", "--learn", "--freeze-after", "0", "--out", "2.jsonl"
    )
    assert code == 0 and "60 rows, 0 failed" in out
    assert {"row", "id", "tokens", "loss", "loss_without", "cluster"} == set(
        results(source.with_name("2.jsonl"))[0]
    )


def test_the_command_learns_in_the_layers_and_goes_on_there(command, source):
    words = ["adapt", source, "--learn", "--device", "cpu", "--out"]
    code, out, _ = command(*words, "head.jsonl", "--model", "tiny")
    assert code == 0
    code, out, _ = command(*words, "1.jsonl", "--model", "tiny", "--layers", "--save", "kept")
    assert code == 0 and "60 rows, 0 failed" in out
    head, both = (results(source.with_name(name)) for name in ("head.jsonl", "1.jsonl"))
    assert [r["loss_without"] for r in head] == [r["loss_without"] for r in both]
    assert head[-1]["loss"] != both[-1]["loss"]
    code, out, _ = command(*words, "2.jsonl", "--model", "kept", "--freeze-after", "0")
    assert code == 0 and results(source.with_name("2.jsonl"))[0]["loss"] != both[0]["loss"]


@pytest.mark.parametrize(
    "more, says",
    [
        (["--layers"], "--layers goes with --learn"),
        (["--learn", "--workers", "2"], "--workers goes without --learn"),
        (["--learn", "--continue", "3"], "--continue goes without --learn"),
        (["--freeze-after", "0"], "--freeze-after goes with --learn"),
        (["--save", "kept"], "--save goes with --learn"),
        (["--learn", "--memory", "globe"], "unknown memory 'globe'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(refused, source, more, says):
    refused("adapt", source, "--model", "tiny", "--out", "o.jsonl", *more, says=says)
