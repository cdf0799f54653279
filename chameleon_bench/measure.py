"""How a row is judged: the median counts, each peer has a goal, and a row with wrong outputs has failed.

All that is measured has its stored form from the start, a dict:
    sample      {median, low, high, repetitions, unit}
    comparison  {peer, quantity, ours, theirs, goal, absent, ratio, met}; ours and theirs are samples
    gate        {what, value, limit, passed}
    row         {what, status, comparisons, gates, limit, workload, profile, reason, unavailable}
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch


def sample(values: Sequence[float], unit: str = "s") -> dict:
    """Median and spread of repeated measurements."""
    spread = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return spread | {"repetitions": len(values), "unit": unit}


def scaled(measured: dict, factor: float) -> dict:
    """The same sample for another amount of work, where work repeats itself exactly."""
    return measured | {name: measured[name] * factor for name in ("median", "low", "high")}


class Samples(dict[str, dict]):
    """Contenders on the same work and their samples, smaller being better; "ours" is one of them."""

    def __init__(self, samples: dict[str, dict], absent: dict[str, str] | None = None) -> None:
        super().__init__(samples)
        self.absent = absent or {}  # why others did not run

    @classmethod
    def of_bytes(cls, sizes: dict[str, float]) -> "Samples":
        """Sizes in memory, each measured once."""
        return cls({name: sample([size], "bytes") for name, size in sizes.items()})

    def against(self, goals: dict[str, float | None], quantity: str = "time") -> list[dict]:
        """Ours against each peer in `goals` that was measured, or could not be.

        A goal is how many times better ours should be on this kind of machine; None: shown without a goal.
        """
        out, ours = [], self["ours"]
        for peer in (peer for peer in goals if peer in self or peer in self.absent):
            goal, theirs, absent = goals[peer], self.get(peer), self.absent.get(peer, "")
            ratio = theirs["median"] / ours["median"] if theirs else None
            met = None if goal is None or ratio is None else ratio >= goal
            pair = {"peer": peer, "quantity": quantity, "ours": ours, "theirs": theirs}
            out.append(pair | {"goal": goal, "absent": absent, "ratio": ratio, "met": met})
        return out

    def median(self, name: str = "ours") -> float:
        """The median of one contender."""
        return self[name]["median"]

    def rates(self, count: int, unit: str) -> dict[str, float]:
        """What each contender does in a second, of a work of `count` units."""
        return {f"{unit}/s, {name}": count / self.median(name) for name in self}

    def split(self, stage: str, seconds: float, rest: str) -> dict[str, float]:
        """A profile of ours in two stages: the seconds of one, and what remains of the median."""
        return {stage: seconds, rest: max(0.0, self.median() - seconds)}


def gate(what: str, value: float, limit: float) -> dict:
    """A correctness condition: a row fails unless value ≤ limit."""
    return {"what": what, "value": value, "limit": limit, "passed": math.isfinite(value) and value <= limit}


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """‖value − expected‖ / ‖expected‖, in float64."""
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).norm() / expected.norm().clamp_min(1e-300))


def row(
    what: str, comparisons=(), gates=(), limit="", workload=None, profile=None, unavailable="", **more
) -> dict[str, Any]:
    """One row of the benchmark, complete enough to be judged without its code, and what more it shows.

    limit: what nothing could beat; profile: seconds by stage of ours; unavailable: why it did not run.
    The status is met, missed, shown (no goal here), gate failed or not available; a missed goal has a reason.
    """
    verdicts, reason, profile = [c["met"] for c in comparisons if c["met"] is not None], "", profile or {}
    status = "shown" if not verdicts else "met" if all(verdicts) else "missed"
    if unavailable or not all(gate["passed"] for gate in gates):
        status = "not available" if unavailable else "gate failed"
    if status == "missed":
        total, stages = sum(profile.values()), sorted(profile.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{name} {value / total:.0%}" for name, value in stages)
        reason = f"ours by stage: {shares}" if shares else "no profile was taken"
    judged = {"what": what, "status": status, "comparisons": list(comparisons), "gates": list(gates)}
    why = {"limit": limit, "workload": workload or {}, "profile": profile}
    return judged | why | {"reason": reason, "unavailable": unavailable} | more
