import json
import signal
import tracemalloc

import pytest
import torch

from chameleon_lite.app import score
from chameleon_lite.app.stream import adapt, adapt_file
from chameleon_lite.errors import UserError


def write(path, rows):
    path.write_bytes(
        b"".join(
            r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in rows
        )
    )
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_three_lines_and_results_in_order(adapter, some_texts):
    results = adapt(adapter, some_texts(20))
    assert [r["row"] for r in results] == list(range(1, 21))
    assert {r["cluster"] for r in results} == {0, 1, 2}
    for r in results:
        assert set(r) == {
            "row",
            "id",
            "cluster",
            "distance",
            "rows",
            "tokens",
            "truncated",
            "loss",
            "loss_frozen",
        }
        assert 0 < r["loss"] < 500 and r["loss"] != r["loss_frozen"] and 0 <= r["distance"] <= 2


def test_loss_is_the_models_own(adapter, some_texts):
    """Against the wrapper's forward with labels, one row at a time, conditioned by its first 16 tokens."""
    texts = some_texts(3)
    for result, text in zip(adapt(adapter, texts, condition="row"), texts):
        ids = torch.tensor([adapter.tokenizer(text)["input_ids"]])
        labels = ids.clone()
        labels[:, :16] = -100
        vector = torch.nn.functional.normalize(adapter.backbone.embedding[ids[0, :16]].mean(0), dim=0)
        with torch.no_grad():
            adapted = adapter(ids, labels=labels, condition=vector[None]).loss
            frozen = adapter(ids, labels=labels).loss
        assert result["loss"] == pytest.approx(float(adapted), rel=1e-5)
        assert result["loss_frozen"] == pytest.approx(float(frozen), rel=1e-5)
        assert result["tokens"] == ids.shape[1] - 16


def test_one_hyper_network_call_a_window(adapter, some_texts, monkeypatch):
    calls, factors = [], adapter.head.factors
    monkeypatch.setattr(adapter.head, "factors", lambda c: calls.append(c.groups) or factors(c))
    adapt(adapter, some_texts(20))
    assert calls == [3]
    adapt(adapter, some_texts(20), window=10)
    assert calls == [3, 3, 3]


def test_condition_reads_nothing_that_is_scored(adapter, some_texts):
    texts = some_texts(6)
    changed = [t[:16] + "".join(reversed(t[16:])) for t in texts]
    same = [(r["cluster"], r["distance"]) for r in adapt(adapter, texts)]
    assert [(r["cluster"], r["distance"]) for r in adapt(adapter, changed)] == same


def test_centroid_and_row_do_not_depend_on_neighbours_and_cluster_does(adapter, some_texts):
    texts = some_texts(9)
    for mode in ("centroid", "row"):
        together = [r["loss"] for r in adapt(adapter, texts, condition=mode)]
        alone = [adapt(adapter, [t], condition=mode)[0]["loss"] for t in texts]
        assert together == pytest.approx(alone, rel=1e-5)
    together = [r["loss"] for r in adapt(adapter, texts)]
    assert together != pytest.approx([adapt(adapter, [t])[0]["loss"] for t in texts], rel=1e-5)


def test_mixed_windows_equal_clusters_apart(adapter, some_texts, apart):
    texts = some_texts(12)
    together = adapt(adapter, texts)
    group = torch.tensor([r["cluster"] for r in together])
    separate = apart(lambda rows: adapt(adapter, [texts[i] for i in rows]), group)
    assert [r["loss"] for r in together] == pytest.approx([r["loss"] for r in separate], rel=1e-5)


def test_prompts_and_responses(adapter):
    row = {"prompt": "What is the mean? ", "response": "It is the sum over the count."}
    (result,) = adapt(adapter, [row])
    assert result["tokens"] == len(row["response"])
    (short,) = adapt(adapter, [row | {"response": "short"}])
    assert short["error"] == "too short: it needs 8 scored tokens"


def test_continues_prompts_of_all_clusters_in_one_batch(adapter, some_texts):
    texts = some_texts(7)
    together = adapt(adapter, texts, new_tokens=5, condition="row", batch=7)
    alone = [adapt(adapter, [t], new_tokens=5, condition="row")[0] for t in texts]
    assert [r["continuation"] for r in together] == [r["continuation"] for r in alone]
    assert all(r["tokens"] <= 5 and "loss" not in r for r in together)


