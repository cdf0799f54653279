"""kill -9 in the middle of a grid, and two processes on one folder of runs: the records are those of one process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

SMALL = {
    "name": "small",
    "regimes": ["R0", "R1", "R4", "R14"],
    "tokens": {"max_length": 64, "prefix_tokens": 8, "min_scored": 4},
    "clusters": {"batch_rows": 8, "minimum": 2, "routing_clusters": 4},
    "data": {"max_train_tokens": None, "max_validation_documents": None, "max_test_documents": None},
    "train": {"epochs": 1, "feature_dtype": "float32", "matmul_dtype": "float32"},
    "sweep": {"grid": [1e-3, 1e-2], "seeds": 1, "extend": 0},
}


@pytest.fixture
def start(tmp_path, made_up):
    """start("a"): the experiment begins in a process of its own, with its runs in that folder."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({**SMALL, "corpora": [made_up]}))
    command = [sys.executable, "-m", "chameleon_lite", "run", str(tmp_path / "small.yaml")]
    command += ["--profile", "paper", "--backbone", "tiny", "--device", "cpu", "--seeds", "2", "--out"]
    own = {"CHAMELEON_LITE_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    own["PYTHONPATH"] = str(Path(__file__).parents[2])

    def begin(folder):
        return subprocess.Popen(
            [*command, str(tmp_path / folder)],
            env=os.environ | own,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )

    return begin


def found(folder: Path) -> dict:
    """Records, without what no second run can have again, and the losses of their documents and of the sweep."""
    records = {p.parent.name: json.loads(p.read_text()) for p in folder.glob("R*/record.json")}
    for record in records.values():
        for field in ("seconds", "peak_memory_bytes", "provenance", "seal"):
            del record[field]
    losses = {p.name: pd.read_parquet(p / "documents.parquet").to_dict() for p in folder.glob("R*")}
    return {"records": records, "losses": losses} | {
        p.name: p.read_text() for p in folder.glob("sweeps/*.json")
    }


def finished(process) -> str:
    said = process.communicate()[1].decode()
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
def test_a_grid_that_is_killed_again_and_again_ends_with_the_same_records(start, tmp_path):
    finished(start("whole"))
    results, chance = tmp_path / "killed", random.Random(0)
    for least in (0, 1, 3, 6):  # results on disk before the kill: of 4 losses and 8 runs
        process = start("killed")
        while process.poll() is None and len([*results.glob("R*"), *results.glob("sweeps/*.json")]) < least:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05) if least else chance.uniform(0, 4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with open(results / "spans.jsonl", "a") as file:
        file.write('{"experiment": "sm')  # as a kill in the middle of a line leaves it
    said = finished(start("killed"))
    assert "damaged" not in said and found(results) == found(tmp_path / "whole")
    assert len(found(results)["records"]) == 8


@pytest.mark.slow
def test_two_processes_on_one_folder_leave_the_records_of_one(start, tmp_path):
    finished(start("one"))
    for process in [start("both"), start("both")]:
        finished(process)
    assert found(tmp_path / "both") == found(tmp_path / "one")
