"""Processes that begin with the libraries loaded: forked from one that has them, so that none takes seconds to start.

Each is a process of its own: it can be killed, it shares the work through locks and sockets, it ends with an exit
code. What depends on how a process begins (its encoding, what is imported first, variables that a library reads when
it is imported) needs a new interpreter instead.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each job is a process forked from one that has loaded the libraries: `code` is run in `folder`, and ends by SIGKILL
# after so many changes of the file system and `delay` seconds. Answers with exit codes; with process numbers for jobs
# that it does not wait for, and with the exit codes of those when it is given their numbers.
SERVER = """
import gc, json, os, signal, sys, threading, traceback
import chameleon_lite.app.cli, chameleon_lite.app.fit, chameleon_lite.app.learned, chameleon_study.run, pandas
import chameleon_lite.chameleon, chameleon_study.claims, gguf, pyarrow.parquet, scipy.stats, sklearn.cluster
from chameleon_lite.backbone import load_backbone
load_backbone("tiny")
gc.collect(), gc.freeze()  # so that no job copies the pages of what is loaded to look through it
WRITES = os.O_WRONLY | os.O_RDWR
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}

def child(job):
    seen = 0
    def hook(event, args):
        nonlocal seen
        if event in CHANGES or event == "open" and (args[2] or 0) & WRITES:
            seen += 1
            if seen == job["after"]:
                if not job["delay"]:
                    os.kill(os.getpid(), signal.SIGKILL)
                threading.Timer(job["delay"], os.kill, (os.getpid(), signal.SIGKILL)).start()
    code = 1
    os.makedirs(job["folder"], exist_ok=True)
    os.chdir(job["folder"])
    os.environ["CHAMELEON_LITE_HOME"] = os.path.join(os.getcwd(), "home")
    os.environ.update(job["variables"])
    out = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1), os.dup2(out, 2)
    sys.addaudithook(hook)
    try:
        exec(job["code"], {"__name__": "job"})
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush(), sys.stderr.flush()
    with open(job["counted"], "w") as file:
        file.write(str(seen))
    os._exit(code)

for line in sys.stdin:
    jobs, answer = json.loads(line), []
    for job in jobs:
        answer.append(job if isinstance(job, int) else os.fork())
        if not answer[-1]:
            child(job)
    if not isinstance(jobs[0], dict) or jobs[0]["wait"]:
        answer = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in answer]
    print(json.dumps(answer), flush=True)
os._exit(0)  # the interpreter would free its libraries for seconds
"""


def command(*words) -> str:
    """The code of a job that is one command of `chameleon-lite`."""
    return f"from chameleon_lite.app.cli import main; main({list(map(str, words))!r})"


class Begun:
    """A job that runs beside the test, which may kill it."""

    returncode = None

    def __init__(self, answered, pid: int) -> None:
        self.answered, self.pid = answered, pid

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        if self.returncode is None:
            (self.returncode,) = self.answered([self.pid])
        return self.returncode

    def kill(self) -> int:
        """End it, unless it has ended; its exit code."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)  # nobody else's number before the server is asked
        return self.wait()


class Machine:
    """Starts jobs and waits for them."""

    command = staticmethod(command)

    def __init__(self, server: subprocess.Popen, folder: Path) -> None:
        self.server, self.log, self.counted = server, folder / "log", folder / "counted"

    def _answered(self, jobs: list) -> list[int]:
        self.server.stdin.write(json.dumps(jobs) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def _codes(self, code: str, folder: Path, variables: list[dict], **how) -> list[int]:
        job = {"code": code, "folder": str(folder), "log": str(self.log), "counted": str(self.counted)}
        job |= {"after": 0, "delay": 0.0, "wait": True} | how
        return self._answered([job | {"variables": own} for own in variables])

    def begin(self, code: str, folder: Path, log: Path, **variables: str) -> Begun:
        """Starts a process with environment variables of its own, and does not wait for it."""
        return Begun(self._answered, *self._codes(code, folder, [variables], log=str(log), wait=False))

    def run(
        self, code: str, folder: Path, *, after: int = 0, delay: float = 0.0, times: int = 1
    ) -> list[int]:
        """Exit codes of `times` processes at once; -9 of a killed one."""
        return self._codes(code, folder, [{}] * times, after=after, delay=delay)

    def whole(self, code: str, folder: Path) -> int:
        """Runs to the end; the number of changes it made."""
        assert self.run(code, folder) == [0], self.log.read_text()[-3_000:]
        return int(self.counted.read_text())

    def together(self, code: str, folder: Path, count: int = 2) -> str:
        """Runs as `count` processes that share the work, as `torchrun` starts them; what they said.

        `torchrun` itself starts those of tests/study/test_torchrun.py.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        all_of_it = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
        all_of_it |= {"MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
        variables = [
            {name: str(value) for name, value in (all_of_it | {"RANK": n, "LOCAL_RANK": n}).items()}
            for n in range(count)
        ]
        codes = self._codes(code, folder, variables)
        assert codes == [0] * count, self.log.read_text()[-3_000:]
        return self.log.read_text()


@pytest.fixture(scope="session")
def job_server():
    if not hasattr(os, "fork"):
        pytest.skip("no processes are forked here")
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "book", ROOT / "tests")))
    environment = os.environ | own | {"PYTHONPATH": paths}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen([sys.executable, "-c", SERVER], env=environment, text=True, **pipes)
    yield server
    server.stdin.close()
    assert server.wait(120) == 0
    server.stdout.close()


@pytest.fixture(scope="module")
def machine(job_server, tmp_path_factory):
    """Jobs of one file of tests, which share a log."""
    return Machine(job_server, tmp_path_factory.mktemp("machine"))
