"""Jobs shared out by an existing engine: this process, processes of this machine (loky, in joblib), or a Dask cluster.

    jobs ─▶ function(common, job) in a free process ─▶ (job, result), as they come or in the jobs' order

A job returns its results and writes nothing, so no disk is shared. `common` is what every job needs; a process gets it
once. The job of a process that dies is given to another.
"""

import copy
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from contextlib import ExitStack
from itertools import islice
from typing import Any

from ..errors import RunFailed, Unreachable, UserError

LIVES = 3  # times in a row that processes may die before the jobs are given up
LOST = "workers keep dying (out of memory?) or their scheduler is gone; results are kept: go on with fewer workers"
CONNECT, WAIT = 10, 60  # seconds for a scheduler to answer, and for its first worker
_common: Any = None  # in a process of this machine: what every job needs
_alone = threading.Lock()  # a Dask worker may have several threads; random numbers are the process's


class Workers:
    """`workers` processes of this machine, or the workers of the Dask scheduler at `dask`; with neither, this process.

    A context manager. Raises UserError for both at once or where Dask is missing, Unreachable without a scheduler.
    """

    def __init__(self, common: Any, workers: int | None = None, dask: str | None = None) -> None:
        if workers and dask:
            raise UserError("--workers and --dask exclude each other: choose one")
        self.common, self.count, self.dask = common, workers or 1, dask
        self.alone = self.count == 1 and dask is None

    def __enter__(self) -> "Workers":
        self.open = ExitStack()
        if self.dask:
            self._connect(self.dask)
        elif not self.alone:
            self._start()
        return self

    def __exit__(self, kind, *_) -> None:
        hook = threading.excepthook
        if kind is not None:  # broken off: loky's own thread may trip over jobs that are gone
            threading.excepthook = _but_loky(hook)
        try:
            self.open.close()  # waits for that thread
        finally:
            threading.excepthook = hook

    def share(self, function: Callable, jobs: Iterable, ordered: bool = False) -> Iterator[tuple]:
        """Yield (job, result) for every result of function(common, job), `ordered` in the jobs' order.

        At most two jobs per worker are out at a time; the iterable is read no further than that.
        Raises what a job raises, and RunFailed where workers keep dying.
        """
        if self.alone:
            for job in jobs:
                yield from ((job, result) for result in function(self.common, job))
            return
        jobs, running, deaths = iter(jobs), [], 0
        while True:
            width = max(1, len(self.client.nthreads())) if self.dask else self.count
            free = max(0, 2 * width - len(running))
            running += [(self._submit(function, job), job) for job in islice(jobs, free)]
            if not running:
                return
            awaited = running[:1] if ordered else running
            wait([future for future, _ in awaited], return_when=FIRST_COMPLETED)
            future, job = next(pair for pair in awaited if pair[0].done())
            try:
                results = future.result()
            except BrokenExecutor as error:
                deaths += 1
                if deaths == LIVES:
                    raise RunFailed(LOST) from error
                fine = [future.done() and future.exception() is None for future, _ in running]
                running = [(f if ok else self._submit(function, j), j) for ok, (f, j) in zip(fine, running)]
                continue
            except self.fatal as error:  # the scheduler had given the job to several workers, or is gone
                raise RunFailed(LOST) from error
            deaths = 0
            running.remove((future, job))
            yield from ((job, result) for result in results)

    def _submit(self, function: Callable, job: Any) -> Future:
        try:
            return self.pool.submit(_with_common, function, self.sent, job)
        except BrokenExecutor:
            self._start()
            return self._submit(function, job)

    def _start(self) -> None:
        """Processes of this machine, a GPU for each where there are several, the processor's threads shared out."""
        import torch
        from joblib.externals.loky import ProcessPoolExecutor

        self.fatal, self.sent, gpus = (), None, _gpus()
        threads = max(1, torch.get_num_threads() // self.count)
        env = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        self.pool = ProcessPoolExecutor(self.count, env=env, initializer=_begin, initargs=(self.common, gpus))
        self.open.callback(self.pool.shutdown, wait=True, kill_workers=True)

    def _connect(self, address: str) -> None:
        """The cluster's workers; `common` is a task's result, so that it survives any worker that holds it."""
        try:
            import dask
            from distributed import Client, KilledWorker
        except ImportError:
            raise UserError('a Dask cluster needs: pip install "chameleon-lite[cluster]"') from None
        try:
            self.client = self.open.enter_context(Client(address, timeout=CONNECT, set_as_default=False))
            self.client.wait_for_workers(1, timeout=WAIT)
        except (OSError, ValueError) as error:
            raise Unreachable(f"no Dask scheduler with workers at {address}: {error}") from None
        self.fatal, self.pool = (KilledWorker, CancelledError), self.client.get_executor()
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "10GB"}):
            self.sent = self.client.submit(copy.copy, self.common, pure=False)


def _but_loky(hook: Callable) -> Callable:
    """The hook for threads that end in an error, but for the thread in which loky gives out work."""
    return lambda error: getattr(error.thread, "name", "") == "ExecutorManagerThread" or hook(error)


def check_device(device: str | None) -> None:
    """Refuse one GPU by its number where workers share the work."""
    if device and ":" in device:
        raise UserError(f"{device} is one GPU, and every worker takes its own: give cuda, or leave it out")


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return [str(i) for i in range(count)] if named is None else named.split(",")[:count]


def _begin(common: Any, gpus: list[str]) -> None:
    """A process of this machine begins: before CUDA is first used it takes a GPU by its number.

    A terminal sends Ctrl-C to every process; only the first one reports it, and then ends the others.
    """
    import multiprocessing
    import re
    import signal

    global _common
    _common = common
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if len(gpus) > 1:
        number = re.findall(r"\d+", multiprocessing.current_process().name)[-1]  # LokyProcess-3
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(number) % len(gpus)]


def _with_common(function: Callable, common: Any, job: Any) -> list:
    """A job's results; without `common` from a process that got it when it began."""
    with _alone:
        return list(function(_common if common is None else common, job))
