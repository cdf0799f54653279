import math

import pandas as pd
import pytest
import torch

from chameleon_bench.bench import Bench
from chameleon_bench.measure import compared, gate, relative_error, row, sample, split

BENCH = Bench(torch.device("cpu"))


def timed(absent=None, **seconds):
    """Times of contenders, as a race gives them."""
    times = pd.DataFrame({name: [value] for name, value in seconds.items()})
    times.attrs["absent"] = absent or {}
    return times


def comparison(ours, theirs, goal):
    times = timed(ours=ours, peer=theirs) if theirs else timed({"peer": "not here"}, ours=ours)
    return compared(times, {"peer": goal})[0]


def test_contenders_take_turns():
    calls = []
    BENCH.race({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, warm_up=False)
    assert calls == ["a", "b"] * 3


def test_a_sample_by_hand():
    expected = {"median": 2.0, "low": 1.0, "high": 3.0, "repetitions": 3, "unit": "s"}
    assert sample(pd.Series([3.0, 1.0, 2.0])) == expected


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
    times = timed({"missing": "no such library"}, ours=1.0, peer=4.0, product=0.5)
    goals = {"peer": 2.0, "elsewhere": None, "missing": 3.0}
    ran, absent = compared(times, goals)
    assert (ran["peer"], ran["ratio"], ran["met"]) == ("peer", 4.0, True)
    assert (absent["peer"], absent["met"], absent["absent"]) == ("missing", None, "no such library")
    assert split(times, "product", 0.25, "rest") == {"product": 0.25, "rest": 0.75}
    assert compared(times, goals, "memory")[0]["ours"]["unit"] == "bytes"


def test_a_contender_that_breaks_is_absent_with_its_reason():
    def broken():
        raise RuntimeError("no kernel image\nmore")

    def missing():
        import no_such_library  # noqa: F401

    calls = []
    contenders = {"ours": lambda: None, "b": broken, "d": missing, "c": lambda: calls.append(1)}
    times = BENCH.race(contenders, 2, warm_up=False, optional=["b", "d", "c"])
    assert times.attrs["absent"].pop("d") == "not installed"
    assert list(times) == ["ours", "c"] and len(times) == 2 and len(calls) == 3 + 2
    assert "no kernel image" in times.attrs["absent"]["b"]


def test_relative_error_by_hand():
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])) == pytest.approx(1 / 34**0.5)


def test_peak_counts_what_is_held_at_one_time():
    small = BENCH.peak(lambda: torch.ones(4_000_000))
    large = BENCH.peak(lambda: (torch.ones(40_000_000), torch.ones(40_000_000)))
    assert small < 100e6 < large
