"""Experiments shared out over processes of this machine and over the workers of a real Dask cluster."""

import json
import signal
import threading
import time
from contextlib import ExitStack
from operator import attrgetter
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from chameleon_lite.app.stream import adapt_file
from chameleon_lite.backbone import load_backbone
from chameleon_lite.errors import UserError
from chameleon_study.run import run_experiment

# what equal settings and seed must reproduce bit for bit
measured = attrgetter("metrics", "curve", "learning_rate")

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
SMALL = {
    "name": "shared-work",
    "regimes": ["R0", "R1", "R4"],
    "seeds": 2,
    "tokens": {"max_length": 64, "prefix_tokens": 8, "min_scored": 4},
    "clusters": {"batch_rows": 16, "minimum": 2, "routing_clusters": 4},
    "data": {"max_train_tokens": None, "max_validation_documents": None, "max_test_documents": None},
    "train": {"epochs": 1, "feature_dtype": "float32", "matmul_dtype": "float32"},
    "sweep": {"grid": [1e-3, 1e-2], "seeds": 2, "extend": 0},
}


RELEASED = {
    "protocol": {"preset": "as_released", "held_out": 0.3},
    "learning_rates": {"R1": 1e-3, "R4": 1e-3},
}


def run(machine, folder, made_up, *more, **settings):
    """The records of the command in a process of its own, and what it said."""
    folder.mkdir()
    (folder / "shared.yaml").write_text(yaml.safe_dump({**SMALL, **settings, "corpora": [made_up]}))
    words = "run shared.yaml --profile paper --backbone tiny --device cpu --seeds 2".split()
    before = len(machine.log.read_bytes()) if machine.log.exists() else 0
    machine.whole(machine.command(*words, "--out", "runs", *more), folder)
    found = {p.parent.name: json.loads(p.read_text()) for p in (folder / "runs").glob("*/record.json")}
    return {
        name: (r["metrics"], r["curve"], r["learning_rate_trials"]) for name, r in found.items()
    }, machine.log.read_bytes()[before:].decode()


@pytest.mark.parametrize("settings", [{}, RELEASED], ids=["honest", "as released"])
def test_two_workers_leave_the_records_of_one_process(machine, made_up, tmp_path, settings):
    alone, _ = run(machine, tmp_path / "one", made_up, **settings)
    together, said = run(machine, tmp_path / "two", made_up, "--workers", "2", **settings)
    assert len(alone) == 6 and together == alone
    jobs = [line for line in said.splitlines() if ", seed " in line]
    assert len(jobs) == (6 if not settings else 2)  # 2 orders × 2 sweep seeds, and 2 seeds


def test_workers_that_refuse_their_settings_leave_wrong_uses_exit_code(machine, tmp_path):
    words = ["run", EXPERIMENTS / "four-regimes.yaml", "--backbone", "tiny", "--workers", "2"]
    words += ["--corpus", tmp_path / "absent.jsonl", "--out", tmp_path]
    machine.log.write_text("")
    assert machine.run(machine.command(*words), tmp_path) == [2]
    said = machine.log.read_text()
    assert "Traceback" not in said and "absent.jsonl" in said


class Cluster:
    """A Dask scheduler and its workers as processes of their own, on the loopback address only.

    Each worker has a folder, a home and a cache of its own and none of the runs.
    """

    def __init__(self, machine, folder: Path, workers: int, stack: ExitStack) -> None:
        self.machine, self.folder, self.stack = machine, folder, stack
        self.file = folder / "scheduler.json"
        self._start("scheduler", "--port", "0")
        self.workers = {
            f"worker-{i}": self._start("worker", "--nthreads", "1", name=f"worker-{i}")
            for i in range(workers)
        }
        deadline = time.monotonic() + 60
        while not (self.file.is_file() and self.file.stat().st_size):
            assert time.monotonic() < deadline, (folder / "scheduler.log").read_text()
            time.sleep(0.05)
        self.address = json.loads(self.file.read_text())["address"]

    def _start(self, kind: str, *more: str, name: str = "scheduler"):
        own = self.folder / name
        if kind == "worker":
            more = (*more, "--no-nanny", "--name", name, "--local-directory", str(own))
        words = ["dask", kind, "--scheduler-file", str(self.file), "--host", "127.0.0.1"]
        words += ["--no-dashboard", "--dashboard-address", "127.0.0.1:0", *more]
        # as many threads as here: sums in the same order
        code = f"import sys, torch; from dask.__main__ import main; sys.argv = {words}\n"
        code += f"torch.set_num_threads({torch.get_num_threads()}); main()"
        process = self.machine.begin(code, own, own.with_suffix(".log"), HOME=str(own))
        self.stack.callback(process.kill)
        return process


@pytest.fixture(scope="module")
def cluster(machine, tmp_path_factory):
    """cluster(n): a Dask cluster of n workers; one that another test used, where all of them are alive."""
    started = []
    with ExitStack() as stack:

        def get(workers: int) -> Cluster:
            if not started or any(w.returncode is not None for w in started[-1].workers.values()):
                started.append(Cluster(machine, tmp_path_factory.mktemp("cluster"), workers, stack))
            return started[-1]

        yield get


