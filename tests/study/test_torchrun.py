"""The whole line over several processes from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENT = """
name: two-processes
backbone: tiny
corpora: [{corpus}]
regimes: [R0, R1, R4]
seeds: 1
learning_rates: {{R1: 1.0e-2, R4: 1.0e-2}}
tokens: {{max_length: 96, prefix_tokens: 8, min_scored: 4}}
train: {{epochs: 2, rows_per_step: 8, feature_dtype: float32, matmul_dtype: float32}}
clusters: {{batch_rows: 8, routing_clusters: 2}}
"""


def write_corpus(path):
    """Sixty short texts in three splits."""
    words = "the mean of a batch tells what kind of text it holds and little else than that".split()
    with open(path, "w") as file:
        for i in range(90):
            text = " ".join(words[(i * 7 + j * (1 + i % 3)) % len(words)] for j in range(8 + i % 9))
            split = ("train", "train", "train", "validation", "test")[i % 5]
            row = {
                "split": split,
                "id": str(i),
                "text": text,
                "group": f"g{i % 3}",
                "prompt": "",
                "instruction": "",
            }
            file.write(json.dumps(row) + "\n")


def records(out):
    found = [json.loads(p.read_text()) for p in sorted(out.glob("R*/record.json"))]
    return {r["regime"]: r["metrics"]["test_nll"] for r in found}


@pytest.mark.slow
def test_torchrun_on_the_command_line_gives_one_processes_records(machine, tmp_path):
    write_corpus(tmp_path / "texts.jsonl")
    (tmp_path / "two.yaml").write_text(EXPERIMENT.format(corpus=tmp_path / "texts.jsonl"))
    words = ["run", str(tmp_path / "two.yaml"), "--out"]
    machine.whole(machine.command(*words, "one"), tmp_path)
    environment = os.environ | {"CHAMELEON_LITE_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launched += ["-m", "chameleon_lite", *words, str(tmp_path / "both")]
    done = subprocess.run(launched, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    alone, both = records(tmp_path / "one"), records(tmp_path / "both")
    assert set(alone) == set(both) == {"R0", "R1", "R4"}
    assert all(abs(alone[r] - both[r]) < 1e-4 for r in alone)
    assert done.stdout.count("R4") == 1  # one process speaks
