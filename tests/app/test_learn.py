"""Learning from rows as they pass: nothing ahead of its time, bounded whatever arrives, failed rows apart."""

import gc
import json
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from chameleon_lite import engine
from chameleon_lite.app.learn import OVERFLOW, LearningStream
from chameleon_lite.app.learned import learn_file
from chameleon_lite.app.rows import parsed
from chameleon_lite.app.stream import adapt
from chameleon_lite.backbone import load_backbone
from chameleon_lite.errors import UserError
from chameleon_lite.fast import rows
from chameleon_lite.streams.memory import LearnSettings

FOUR = LearnSettings(batch_rows=4)
WORDS = "the mean of a batch tells what kind of text it holds and little else".split()
METHODS = {
    "global": {},
    "cluster": {"memory": "cluster", "clusters": 3},
    "layers": {"layers": True, "rank": 2},
    "layers and clusters": {"layers": True, "rank": 2, "memory": "cluster", "clusters": 2},
    "on an adapter": {},
    "on an adapter, cluster": {"memory": "cluster", "clusters": 3},
}


@pytest.fixture
def model_of(tiny, adapter):
    return lambda method: adapter if "adapter" in method else tiny


def texts(count, seed=0):
    numbers = np.random.default_rng(seed)
    return [" ".join(numbers.choice(WORDS, size=numbers.integers(7, 12))) for _ in range(count)]


def learned(model, rows, rate=0.02, settings=FOUR, **how):
    """Results of all rows, and the stream afterwards."""
    stream, out = LearningStream(model, rate=rate, settings=settings, **how), []
    rows = list(parsed(rows))
    for first in range(0, len(rows), settings.batch_rows):
        out += stream(rows[first : first + settings.batch_rows])
    return out, stream


def mean_gap(rows):
    """Nats per token of all rows, with minus without learning."""
    tokens = sum(r["tokens"] for r in rows)
    return sum((r["loss"] - r["loss_without"]) * r["tokens"] for r in rows) / tokens


def test_batches_of_a_file_make_no_recordings(tiny, monkeypatch):
    """Each has a table of its own, and a recording serves one."""
    monkeypatch.setattr(rows, "rows_pass", lambda live: pytest.fail("a pass was made for a batch"))
    with engine.use("fast"):
        out, stream = learned(tiny, texts(12), **METHODS["layers"])
    assert len(out) == 12 and stream.memory.steps.max() == 3


def test_every_row_has_its_losses_and_learning_helps(tiny):
    out, stream = learned(tiny, texts(104))
    assert all(r["loss"] == pytest.approx(r["loss_without"], abs=1e-5) for r in out[:4])
    gaps = np.array([(r["loss"] - r["loss_without"]) * r["tokens"] for r in out])
    tokens, summary = np.array([r["tokens"] for r in out]), stream.summary()
    gain = gaps.sum() / tokens.sum()
    half = 1.96 * np.sqrt(((gaps - gain * tokens) ** 2).sum()) / tokens.sum()
    assert summary.gain == pytest.approx(gain) and summary.high < 0
    assert (summary.low, summary.high) == (pytest.approx(gain - half), pytest.approx(gain + half))
    assert "times as long as scoring alone" in str(summary) and "skipped" not in str(summary)
    assert (summary.rows, summary.failed, summary.tokens) == (104, 0, tokens.sum())