def several(small, **more):
    sweep = {"grid": [1e-3, 1e-2], "seeds": 2, "extend": 0}
    return small(["R0", "R1", "R4", "R14"], seeds=3, learning_rates={}, sweep=sweep, **more)


def losses(runs: Path) -> dict:
    return {p.name: json.loads(p.read_text())["best"] for p in (runs / "sweeps").glob("*.json")}


def kill_one_at_work(cluster: Cluster, runs: Path, lost: list) -> None:
    """Once a result is there, kill a worker that has jobs; `lost` gets its name and their keys."""
    from distributed import Client

    with Client(cluster.address, set_as_default=False) as client:
        while not lost:
            time.sleep(0.002)
            names = {address: w["name"] for address, w in client.scheduler_info()["workers"].items()}
            jobs = {a: [k for k in keys if "_with_common" in k] for a, keys in client.processing().items()}
            busy = {names[a]: keys for a, keys in jobs.items() if keys and a in names}
            if losses(runs) and len(names) == 2 and busy:
                name, keys = next(iter(busy.items()))
                cluster.workers[name].kill()
                lost += [name, *keys]
        while len(client.scheduler_info()["workers"]) > 1:
            time.sleep(0.01)
        events = client.story(*lost[1:])
        lost.append({key for _, key, old, new, *_ in events if (old, new) == ("processing", "released")})


@pytest.mark.slow
def test_a_cluster_without_a_shared_folder_gives_the_records_and_the_answers_of_one_process(
    small, cluster, made_up, tmp_path, monkeypatch
):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(here / "cache"))
    Path("texts.jsonl").write_bytes(Path(made_up).read_bytes())  # a name that means nothing in another folder
    settings = several(small, corpora=["texts.jsonl"])
    both = cluster(2)
    together = run_experiment(settings, runs=Path("runs"), dask=both.address)
    assert not list((here / "cache").rglob("*.npy"))  # no hidden state was computed here
    left = {p.name for name in both.workers for p in (both.folder / name).rglob("*")}
    # hidden states of a worker's own; one of them may have taken all work
    assert any(file.endswith(".npy") for file in left)
    assert not left & {"runs", "sweeps", "record.json", "spans.jsonl", "texts.jsonl"}
    adapter(here / "adapter")
    Path("in.jsonl").write_text("".join(f'"a text number {i} to be scored, and more"\n' for i in range(20)))
    adapt_file(here / "adapter", "in.jsonl", "out.jsonl", window=3, dask=both.address, device="cpu")
    adapt_file(here / "adapter", "in.jsonl", "alone.jsonl", window=3, device="cpu")
    assert Path("out.jsonl").read_bytes() == Path("alone.jsonl").read_bytes()
    alone = run_experiment(settings, runs=Path("alone"))
    assert [measured(r) for r in together] == [measured(r) for r in alone]
    pd.testing.assert_frame_equal(documents("runs", together), documents("alone", alone))


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_gives_the_records_of_one_process(small, cluster, tmp_path):
    settings = several(small, train={"epochs": 4, "feature_dtype": "float32", "matmul_dtype": "float32"})
    alone = run_experiment(settings, runs=tmp_path / "one")
    both, runs, lost = cluster(2), tmp_path / "cluster", []
    killer = threading.Thread(target=kill_one_at_work, args=(both, runs, lost))
    killer.start()
    together = run_experiment(settings, runs=runs, dask=both.address)
    killer.join()
    assert both.workers[lost[0]].returncode == -signal.SIGKILL and lost[-1]  # jobs were taken back
    assert [r.name for r in together] == [r.name for r in alone]
    assert [measured(r) for r in together] == [measured(r) for r in alone]
    assert [r.learning_rate_trials for r in together] == [r.learning_rate_trials for r in alone]
    assert losses(runs) == losses(tmp_path / "one")


def adapter(folder: Path) -> None:
    """Save an adapter that changes what `tiny` predicts."""
    from chameleon_lite.chameleon import ChameleonLiteForCausalLM

    prompts = {"max_length": 64, "prefix_tokens": 8, "min_scored": 4, "condition_on": "prompt"}
    model = ChameleonLiteForCausalLM.from_backbone(load_backbone("tiny"), rank=2, prompts=prompts)
    torch.nn.init.normal_(model.head.last.weight, std=0.1)
    model.save_pretrained(folder)


def documents(runs: str, records: list) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(Path(runs) / r.name / "documents.parquet") for r in records])


def test_what_other_processes_cannot_take_is_refused(small, tiny_backbone, tmp_path, monkeypatch):
    settings = small(["R0"])
    with pytest.raises(UserError, match="exclude each other"):
        run_experiment(settings, runs=tmp_path, workers=2, dask="tcp://127.0.0.1:1")
    with pytest.raises(UserError, match="by its name"):
        run_experiment(settings, runs=tmp_path, workers=2, backbone=tiny_backbone)
    with pytest.raises(UserError, match="cuda:1 is one GPU"):
        run_experiment(settings, runs=tmp_path, workers=2, device="cuda:1")
