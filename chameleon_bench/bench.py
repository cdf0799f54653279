"""The machine a row runs on, and its clock: contenders take turns, so that a change of load affects all.

contenders ─ warm up once ─▶ a, b, a, b, … (interleaved) ─▶ seconds (repetitions, contenders)
"""

import ctypes
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from chameleon_lite import Backbone, HeadWeight, TokenTable, load_backbone
from chameleon_lite.backbones.formats import matmul_dtype
from chameleon_lite.errors import RunFailed

from .workload import random_table, row_lengths

MINIMUM_SECONDS = 0.02  # shorter work is repeated within one measurement, or the clock would be measured
Work = Callable[[], Any]


@dataclass
class Bench:
    """The machine a row runs on and how much time it may take."""

    device: torch.device
    quick: bool = False
    model: str = "random-gpt2"

    def __post_init__(self) -> None:
        self.gpu = self.device.type == "cuda"
        self.wait = partial(torch.cuda.synchronize, self.device) if self.gpu else lambda: None
        self.fast = matmul_dtype(self.device)  # the format of large products here
        self.served = torch.bfloat16 if self.gpu else torch.float32  # of weights while generating
        # in that format: of a gradient's relative error, of a mean loss's distance in nats
        self.limits = (1e-5, 1e-5) if self.fast == torch.float32 else (2e-2, 2e-3)

    def size(self, cpu: int, gpu: int, quick: int) -> int:
        """A workload's size: by machine, or small enough that all rows take two minutes on two cores."""
        return quick if self.quick else gpu if self.gpu else cpu

    def seconds(self, work: Work, times: int = 1) -> float:
        """Seconds per call, the device's work included, over `times` calls in a row."""
        self.wait()
        started = time.perf_counter()
        for _ in range(times):
            work()
        self.wait()
        return (time.perf_counter() - started) / times

    def timed(self, work: Work) -> tuple[float, Any]:
        """Seconds of one call, and what it returned."""
        results: list = []
        return self.seconds(lambda: results.append(work())), results[0]

    def race(self, contenders: dict[str, Work], repetitions=5, warm_up=True, optional=()) -> pd.DataFrame:
        """Seconds of every contender, `repetitions` times in turns, at most three in a quick run.

        Those in `optional` may not run here: they stay out, and `attrs` of the frame holds the reason.
        """
        contenders, calls, absent = dict(contenders), {}, {}
        for name in optional:
            try:
                for _ in range(3):  # what records itself does so in its second call
                    contenders[name]()
            except Exception as error:  # a compiler or kernel that is missing must not cost the row
                reason = f"did not run here: {type(error).__name__}: {str(error)[:80]}"
                absent[name] = "not installed" if isinstance(error, ImportError) else reason
                del contenders[name]
        for name, work in contenders.items() if warm_up else ():
            once = self.seconds(work)
            if once < 1:  # the first call may have loaded or compiled
                once = self.seconds(work)
            calls[name] = max(1, math.ceil(MINIMUM_SECONDS / max(once, 1e-7)))
        turns = [
            {name: self.seconds(work, calls.get(name, 1)) for name, work in contenders.items()}
            for _ in range(min(repetitions, 3) if self.quick else repetitions)
        ]
        times = pd.DataFrame(turns)
        times.attrs["absent"] = absent
        return times

    def median(self, work: Work) -> float:
        """Median seconds of one piece of work by itself."""
        return float(self.race({"ours": work}, 3)["ours"].median())

    def peak(self, work: Work) -> int:
        """Bytes that `work` holds at its highest beyond what was held before it.

        On a CPU freed memory first goes back to the system, so that reusing it shows as growth (understated
        where there is no glibc), and the process's highest memory so far is forgotten, where that is allowed.
        """
        if self.gpu:
            self.wait()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            work()
            self.wait()
            return max(1, torch.cuda.max_memory_allocated(self.device) - before)
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
        work()
        return max(1, _status_bytes("VmHWM") - before)

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone in float32 on the device."""
        return load_backbone(self.model, device=self.device)

    def head_weight(self, dtype: torch.dtype | None = None) -> HeadWeight:
        """The backbone's W in a format, by default that of large products."""
        return HeadWeight(self.backbone.head.weight, self.backbone.head.bias, dtype=dtype or self.fast)

    def table(self, lengths: int | np.ndarray, *, last: bool = False) -> TokenTable:
        """Random tokens for the backbone: of these lengths (N,), or N rows as long as WikiText-2's."""
        lengths = row_lengths(lengths) if isinstance(lengths, int) else lengths
        return random_table(lengths, self.backbone.vocab, self.backbone.pad_id, last=last)


def _status_bytes(name: str) -> int:
    """An entry of the process's memory accounts; 0 where the system has none."""
    with suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+)", Path("/proc/self/status").read_text(), re.M)
        return int(found[1]) * 1024 if found else 0
    return 0


def run(*words, **environment: str) -> str:
    """What Python with these arguments printed; RunFailed with the last line of its messages."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        name = " ".join(command[command.index("-m") + 1 :][:4])
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunFailed(f"{name} … ended with code {done.returncode}: {last}")
    return done.stdout