def test_without_learning_it_is_what_adapt_says(tiny, adapter):
    rows = [*texts(7), {"prompt": "What is it? ", "response": "the mean of a batch"}]
    for model, name in ((tiny, "loss_frozen"), (adapter, "loss")):
        expected = [r[name] for r in adapt(adapter, rows, condition="centroid")]
        out, _ = learned(model, rows, settings=LearnSettings(batch_rows=4, freeze_after=0))
        assert [r["loss_without"] for r in out] == pytest.approx(expected, rel=5e-3)  # states have 16 bits
        assert [r["loss"] for r in out] == pytest.approx([r["loss_without"] for r in out], rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
@example(change=3, later=False, seed=1)
@given(change=st.integers(0, 15), later=st.booleans(), seed=st.integers(0, 3))
@limits(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_comes_later_changes_no_number_scored_before(model_of, method, change, later, seed):
    rows = texts(16, seed)
    whole, batch_end = learned(model_of(method), rows, **METHODS[method])[0], change // 4 * 4 + 4
    other = list(rows)
    if (
        later
    ):  # the row's tokens from the fifth scored one on, and all rows after its batch, of whatever length
        other[change] = rows[change][:20] + rows[change][20:][::-1]
        other[batch_end:] = texts(16 - batch_end, seed + 100)
    else:  # all scored tokens of the row
        other[change] = rows[change][:16] + rows[change][16:].upper()
    changed = learned(model_of(method), other, **METHODS[method])[0]
    before = [n for n in range(batch_end) if n != change]
    assert [whole[n] for n in before] == [changed[n] for n in before]
    assert other[change] == rows[change] or whole[change]["loss"] != changed[change]["loss"]
    # it was learned from; the loss of a single row may stay what it is, by rounding
    if not later and batch_end < 16:
        assert [r["loss"] for r in whole[batch_end:]] != [r["loss"] for r in changed[batch_end:]]


def test_how_long_another_row_is_changes_no_cluster(tiny):
    rows = texts(4)
    longer = [*rows[:3], rows[3] + " and so on" * 3]
    how = {"memory": "cluster", "clusters": 2}
    clusters = [[r["cluster"] for r in learned(tiny, some, **how)[0]] for some in (rows, longer)]
    assert clusters[0] == clusters[1] and len(set(clusters[0])) == 2


def test_rows_that_fail_have_their_error_and_change_nothing(tiny):
    rows = texts(8)
    good, _ = learned(tiny, rows)
    bad = [*rows[:4], "short", {"other": 1}, "  ", {"prompt": "alone"}, *rows[4:]]
    out, stream = learned(tiny, bad)
    assert [("error" in r) for r in out] == [False] * 4 + [True] * 4 + [False] * 4
    assert "too short" in out[4]["error"] and "no column" in out[5]["error"]
    facts = ("tokens", "loss", "loss_without")
    assert [[r[f] for f in facts] for r in out if "error" not in r] == [[r[f] for f in facts] for r in good]
    assert (stream.summary().failed, stream.memory.failed) == (4, 0)
    assert "first: row 5: too short" in str(stream.summary())


def test_a_row_whose_states_are_not_finite_is_kept_apart(small_folder):
    model = load_backbone(str(small_folder("llama-untied")))
    with torch.no_grad():
        model.embedding[model.tokenizer("Z")["input_ids"][0]] = torch.inf
    rows = texts(8)
    good, _ = learned(model, rows)
    out, stream = learned(model, [*rows[:2], rows[2][:20] + "Z" + rows[2][20:], *rows[3:]])
    assert out[2]["error"] == OVERFLOW and stream.summary().failed == 1
    assert [r["loss"] for r in out[:2] + out[3:4]] == pytest.approx([r["loss"] for r in good[:2] + good[3:4]])
    assert all("error" not in r for r in out[4:]) and stream.memory.values.isfinite().all()


def test_a_step_that_is_not_finite_is_skipped_and_said(tiny):
    stream, rows = LearningStream(tiny, settings=FOUR), list(parsed(texts(12)))
    stream.memory.square[0, 0] = torch.inf  # as a squared gradient overflows
    out = stream(rows[:4]) + stream(rows[4:8]) + stream(rows[8:])
    assert all(r["loss"] == pytest.approx(r["loss_without"], rel=1e-6) for r in out)
    assert stream.memory.skipped == 3 and "3 steps that were not finite are skipped" in str(stream.summary())
    assert torch.equal(stream.memory.values, stream.memory.start)


GARBAGE_BOUND = 0.05  # nats per token that one row of garbage may cost the hundred rows after it


@pytest.mark.parametrize("how", [{}, {"memory": "cluster", "clusters": 3}])
def test_one_row_of_garbage_costs_the_next_hundred_less_than_the_bound(tiny, how):
    rows = texts(152)
    noise = "".join(map(chr, np.random.default_rng(1).integers(33, 127, 120)))
    clean, dirty = (learned(tiny, [*rows[:50], row, *rows[51:]], **how)[0] for row in (rows[50], noise))
    gap = mean_gap(dirty[52:]) - mean_gap(clean[52:])
    assert 0 < abs(gap) < GARBAGE_BOUND and mean_gap(dirty[52:]) < 0


def test_what_a_stream_holds_does_not_grow(tiny):
    stream, rows = LearningStream(tiny, memory="cluster", clusters=3, settings=FOUR), list(parsed(texts(40)))
    held = []
    tracemalloc.start()
    for _ in range(3):
        for first in range(0, 120, 4):
            stream(rows[first % 40 : first % 40 + 4])
        gc.collect()
        numbers = sum(value.numel() * value.element_size() for value in stream.state_dict().values())
        held.append((numbers, tracemalloc.get_traced_memory()[0]))
    tracemalloc.stop()
    assert held[0][0] == held[2][0] and held[2][1] - held[1][1] < 20_000


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" if not isinstance(row, bytes) else "{\n" for row in rows))
    return path


def test_wrong_use_is_refused(tiny, tmp_path):
    source = written(tmp_path / "in.jsonl", texts(4))
    with pytest.raises(UserError, match="no file"):
        learn_file(tiny, tmp_path / "none.jsonl", tmp_path / "out")
    with pytest.raises(UserError, match="globe"):
        learn_file(tiny, source, tmp_path / "out", memory="globe")
    assert not (tmp_path / "out").exists()
