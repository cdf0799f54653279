"""Kernels that have the slow imports of the pages behind them: each is a copy, by fork, of one process.

    fork server, imports `preloaded` of build.yaml ─┬─ fork ─▶ kernel of the first page
                                                    └─ fork ─▶ kernel of the second page …

Without it a page begins with three to eight seconds of processor time. Only imports are shared: nothing is
computed before a copy is made, and of threads there are those of OpenBLAS and of pyarrow's memory alone, which
end before a fork and begin anew after it. Where it is not safe, beside a GPU or on a system other than Linux,
kernels start as usual.
"""

import multiprocessing
import os
import sys
from pathlib import Path

import pandas
import torch
from jupyter_client import AsyncKernelManager

SAFE = sys.platform == "linux" and not torch.cuda.is_available()
FORK = multiprocessing.get_context("forkserver" if SAFE else "spawn")


class Process(FORK.Process):
    """A forked process with what jupyter_client asks of a Popen."""

    stdin = stdout = stderr = None
    poll = property(lambda self: lambda: self.exitcode)
    wait = FORK.Process.join

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


class Kernel(AsyncKernelManager):
    """A manager for nbclient; a subclass for each notebook names the file for what goes to the kernel's stderr."""

    output = Path(os.devnull)

    async def _async_launch_kernel(self, kernel_cmd: list[str], **how) -> None:
        with open(self.output, "a") as output:
            if not SAFE:
                return await super()._async_launch_kernel(kernel_cmd, stderr=output, **how)
        given = (self.connection_file, how["env"], how["cwd"], self.output.resolve())  # it changes its folder
        self.provisioner.process = process = Process(target=serve, args=given, daemon=True)
        process.start()  # a daemon: it ends with the build
        self.provisioner.pid = self.provisioner.pgid = process.pid


def serve(connection_file: str, env: dict[str, str], cwd: str, output: Path) -> None:
    """In the copy: be a kernel in a session of its own, as if started by a command."""
    from ipykernel.kernelapp import IPKernelApp  # beside it tqdm would warn that there are no widgets

    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    with open(output, "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    pandas.set_option("display.max_columns", 20)  # its default where it finds a kernel around it at import
    multiprocessing.current_process().daemon = False  # pages start processes of their own
    IPKernelApp.launch_instance(argv=["-f", connection_file, f"--IPKernelApp.parent_handle={os.getppid()}"])
