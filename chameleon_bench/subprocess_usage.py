"""Runs a command of the package in a subprocess and reports wall time, processor time and peak memory.

    run(["adapt", …]) ─▶ python -m chameleon_bench.subprocess_usage FILE adapt … ─▶ FILE (JSON) ─▶ Usage

The peak is the whole process's, interpreter and libraries included: what a machine must have, not what was added.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chameleon_lite.errors import RunFailed

from .measure import status_bytes


@dataclass(frozen=True)
class Usage:
    """What a command used: seconds on the clock and of the processor, and bytes of memory at its highest."""

    seconds: float
    processor_seconds: float
    peak_bytes: int


def run(arguments: Sequence[str], threads: int) -> Usage:
    """Run `chameleon-lite` with these arguments on so many threads; RunFailed, with its last line, if it fails."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "usage.json"
        command = [sys.executable, "-m", __name__, str(file), *arguments]
        started = time.perf_counter()
        done = subprocess.run(command, env=os.environ | limits, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RunFailed(f"chameleon-lite {arguments[0]} ended with code {done.returncode}: {last}")
        return Usage(seconds, **json.loads(file.read_text()))


def highest_bytes() -> int:
    """The most memory this process has held, bytes."""
    import resource  # absent on Windows

    # Linux hands `ru_maxrss` of the process that starts a program on to that program; VmHWM is the program's own.
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return status_bytes("VmHWM") or used * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    target, sys.argv = Path(sys.argv[1]), ["chameleon-lite", *sys.argv[2:]]
    runpy.run_module("chameleon_lite", run_name="__main__")  # leaves by SystemExit where it fails
    target.write_text(json.dumps({"processor_seconds": time.process_time(), "peak_bytes": highest_bytes()}))
