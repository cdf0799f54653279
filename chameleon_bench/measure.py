"""How a row is measured: contenders take turns, the median counts; a row with wrong outputs is reported as failed.

contenders ─ warm up once ─▶ a, b, a, b, … (interleaved) ─▶ Samples: (median, low, high, repetitions) per contender
Comparison = our sample, the peer's, how many times better, the goal · Gate = a number and its limit
"""

import contextlib
import ctypes
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from chameleon_lite.errors import UserError

MINIMUM_SECONDS = 0.02  # shorter work is repeated within one measurement, or the clock would be measured


@dataclass(frozen=True)
class Sample:
    """Repeated measurements of one contender."""

    median: float
    low: float
    high: float
    repetitions: int
    unit: str = "s"


@dataclass(frozen=True)
class Comparison:
    """Ours against one peer in one quantity, smaller being better; `peer` absent where it could not run."""

    peer: str
    quantity: str
    ours: Sample
    theirs: Sample | None
    goal: float | None  # times better, on this kind of machine; None: shown without a goal
    absent: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times better ours is."""
        return self.theirs.median / self.ours.median if self.theirs else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a goal or a peer."""
        return None if self.goal is None or self.ratio is None else self.ratio >= self.goal


@dataclass(frozen=True)
class Gate:
    """A correctness condition: the row fails unless value ≤ limit."""

    what: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        return math.isfinite(self.value) and self.value <= self.limit

    def as_json(self) -> dict[str, Any]:
        """The gate and whether it holds."""
        return asdict(self) | {"passed": self.passed}


def shown(what: str, gates: Sequence[Gate] = (), **fields) -> dict[str, Any]:
    """An entry without goals, as JSON: what was measured, whether its gates hold, and its fields."""
    status = "shown" if all(gate.passed for gate in gates) else "gate failed"
    entry = {"what": what, "status": status}
    if gates:
        entry["gates"] = [gate.as_json() for gate in gates]
    return entry | fields


class Samples(dict[str, Sample]):
    """Contenders on the same work and their samples; "ours" is one of them."""

    def against(
        self,
        goals: Mapping[str, float | None],
        quantity: str = "time",
        absent: Mapping[str, str] | None = None,
    ) -> list[Comparison]:
        """Ours against each peer in `goals` that was measured, or is in `absent` with the reason why it was not."""
        absent = absent or {}
        return [
            Comparison(peer, quantity, self["ours"], self.get(peer), goal, absent.get(peer, ""))
            for peer, goal in goals.items()
            if peer in self or peer in absent
        ]

    def median(self, name: str = "ours") -> float:
        """The median of one contender."""
        return self[name].median

    def split(self, stage: str, seconds: float, rest: str) -> dict[str, float]:
        """A profile of ours in two stages: the seconds of one, and what remains of the median."""
        return {stage: seconds, rest: max(0.0, self.median() - seconds)}


@dataclass
class Row:
    """One row of the benchmark, complete enough to be judged without its code."""

    name: str
    what: str
    comparisons: list[Comparison] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)
    limit: str = ""  # what no implementation could beat
    workload: dict[str, Any] = field(default_factory=dict)
    profile: dict[str, float] = field(default_factory=dict)  # seconds by stage of ours
    reason: str = ""  # of a missed goal
    unavailable: str = ""  # why the row could not run at all
    seconds: float = 0.0  # the whole row took

    @property
    def status(self) -> str:
        """met · missed · shown (no goal here) · gate failed · not available."""
        if self.unavailable:
            return "not available"
        if not all(gate.passed for gate in self.gates):
            return "gate failed"
        verdicts = [c.met for c in self.comparisons if c.met is not None]
        return "shown" if not verdicts else "met" if all(verdicts) else "missed"

    def as_json(self) -> dict[str, Any]:
        """The row with everything derived spelled out."""
        out = asdict(self) | {"status": self.status, "gates": [gate.as_json() for gate in self.gates]}
        for entry, c in zip(out["comparisons"], self.comparisons):
            entry |= {"ratio": c.ratio, "met": c.met}
        if self.status == "missed" and not self.reason:
            out["reason"] = _from_profile(self.profile)
        return out


def _from_profile(profile: Mapping[str, float]) -> str:
    """One line on where ours spends its time, for a row that missed its goal."""
    total = sum(profile.values())
    if not total:
        return "no profile was taken"
    shares = sorted(profile.items(), key=lambda item: -item[1])
    return "ours by stage: " + ", ".join(f"{name} {value / total:.0%}" for name, value in shares)


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
    """Time every contender `repetitions` times in turns, so that a change of the machine's load affects all."""
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
        except UserError as error:
            absent[name] = str(error)
        except Exception as error:  # a compiler or kernel that is missing must not cost the row
            absent[name] = f"did not run here: {type(error).__name__}: {str(error)[:80]}"
        else:
            contenders[name] = work
    return contenders, absent


def sample(values: list[float], unit: str = "s") -> Sample:
    """Median and spread of measurements."""
    return Sample(statistics.median(values), min(values), max(values), len(values), unit)


def scaled(measured: Sample, factor: float) -> Sample:
    """The same measurements for another amount of work, where work repeats itself exactly."""
    values = (value * factor for value in (measured.median, measured.low, measured.high))
    return Sample(*values, measured.repetitions, measured.unit)


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """Bytes that `work` holds at its highest beyond what was held before it."""
    if device.type == "cuda":
        synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        synchronise(device)
        return max(1, torch.cuda.max_memory_allocated(device) - before)
    _start_anew()
    before = status_bytes("VmRSS")
    work()
    return max(1, status_bytes("VmHWM") - before)


def _start_anew() -> None:
    """Forget the process's highest memory so far, where the system allows it; else the peak is that of its whole life.

    Freed memory goes back to the system first, so that reusing it shows as growth (with another C library than glibc
    growth may be understated).
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def status_bytes(name: str) -> int:
    """An entry of the process's memory accounts in bytes; 0 where the system has none."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
    return 0


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """‖value − expected‖ / ‖expected‖, in float64."""
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).norm() / expected.norm().clamp_min(1e-300))