def test_clustered_among_themselves(adapter, some_texts):
    results = adapt(adapter, some_texts(12), clusters=2)
    assert {r["cluster"] for r in results} == {0, 1}
    assert [r["cluster"] for r in adapt(adapter, some_texts(1), clusters=5)] == [0]
    with pytest.raises(UserError, match="cannot make 0 clusters"):
        adapt(adapter, some_texts(2), clusters=0)


def test_rows_that_fail_are_reported_and_kept(adapter, tmp_path):
    good = {"id": "a", "text": "a text that is long enough to be scored, and more"}
    source = write(
        tmp_path / "in.jsonl",
        [
            good,
            {"text": ""},
            b'{"text": "\xff\xfe"}\n',
            {"text": "short"},
            b"{\n",
            good,
            {"id": 3, "text": "Привет, мир! Здравствуйте. 你好，世界"},
            b"7\n",
        ],
    )
    summary = adapt_file(adapter, source, tmp_path / "out.jsonl")
    results = lines(tmp_path / "out.jsonl")
    assert [r["row"] for r in results] == list(range(1, 9)) and summary.rows == 8 and summary.failed == 5
    assert [r["id"] for r in results] == ["a", "2", "3", "4", "5", "a", "3", "8"]
    errors = [r.get("error", "") for r in results]
    assert errors[1] == "no text to score" and "not UTF-8" in errors[2] and "too short" in errors[3]
    assert (
        "not JSON" in errors[4]
        and "object or a string" in errors[7]
        and not (errors[0] or errors[5] or errors[6])
    )
    assert results[0]["loss"] == results[5]["loss"]
    assert summary.first_error == "row 2: no text to score" and "5 failed" in str(summary)


@pytest.mark.parametrize("texts", [[], [""], ["   "], ["x"]])
def test_nothing_to_do_is_no_error(adapter, texts):
    assert [("error" in r) for r in adapt(adapter, texts)] == [True] * len(texts)
    assert all("error" in r or r["tokens"] for r in adapt(adapter, texts, new_tokens=3))


def test_text_longer_than_the_context_is_cut_and_said_to_be(adapter):
    long = "words and more words " * 200_000
    (scored,) = adapt(adapter, [long])
    assert scored["truncated"] and scored["tokens"] == 128 - 16
    (exact,) = adapt(adapter, [long[:128]])
    assert not exact["truncated"] and exact["loss"] == pytest.approx(scored["loss"])
    (continued,) = adapt(adapter, [long + "the end"], new_tokens=4)
    (tail,) = adapt(adapter, [(long + "the end")[-508:]], new_tokens=4)
    assert (
        continued["truncated"] and not tail["truncated"] and continued["continuation"] == tail["continuation"]
    )


def test_a_row_of_full_length_can_be_written(adapter, tmp_path):
    source = write(tmp_path / "in.jsonl", ["x" * 128, "x" * 129])
    assert adapt_file(adapter, source, tmp_path / "out.jsonl").failed == 0
    assert [r["truncated"] for r in lines(tmp_path / "out.jsonl")] == [False, True]


def test_only_a_finite_number_is_a_result(adapter, some_texts, monkeypatch):
    monkeypatch.setattr(score, "token_losses", lambda h, *a, **b: torch.full((2, len(h)), torch.nan))
    assert {r["error"] for r in adapt(adapter, some_texts(3))} == {"loss is not finite"}


