"""The same experiment in several processes that share one folder of runs, dealt out over the visible GPUs.

Each worker is the same command; `cache.turns` lets them split sweeps and seeds between them, so nothing is sent
from one to another and a worker that dies costs the job it had in hand. They share the processor's threads too: as many
in each as a process alone would use wait for one another.
"""

import os
import subprocess
import sys

from ..errors import RunFailed, UserError

MARK = "CHAMELEON_LITE_WORKER"


def wanted(workers: int | None) -> int:
    """How many workers to start: as asked, else one a visible GPU; 0 inside a worker or under torchrun."""
    import torch

    if MARK in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return 0
    count = torch.cuda.device_count() if workers is None else workers
    return count if count > 1 else 0


def start(workers: int, arguments: list[str]) -> None:
    """Run `chameleon-lite ARGUMENTS` in `workers` processes and wait.

    Raises RunFailed if none of them succeeds, UserError if all refuse what they were told.
    """
    import torch

    gpus = torch.cuda.device_count()
    # Where the user has not said how many threads a process may use.
    shared = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // workers))} | os.environ
    running = []
    for index in range(workers):
        own = {MARK: str(index), **({"CUDA_VISIBLE_DEVICES": str(index % gpus)} if gpus else {})}
        command = [sys.executable, "-m", "chameleon_lite.cli", *arguments]
        running.append(subprocess.Popen(command, env=shared | own, stdout=subprocess.DEVNULL))
    codes = [process.wait() for process in running]
    if set(codes) == {2}:  # the command line's code for wrong use
        raise UserError(f"none of {workers} workers could take these settings; the message above says why")
    if all(codes):
        raise RunFailed(
            f"all {workers} workers failed, the first with exit code {codes[0]}; their messages are above"
        )
