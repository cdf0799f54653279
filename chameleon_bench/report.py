"""`chameleon-lite bench`: run rows, write each as it is done, print what it showed.

names ─ one row at a time ─▶ benchmarks/results/<machine>.json (other rows stay, a row run again is replaced)
"""

import datetime
import json
import os
import platform
import re
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
from joblib import cpu_count

from chameleon_lite import files
from chameleon_lite.backbones.formats import CPU_FLAGS, cpu_flags, device_of
from chameleon_lite.errors import RunFailed, UserError, known
from chameleon_study.provenance import default_command, device_name, message_from_here, provenance

from .bench import Bench
from .measure import EXTRAS, ROWS, USUAL, measured, row
from .tables import goals_frame, stored_file
from .workload import short


def run_rows(names: Sequence[str], *, device=None, quick=False, out=None, say=lambda text: None) -> dict:
    """Run the named rows (all when empty) on a device; returns what the file, at the path `out`, then holds.

    A row that breaks is recorded with its error and the others go on; RunFailed at the end names those.
    """
    known("benchmark row", names, ROWS | EXTRAS)
    bench = Bench(device_of(device), quick)
    here, failed = machine(bench), []
    path = out or Path("benchmarks") / "results" / f"{here['name']}{'-quick' if quick else ''}.json"
    stored = (stored_file(path) if path.exists() else {"rows": {}}) | {"machine": here}
    _write(path, stored)  # what cannot be written is known before anything is measured
    for name in names or USUAL:
        say(f"{name} …")
        stored["rows"][name] = entry = _run(name, bench)
        _write(path, stored)
        say(summary(entry))
        failed += [name] if entry["status"] == "failed" else []
        if bench.gpu:
            torch.cuda.empty_cache()
    if failed:
        raise RunFailed(f"did not run: {', '.join(failed)}; {path} says why, the other rows are complete")
    return stored


def _write(path: Path, stored: dict) -> None:
    with files.atomic(path) as part:
        part.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _run(name: str, bench: Bench) -> dict:
    """One row as JSON, whatever happens in it; when and with what it was measured, and how busy the machine was."""
    started = time.perf_counter()
    try:
        entry = measured(name, bench)
    except (ImportError, UserError) as error:  # something this machine lacks
        entry = row("", unavailable=message_from_here(f"not available: {error}"))
    except Exception as error:
        entry = row("", unavailable=message_from_here(f"{type(error).__name__}: {error}"))
        lines = message_from_here(traceback.format_exc()).splitlines()[-12:]
        entry |= {"status": "failed", "traceback": lines}
    seconds = time.perf_counter() - started
    facts = provenance("cpu", default_command())
    conditions = {key: facts[key] for key in ("versions", "commit", "source", "command")}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    conditions |= {"quick": bench.quick, "load average": load, "at": now}
    return entry | {"name": name, "seconds": seconds, "conditions": conditions}


def machine(bench: Bench) -> dict:
    """What the numbers were measured on."""
    cores, info = cpu_count(), Path("/proc/cpuinfo")
    name, device = f"cpu-{cores}core", device_name("cpu")
    if found := re.search(r"^model name\s*: (.*)$", info.read_text() if info.exists() else "", re.M):
        device = found[1].strip()
    if bench.gpu:
        device = device_name(str(bench.device))
        name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        name += f"-x{torch.cuda.device_count()}" if torch.cuda.device_count() > 1 else ""
    facts = {"name": name, "device": device, "cores": cores, "threads": torch.get_num_threads()}
    facts |= {"large products in": short(bench.fast), "cpu 16-bit units": sorted(CPU_FLAGS & cpu_flags())}
    return facts | {"system": f"{platform.system()} {platform.machine()}"}


def summary(entry: dict) -> str:
    """An entry as printed: status, comparisons as a table, gates that failed, why a goal was missed."""
    what = entry["what"] or entry["unavailable"]
    lines = [f"{entry['name']:<8} {entry['status']}: {what} ({entry['seconds']:.0f} s)"]
    if entry["comparisons"]:
        frame = goals_frame({"rows": {entry["name"]: entry}}).drop(columns=["row", "what"])
        lines += frame.to_string(index=False, na_rep="").splitlines()
    failed = [gate for gate in entry["gates"] if not gate["passed"]]
    lines += [f"gate failed: {g['what']} is {g['value']:.3g}, limit {g['limit']:g}" for g in failed]
    return "\n    ".join([*lines, entry["reason"]]).rstrip()