def test_resumed_file_equals_the_unbroken_one(adapter, some_texts, tmp_path, monkeypatch):
    source = write(tmp_path / "in.jsonl", some_texts(50))
    adapt_file(adapter, source, tmp_path / "whole.jsonl", window=8)
    original, calls = score.Adapter.__call__, []

    def breaks(self, rows):
        calls.append(len(rows))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, rows)

    monkeypatch.setattr(score.Adapter, "__call__", breaks)
    with pytest.raises(KeyboardInterrupt):
        adapt_file(adapter, source, tmp_path / "out.jsonl", window=8)
    part = tmp_path / "out.jsonl.part"
    with open(part, "ab") as file:
        file.write(b'{"row": 25, "id": "25"}\n{"row": 26, "to')  # a torn end, as a kill leaves it
    calls.extend([0] * 10)
    adapt_file(adapter, source, tmp_path / "out.jsonl", window=8, resume=True)
    assert calls[14:] == [8, 8, 8, 2]  # 24 of 50 rows were answered
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {
        "in.jsonl",
        "whole.jsonl",
        ".whole.jsonl.made",
        "out.jsonl",
        ".out.jsonl.made",
    }
    adapt_file(adapter, source, tmp_path / "out.jsonl", window=8, resume=True)  # complete: left as it is
    assert calls[14:] == [8, 8, 8, 2]


@pytest.mark.parametrize("left", ["part", "whole"])
@pytest.mark.parametrize("change", ["settings", "input", "adapter"])
def test_another_run_is_not_resumed(adapter, some_texts, tmp_path, monkeypatch, change, left):
    source = write(tmp_path / "in.jsonl", some_texts(6))
    how = {"window": 2, "condition": "row"}
    if left == "part":
        original = score.Adapter.__call__
        full = [2]  # windows until the interruption
        monkeypatch.setattr(
            score.Adapter,
            "__call__",
            lambda self, rows: full.pop() and original(self, rows) if full else 1 / 0,
        )
        with pytest.raises(ZeroDivisionError):
            adapt_file(adapter, source, tmp_path / "out.jsonl", **how)
        monkeypatch.setattr(score.Adapter, "__call__", original)
    else:
        adapt_file(adapter, source, tmp_path / "out.jsonl", **how)
    before = {p.name: p.read_bytes() for p in tmp_path.glob("*out*")}
    if change == "settings":
        how["condition"] = "centroid"
    if change == "input":
        write(source, some_texts(7))
    if change == "adapter":
        monkeypatch.setattr(adapter, "adapter_state", lambda: {"head": torch.ones(1)})
    with pytest.raises(UserError, match="these settings, this adapter and this input"):
        adapt_file(adapter, source, tmp_path / "out.jsonl", resume=True, **how)
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*out*")} == before


def test_memory_does_not_grow_with_the_rows(adapter, some_texts, tmp_path):
    """Ten times the rows take no more memory: 1,800 results alone, kept, would be over 1 MB."""
    peaks = []
    for count in (200, 2_000):
        source = write(tmp_path / f"{count}.jsonl", some_texts(count))
        tracemalloc.start()
        summary = adapt_file(adapter, source, tmp_path / f"{count}.out", condition="centroid", window=64)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert summary.rows == count and summary.failed == 0
    assert peaks[1] - peaks[0] < 5e5  # bytes
    results = lines(tmp_path / "2000.out")
    few = adapt(adapter, some_texts(2_000)[1_000:1_020], condition="centroid")
    assert [r["loss"] for r in results[1_000:1_020]] == pytest.approx([r["loss"] for r in few], rel=1e-5)


KILLED = """
import os, signal
from chameleon_lite.app import score
scored, windows = score.Adapter.__call__, []
def until(self, window):
    windows.append(window)
    if len(windows) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return scored(self, window)
score.Adapter.__call__ = until
"""


def test_killed_for_real_and_resumed(adapter_folder, some_texts, tmp_path, machine):
    """Killed at random points: tests/study/test_killed_runs.py."""
    source = write(tmp_path / "in.jsonl", some_texts(640))
    words = ("adapt", source, "--model", adapter_folder, "--window", 64, "--device", "cpu")
    adapting = machine.command(*words, "--out", "out.jsonl")
    assert machine.run(KILLED + adapting, tmp_path) == [-signal.SIGKILL]
    part = tmp_path / "out.jsonl.part"
    assert part.is_file() and not (tmp_path / "out.jsonl").exists()
    assert len(part.read_text().splitlines()) > 64
    machine.whole(machine.command(*words, "--out", "out.jsonl", "--resume"), tmp_path)
    machine.whole(machine.command(*words, "--out", "whole.jsonl"), tmp_path)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
