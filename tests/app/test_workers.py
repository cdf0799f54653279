"""What the engines promise: every job once, order where asked for, few jobs out at a time, deaths survived."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from chameleon_lite.app.workers import LIVES, Workers, _gpus
from chameleon_lite.errors import RunFailed, Unreachable, UserError


def squares(common, job):
    """Two results per job; a job below 0 fails."""
    if job < 0:
        raise UserError(f"no root of {job}")
    yield common + job**2
    yield os.getpid()


def dies_once(common, job):
    """Kill this process the first time that job 3 runs on this machine."""
    if job == 3 and not Path(common).exists():
        Path(common).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    yield job


def always_dies(common, job):
    """Kill the process."""
    os.kill(os.getpid(), signal.SIGKILL)
    yield


def slow_first(common, job):
    """The first job takes longest."""
    time.sleep(0.5 if job == 0 else 0)
    yield job


def this_gpu(common, job):
    """What the process sees."""
    time.sleep(0.5)
    yield os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


def test_one_process_takes_each_job_when_the_results_before_it_are_used():
    taken = []
    with Workers(10) as crew:
        shared = crew.share(squares, (taken.append(job) or job for job in range(3)))
        assert next(shared) == (0, 10) and taken == [0]
        assert [result for _, result in shared] == [os.getpid(), 11, os.getpid(), 14, os.getpid()]


def test_processes_give_every_result_once_and_are_not_this_one():
    with Workers(10, workers=2) as crew:
        results = list(crew.share(squares, range(6)))
        assert sorted(r for job, r in results if r == 10 + job**2) == [10 + j**2 for j in range(6)]
        assert len(results) == 12 and os.getpid() not in {r for _, r in results}
        with pytest.raises(UserError, match="no root of -1"):
            list(crew.share(squares, [1, -1]))


def test_order_and_a_bound_on_the_jobs_that_are_out():
    taken, used = [], []
    with Workers(None, workers=2) as crew:
        for job, _ in crew.share(slow_first, (taken.append(j) or j for j in range(12)), ordered=True):
            assert len(taken) - len(used) <= 4  # twice the workers, although the first job is slow
            used.append(job)
    assert used == list(range(12))


def test_a_process_that_dies_costs_its_job_which_another_takes(tmp_path):
    with Workers(str(tmp_path / "died"), workers=2) as crew:
        assert sorted(result for _, result in crew.share(dies_once, range(8))) == list(range(8))
    assert (tmp_path / "died").exists()


def test_a_job_that_kills_every_process_is_given_up():
    with Workers(None, workers=2) as crew, pytest.raises(RunFailed, match="keep dying"):
        list(crew.share(always_dies, range(LIVES)))


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr("chameleon_lite.app.workers._gpus", lambda: ["5", "7"])
    with Workers(None, workers=2) as crew:
        seen = {result for _, result in crew.share(this_gpu, range(4))}
    assert sorted(gpu for _, gpu in seen) == ["5", "7"]


def test_gpus_are_named_as_the_environment_names_them(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-4")
    assert _gpus() == ["3", "GPU-4"]


def test_no_scheduler_is_one_line(monkeypatch):
    monkeypatch.setattr("chameleon_lite.app.workers.CONNECT", 1)
    with pytest.raises(Unreachable, match="no Dask scheduler"), Workers(None, dask="tcp://127.0.0.1:9"):
        pass


def test_windows_over_two_processes_are_the_file_of_one(adapter_folder, some_texts, command):
    Path("in.jsonl").write_text("".join(json.dumps(t) + "\n" for t in [*some_texts(50), "short"]))
    for name, more in (("one", []), ("two", ["--workers", "2"])):
        words = ("--window", 8, "--model", adapter_folder, "--out", f"{name}.jsonl", "--device", "cpu")
        code, said, errors = command("adapt", "in.jsonl", *words, *more)
        assert code == 0, errors
        assert "51 rows, 1 failed" in said
    assert Path("two.jsonl").read_bytes() == Path("one.jsonl").read_bytes()
    assert {p.name for p in Path(".").glob("[!.]*")} == {"in.jsonl", "one.jsonl", "two.jsonl"}
