import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from chameleon_lite import cache
from chameleon_lite.bench.scaling import workers
from chameleon_lite.study.experiment import run_experiment

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
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


def run(folder, made_up, *more, **settings):
    path = folder / "shared.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **settings, "corpora": [made_up]}))
    command = [
        sys.executable,
        "-m",
        "chameleon_lite.cli",
        "run",
        str(path),
        "--profile",
        "paper",
        "--backbone",
        "tiny",
        "--device",
        "cpu",
        "--seeds",
        "2",
        "--out",
        str(folder / "runs"),
        *more,
    ]
    own = {"CHAMELEON_LITE_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {p.parent.name: json.loads(p.read_text()) for p in (folder / "runs").glob("*/record.json")}
    return {
        name: (r["metrics"], r["curve"], r["learning_rate_trials"]) for name, r in found.items()
    }, done.stderr


@pytest.mark.parametrize("settings", [{}, RELEASED], ids=["honest", "as released"])
def test_two_workers_leave_the_records_of_one_process(made_up, tmp_path, settings):
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    alone, _ = run(tmp_path / "one", made_up, **settings)
    together, said = run(tmp_path / "two", made_up, "--workers", "2", **settings)
    assert len(alone) == 6 and together == alone
    jobs = [line for line in said.splitlines() if ", seed " in line]
    assert len(jobs) == len(set(jobs))  # no sweep and no seed was computed twice


def test_free_jobs_come_first_and_each_once(tmp_path):
    mine = cache.turns(["a", "b"], lambda job: tmp_path / job)
    assert next(mine) == "a"
    theirs = []
    for job in cache.turns(["a", "b"], lambda job: tmp_path / job):  # "a" is held above
        theirs.append(job)
        mine.close()  # gives "a" back, for which the second walk would wait
    assert theirs == ["b", "a"]


def test_no_workers_inside_a_worker_or_under_torchrun(monkeypatch):
    assert workers.wanted(3) == 3 and workers.wanted(1) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert workers.wanted(3) == 0
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv(workers.MARK, "0")
    assert workers.wanted(3) == 0


@pytest.mark.parametrize("settings", [{}, RELEASED], ids=["honest", "as released"])
def test_a_process_that_starts_late_waits_for_the_same_locks(small, tmp_path, monkeypatch, settings):
    asked, turns = [], cache.turns

    def noted_turns(jobs, lock_of):
        jobs = list(jobs)
        asked.append([lock_of(job) for job in jobs])
        return turns(jobs, lock_of)

    monkeypatch.setattr(cache, "turns", noted_turns)
    rates = {"learning_rates": {"R1": 1e-3}} | {k: v for k, v in settings.items() if k != "learning_rates"}
    of = small(["R0", "R1"], seeds=2, **rates)
    records = run_experiment(of, runs=tmp_path)
    seeds = asked[-1]
    shutil.rmtree(tmp_path / next(r.name for r in records if (r.regime, r.seed) == ("R1", 1)))
    run_experiment(of, runs=tmp_path)
    assert len(seeds) == 2 and asked[-1][-1] == seeds[-1]


def test_workers_that_refuse_their_settings_leave_wrong_uses_exit_code(tmp_path):
    command = [
        sys.executable,
        "-m",
        "chameleon_lite.cli",
        "run",
        str(EXPERIMENTS / "four-regimes.yaml"),
        "--backbone",
        "tiny",
        "--corpus",
        str(tmp_path / "absent.jsonl"),
        "--workers",
        "2",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "absent.jsonl" in done.stderr


def test_workers_share_the_threads_of_the_processor_unless_told_otherwise(tmp_path, monkeypatch):
    program = (
        tmp_path / "note"
    )  # stands where the interpreter would: writes down what a worker is started with
    program.write_text(f'#!/bin/sh\necho "$OMP_NUM_THREADS" > "{tmp_path}/$CHAMELEON_LITE_WORKER"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    workers.start(2, ["run"])
    each = str(max(1, torch.get_num_threads() // 2))
    assert [(tmp_path / n).read_text().strip() for n in "01"] == [each, each]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    workers.start(2, ["run"])
    assert [(tmp_path / n).read_text().strip() for n in "01"] == ["3", "3"]
