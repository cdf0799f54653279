"""How a row of rows.yaml is measured and judged: the median counts, each peer has a goal, wrong outputs fail it.

    name ─ its function ─▶ samples by quantity, gates, workload, profile ─ its goals ─▶ row

All that is measured has its stored form from the start, a dict:
    sample      {median, low, high, repetitions, unit}
    comparison  {peer, quantity, ours, theirs, goal, absent, ratio, met}; ours and theirs are samples
    gate        {what, value, limit, passed}
    row         {what, status, comparisons, gates, limit, workload, profile, reason, unavailable}
"""

import math
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path

import pandas as pd
import torch
import yaml
from torch import Tensor

from .bench import Bench
from .workload import short

TABLE: dict[str, dict] = yaml.safe_load(Path(__file__).with_name("rows.yaml").read_text(encoding="utf-8"))
ROWS, EXTRAS = TABLE["rows"], TABLE["extras"] | TABLE["on request"]  # compared with peers; shown
USUAL = [*ROWS, *TABLE["extras"]]  # what is measured when nothing is named


def sample(values: pd.Series, unit: str = "s") -> dict:
    """Median and spread of repeated measurements."""
    spread = {"median": values.median(), "low": values.min(), "high": values.max()}
    return {name: float(x) for name, x in spread.items()} | {"repetitions": len(values), "unit": unit}


def compared(times: pd.DataFrame, goals: dict[str, float | None], quantity: str = "time") -> list[dict]:
    """Ours against each peer in `goals` that was measured, or that `times.attrs` says why it was not.

    times: a column per contender, "ours" one of them, smaller being better. A goal is how many times better
    ours should be on this kind of machine; None: shown without a goal.
    """
    unit = {"memory": "bytes", "interval": "1"}.get(quantity, "s")
    samples = {name: sample(times[name], unit) for name in times}
    out, ours, absent = [], samples["ours"], times.attrs.get("absent", {})
    for peer in (peer for peer in goals if peer in samples or peer in absent):
        goal, theirs = goals[peer], samples.get(peer)
        ratio = theirs["median"] / ours["median"] if theirs else None
        met = None if goal is None or ratio is None else ratio >= goal
        pair = {"peer": peer, "quantity": quantity, "ours": ours, "theirs": theirs}
        out.append(pair | {"goal": goal, "absent": absent.get(peer, ""), "ratio": ratio, "met": met})
    return out


def split(times: pd.DataFrame, stage: str, seconds: float, rest: str) -> dict[str, float]:
    """A profile of ours in two stages: the seconds of one, and what remains of the median."""
    return {stage: float(seconds), rest: max(0.0, float(times["ours"].median() - seconds))}


def gate(what: str, value: float, limit: float) -> dict:
    """A correctness condition: a row fails unless value ≤ limit."""
    passed = bool(math.isfinite(value) and value <= limit)
    return {"what": what, "value": float(value), "limit": limit, "passed": passed}


def relative_error(value: Tensor, expected: Tensor) -> float:
    """‖value − expected‖ / ‖expected‖, in float64."""
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).norm() / expected.norm().clamp_min(1e-300))


def outcome(step: Callable[[], Tensor], parameters: Iterable[Tensor], tokens: int) -> tuple[float, Tensor]:
    """The mean loss of a training step, and the gradients that it left where an optimiser reads them, flat."""
    return float(step()) / tokens, torch.cat([p.grad.flatten().float() for p in parameters])


def agreement(ours: tuple, expected: tuple, limits: tuple[float, float], label: str = "") -> list[dict]:
    """Gates of one step's outcome against another's; limits of the gradient's relative error, of the loss."""
    (loss, gradient), (expected_loss, expected_gradient) = ours, expected
    of_gradient = gate(f"gradient, relative{label}", relative_error(gradient, expected_gradient), limits[0])
    return [of_gradient, gate(f"mean loss, nats{label}", abs(loss - expected_loss), limits[1])]


def row(what, comparisons=(), gates=(), limit="", workload=None, profile=None, unavailable="", **more):
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


def measured(name: str, bench: Bench) -> dict:
    """The row of that name; raises what its function raises."""
    about = (ROWS | EXTRAS)[name]
    file, function = about["run"].split(".")
    module = import_module(f".{file}", __package__)  # the other rows' files are not loaded
    sizes = {size: bench.size(*values) for size, values in about.get("sizes", {}).items()}
    found = getattr(module, function)(bench, **sizes, **about.get("options", {}))
    workload = {size.replace("_", " "): value for size, value in sizes.items()} | found.pop("workload", {})
    samples, comparisons = found.pop("samples", {}), []
    peers_of = {q.format(fast=short(bench.fast)): peers for q, peers in about.get("goals", {}).items()}
    for quantity, peers in ((q, peers) for q, peers in peers_of.items() if q in samples):
        # quick runs are too small for any goal
        goals = {peer: None if bench.quick else pair[bench.gpu] for peer, pair in peers.items()}
        comparisons += compared(samples[quantity], goals, quantity)
        beside = samples[quantity].drop(columns=["ours", *peers], errors="ignore").median()
        workload |= {f"s, {contender}": seconds for contender, seconds in beside.items()}
    return row(about["what"], comparisons, limit=about.get("limit", ""), workload=workload, **found)
