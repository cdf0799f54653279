"""`chameleon-lite bench`: run rows, write each as it is done, print the table.

names ─ one row at a time ─▶ benchmarks/results/<machine>.json (other rows stay, a row run again is replaced)
"""

import datetime
import json
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from chameleon_lite import files
from chameleon_lite.backbones.formats import cpu_flags
from chameleon_lite.errors import RunFailed, UserError, unknown
from chameleon_study.provenance import provenance

from . import (
    growth,
    ladder,
    overhead,
    roofline,
    rows_app,
    rows_data,
    rows_generate,
    rows_head,
    rows_layers,
    rows_states,
    rows_train,
    tried,
    two_gpus,
)
from .measure import Row
from .workload import Bench, short

ROWS: dict[str, Callable[[Bench], Row]] = {
    "B1": rows_data.prepare,
    "B3": rows_data.clusters,
    "B4": rows_states.feature_pass,
    "B5": rows_head.head_time,
    "B6": rows_head.head_memory,
    "B7": rows_head.head_kernels,
    "B8": rows_train.full_sequence,
    "B9": rows_train.last_position,
    "B10": rows_layers.lora_step,
    "B11": rows_generate.one_at_a_time,
    "B12": rows_generate.adapted_against_plain,
    "B13": rows_generate.mixed_clusters,
    "B14": rows_head.shared_pass,
    "B15": rows_states.share_of_products,
    "B16": rows_app.ten_thousand,
}
EXTRAS: dict[str, Callable[[Bench], dict]] = {
    "ladder": ladder.ladder,
    "roofline": roofline.roofline,
    "tried": tried.tried,
    "growth": growth.growth,
    "overhead": overhead.overhead,
    "scaling": two_gpus.scaling,
    "workers": two_gpus.workers,
}
ON_REQUEST = ("scaling", "workers")  # these need more than one GPU


def run_rows(
    names: Sequence[str],
    *,
    device: str | None = None,
    quick: bool = False,
    out: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """Run the named rows (all when empty) on a device; returns what the file then holds.

    A row that breaks is recorded with its error and the others go on; RunFailed at the end names those.
    """
    for name in names:
        if name not in ROWS and name not in EXTRAS:
            raise unknown("benchmark row", name, [*ROWS, *EXTRAS])
    bench = Bench(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")), quick)
    here, failed = machine(bench), []
    path = out or Path("benchmarks") / "results" / f"{here['name']}{'-quick' if quick else ''}.json"
    stored = json.loads(path.read_text()) if path.is_file() else {"rows": {}}
    stored["machine"] = here
    for name in names or [name for name in (*ROWS, *EXTRAS) if name not in ON_REQUEST]:
        say(f"{name} …")
        stored["rows"][name] = entry = _run(name, bench) | {"conditions": conditions(quick)}
        with files.atomic(path) as part:
            part.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
        say(line(entry))
        failed += [name] if entry["status"] == "failed" else []
        if bench.gpu:
            torch.cuda.empty_cache()
    if failed:
        raise RunFailed(f"did not run: {', '.join(failed)}; {path} says why, the other rows are complete")
    return stored


def _run(name: str, bench: Bench) -> dict:
    """One row as JSON, whatever happens in it."""
    started = time.perf_counter()
    try:
        result = (ROWS | EXTRAS)[name](bench)
        entry = result.as_json() if isinstance(result, Row) else result
    except (ImportError, UserError) as error:  # something this machine lacks
        entry = Row(name, "", unavailable=f"not available: {error}").as_json()
    except Exception as error:
        entry = Row(name, "", unavailable=f"{type(error).__name__}: {error}").as_json()
        entry |= {"status": "failed", "traceback": traceback.format_exc().splitlines()[-12:]}
    return entry | {"name": name, "seconds": time.perf_counter() - started}


def machine(bench: Bench) -> dict:
    """What the numbers were measured on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = f"cpu-{cores}core"
    if bench.gpu:
        name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(bench.device).lower()).strip("-")
        name += f"-x{torch.cuda.device_count()}" if torch.cuda.device_count() > 1 else ""
    return {
        "name": name,
        "device": torch.cuda.get_device_name(bench.device) if bench.gpu else _cpu_name(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "large products in": short(bench.fast),
        "cpu 16-bit units": sorted({"avx512_bf16", "amx_bf16"} & cpu_flags()),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def conditions(quick: bool) -> dict:
    """When and with what a row was measured, and how busy the machine was."""
    facts = provenance("cpu", " ".join(["chameleon-lite", *sys.argv[1:]]))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    some = {key: facts[key] for key in ("versions", "commit", "source", "command")}
    return some | {"quick": quick, "load average": load, "at": now}


def line(entry: dict) -> str:
    """A row in one line or more."""
    if "comparisons" not in entry:
        return f"{entry['name']:<7} done in {entry['seconds']:.0f} s"
    if not entry["comparisons"]:
        return f"{entry['name']:<4} {entry['status']}: {entry['unavailable']}"
    lines = [f"{entry['name']:<4} {entry['status']:<11} {entry['what']}"]
    for c in entry["comparisons"]:
        goal = f", goal {c['goal']:g} ×" if c["goal"] is not None else ""
        result = c["absent"]
        if c["theirs"]:
            result = f"{c['ratio']:.2f} × ({_shown(c['ours'])} against {_shown(c['theirs'])})"
        lines.append(f"     {c['peer']}, {c['quantity']}: {result}{goal}")
    failed = [g for g in entry["gates"] if not g["passed"]]
    lines += [f"     gate failed: {g['what']} is {g['value']:.3g}, limit {g['limit']:g}" for g in failed]
    return "\n".join(lines + ([f"     {entry['reason']}"] if entry["status"] == "missed" else []))


def _shown(sample: dict) -> str:
    """A median with its spread, in a readable unit."""
    value = sample["median"]
    if sample["unit"] == "bytes":
        return f"{value / 1e6:,.0f} MB"
    spread = f" ± {(sample['high'] - sample['low']) / 2 / value:.0%}" if sample["repetitions"] > 1 else ""
    return (f"{value * 1e3:.2f} ms" if value < 1 else f"{value:.2f} s") + spread
