import math

import pytest
import torch

from chameleon_bench.measure import (
    Samples,
    gate,
    interleaved,
    peak_bytes,
    relative_error,
    row,
    runnable,
    sample,
    scaled,
)

CPU = torch.device("cpu")


def comparison(ours, theirs, goal):
    measured = Samples(ours=sample([ours])) | ({"peer": sample([theirs])} if theirs else {})
    return Samples(measured).against({"peer": goal}, absent={} if theirs else {"peer": "not here"})[0]


def test_contenders_take_turns():
    calls = []
    interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, CPU, 3, warm_up=False)
    assert calls == ["a", "b"] * 3


def test_a_sample_by_hand():
    expected = {"median": 2.0, "low": 1.0, "high": 3.0, "repetitions": 3, "unit": "s"}
    assert sample([3.0, 1.0, 2.0]) == expected
    assert scaled(expected, 10) == expected | {"median": 20.0, "low": 10.0, "high": 30.0}


@pytest.mark.parametrize(("goal", "status"), [(2.0, "met"), (5.0, "missed"), (None, "shown")])
def test_status_follows_the_goals(goal, status):
    assert row("", [comparison(1.0, 4.0, goal)])["status"] == status


def test_a_failed_gate_fails_a_fast_row():
    fast = row("", [comparison(1.0, 99.0, 2.0)], [gate("error", 0.1, 0.01)])
    assert fast["status"] == "gate failed" and not fast["reason"]
    assert not gate("error", math.nan, 1.0)["passed"]


def test_a_peer_that_is_not_there_decides_nothing():
    both = row("", [comparison(1.0, 4.0, 2.0), comparison(1.0, None, 9.0)])
    assert both["status"] == "met" and both["comparisons"][1]["ratio"] is None


def test_a_missed_row_says_where_the_time_goes():
    pair = [comparison(1.0, 1.0, 2.0)]
    missed = row("", pair, profile={"softmax": 1.0, "product": 3.0})
    assert missed["reason"] == "ours by stage: product 75%, softmax 25%"
    assert row("", pair)["reason"] == "no profile was taken"


def test_ours_is_compared_with_the_peers_that_ran_and_those_that_could_not():
    times = Samples(ours=sample([1.0]), peer=sample([4.0]), product=sample([0.5]))
    goals = {"peer": 2.0, "elsewhere": None, "missing": 3.0}
    ran, absent = times.against(goals, absent={"missing": "no such library"})
    assert (ran["peer"], ran["ratio"], ran["met"]) == ("peer", 4.0, True)
    assert (absent["peer"], absent["met"], absent["absent"]) == ("missing", None, "no such library")
    assert times.split("product", 0.25, "rest") == {"product": 0.25, "rest": 0.75}


def test_a_contender_that_breaks_is_absent_with_its_reason():
    def broken():
        raise RuntimeError("no kernel image\nmore")

    calls = []
    contenders, absent = runnable({"b": lambda: broken, "c": lambda: lambda: calls.append(1)})
    assert list(contenders) == ["c"] and calls == [1]
    assert "no kernel image" in absent["b"]


def test_relative_error_by_hand():
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])) == pytest.approx(1 / 34**0.5)


def test_peak_counts_what_is_held_at_one_time():
    small = peak_bytes(lambda: torch.ones(4_000_000), CPU)
    large = peak_bytes(lambda: (torch.ones(40_000_000), torch.ones(40_000_000)), CPU)
    assert small < 100e6 < large
