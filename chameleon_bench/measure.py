"""How a row is measured: contenders take turns, the median counts; a row with wrong outputs has failed.

contenders ─ warm up once ─▶ a, b, a, b, … (interleaved) ─▶ Samples ─▶ comparisons, gates ─▶ row

All that is measured has its stored form from the start, a dict:
    sample      {median, low, high, repetitions, unit}
    comparison  {peer, quantity, ours, theirs, goal, absent, ratio, met}; ours and theirs are samples
    gate        {what, value, limit, passed}
    row         {what, status, comparisons, gates, limit, workload, profile, reason, unavailable}
"""

import contextlib
import ctypes
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

MINIMUM_SECONDS = 0.02  # shorter work is repeated within one measurement, or the clock would be measured


def sample(values: Sequence[float], unit: str = "s") -> dict:
    """Median and spread of repeated measurements."""
    spread = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return spread | {"repetitions": len(values), "unit": unit}


def scaled(measured: dict, factor: float) -> dict:
    """The same sample for another amount of work, where work repeats itself exactly."""
    return measured | {name: measured[name] * factor for name in ("median", "low", "high")}


class Samples(dict[str, dict]):
    """Contenders on the same work and their samples, smaller being better; "ours" is one of them."""

    def against(self, goals: dict, quantity: str = "time", absent: dict | None = None) -> list[dict]:
        """Ours against each peer in `goals` that was measured, or is in `absent` with the reason why not.

        A goal is how many times better ours should be on this kind of machine; None: shown without a goal.
        """
        absent, out = absent or {}, []
        for peer, goal in goals.items():
            if peer in self or peer in absent:
                ours, theirs = self["ours"], self.get(peer)
                ratio = theirs["median"] / ours["median"] if theirs else None
                met = None if goal is None or ratio is None else ratio >= goal
                pair = {"peer": peer, "quantity": quantity, "ours": ours, "theirs": theirs}
                out.append(pair | {"goal": goal, "absent": absent.get(peer, ""), "ratio": ratio, "met": met})
        return out

    def median(self, name: str = "ours") -> float:
        """The median of one contender."""
        return self[name]["median"]

    def split(self, stage: str, seconds: float, rest: str) -> dict[str, float]:
        """A profile of ours in two stages: the seconds of one, and what remains of the median."""
        return {stage: seconds, rest: max(0.0, self.median() - seconds)}


def gate(what: str, value: float, limit: float) -> dict:
    """A correctness condition: a row fails unless value ≤ limit."""
    return {"what": what, "value": value, "limit": limit, "passed": math.isfinite(value) and value <= limit}


def shown(what: str, gates: Sequence[dict] = (), **fields) -> dict[str, Any]:
    """An entry without goals: what was measured, whether its gates hold, and its fields."""
    status = "shown" if all(gate["passed"] for gate in gates) else "gate failed"
    return {"what": what, "status": status} | ({"gates": list(gates)} if gates else {}) | fields


def row(what: str, comparisons=(), gates=(), limit="", workload=None, profile=None, unavailable="") -> dict:
    """One row of the benchmark, complete enough to be judged without its code.

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
    return judged | why | {"reason": reason, "unavailable": unavailable}


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device, times: int = 1) -> float:
    """Seconds per call, the device's work included, over `times` calls in a row."""
    synchronise(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    synchronise(device)
    return (time.perf_counter() - started) / times


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of one call, the device's work included, and what it returned."""
    results: list = []
    return seconds_of(lambda: results.append(work()), device), results[0]


def interleaved(
    contenders: Mapping[str, Callable[[], Any]], device: torch.device, repetitions: int, warm_up: bool = True
) -> Samples:
    """Every contender `repetitions` times in turns, so that a change of the machine's load affects all."""
    calls = dict.fromkeys(contenders, 1)
    for name, work in contenders.items() if warm_up else ():
        once = seconds_of(work, device)
        if once < 1:  # the first call may have loaded or compiled
            once = seconds_of(work, device)
        calls[name] = max(1, math.ceil(MINIMUM_SECONDS / max(once, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repetitions):
        for name, work in contenders.items():
            seconds[name].append(seconds_of(work, device, calls[name]))
    return Samples({name: sample(values) for name, values in seconds.items()})


def runnable(
    makers: Mapping[str, Callable[[], Callable[[], Any]]],
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Contenders that run here, each made and tried once, and the reasons of those that do not."""
    contenders, absent = {}, {}
    for name, make in makers.items():
        try:
            work = make()
            work()
        except Exception as error:  # a compiler or kernel that is missing must not cost the row
            absent[name] = f"did not run here: {type(error).__name__}: {str(error)[:80]}"
        else:
            contenders[name] = work
    return contenders, absent


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """Bytes that `work` holds at its highest beyond what was held before it.

    On a CPU freed memory first goes back to the system, so that reusing it shows as growth (understated where
    there is no glibc), and the process's highest memory so far is forgotten, where the system allows it.
    """
    if device.type == "cuda":
        synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        synchronise(device)
        return max(1, torch.cuda.max_memory_allocated(device) - before)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    work()
    return max(1, _status_bytes("VmHWM") - before)


def _status_bytes(name: str) -> int:
    """An entry of the process's memory accounts in bytes; 0 where the system has none."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
    return 0


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """‖value − expected‖ / ‖expected‖, in float64."""
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).norm() / expected.norm().clamp_min(1e-300))
