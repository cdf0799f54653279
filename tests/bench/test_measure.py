import math
import time

import pytest
import torch

from chameleon_bench.measure import (
    Comparison,
    Gate,
    Row,
    Sample,
    host_seconds,
    interleaved,
    peak_bytes,
    relative_error,
    sample,
    scaled,
)
from chameleon_bench.rows_head import launching

CPU = torch.device("cpu")


def comparison(ours, theirs, goal):
    return Comparison("peer", "time", sample([ours]), sample([theirs]) if theirs else None, goal)


def test_contenders_take_turns():
    calls = []
    interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, CPU, 3, warm_up=False)
    assert calls == ["a", "b"] * 3


def test_a_sample_by_hand():
    assert sample([3.0, 1.0, 2.0]) == Sample(2.0, 1.0, 3.0, 3)
    assert scaled(sample([3.0, 1.0, 2.0]), 10).median == 20.0


@pytest.mark.parametrize(("goal", "status"), [(2.0, "met"), (5.0, "missed"), (None, "shown")])
def test_status_follows_the_goals(goal, status):
    assert Row("X", "", [comparison(1.0, 4.0, goal)]).status == status


def test_a_failed_gate_fails_a_fast_row():
    row = Row("X", "", [comparison(1.0, 99.0, 2.0)], [Gate("error", 0.1, 0.01)])
    assert row.status == "gate failed"
    assert not Gate("error", math.nan, 1.0).passed


def test_a_peer_that_is_not_there_decides_nothing():
    row = Row("X", "", [comparison(1.0, 4.0, 2.0), comparison(1.0, None, 9.0)])
    assert row.status == "met" and row.as_json()["comparisons"][1]["ratio"] is None


def test_a_missed_row_says_where_the_time_goes():
    row = Row("X", "", [comparison(1.0, 1.0, 2.0)], profile={"product": 3.0, "softmax": 1.0})
    assert row.as_json()["reason"] == "ours by stage: product 75%, softmax 25%"


def test_what_the_host_takes_is_one_calls_time():
    calls = []
    assert 0.01 <= host_seconds(lambda: calls.append(time.sleep(0.01)), CPU) < 1 and len(calls) == 1
    assert launching(0.004, 0.001, 0.003) == (
        "one product h·Wᵀ is 25% of ours; the host takes 3.00 ms to tell the GPU what a step of 4.00 ms is"
    )


def test_relative_error_by_hand():
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])) == pytest.approx(1 / 34**0.5)


def test_peak_counts_what_is_held_at_one_time():
    small = peak_bytes(lambda: torch.ones(4_000_000), CPU)
    large = peak_bytes(lambda: (torch.ones(40_000_000), torch.ones(40_000_000)), CPU)
    assert small < 100e6 < large
