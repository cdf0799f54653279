"""What `fit --head auto` kept on three tasks, and the way the record of it is made."""

import json

import pandas as pd
import pytest

from chameleon_lite.app.fit_settings import FitSettings
from chameleon_lite.backbone import load_backbone
from chameleon_study import own_texts, stored
from chameleon_study.provenance import ROOT

SMALL = FitSettings(layers=False, tokens={"max_length": 64}, train={"epochs": 1, "rows_per_step": 16})
WORDS = "the mean of a batch tells what kind of text it holds and little else".split()


def check(task: dict) -> None:
    """The kept candidate is the best on validation, and the gap is what its test losses say."""
    table = pd.DataFrame(task["candidates"])
    tests = pd.DataFrame(task["candidates"])["test"].map(lambda numbers: numbers["after"])
    assert len(table) == 3 and table["kept"].sum() == 1 and table.loc[table["after"].idxmin(), "kept"]
    gap = float(tests[table["kept"]].item() - tests.min())
    assert task["test gap to the best"] == gap and task["within"] == (gap <= own_texts.WITHIN)
    assert task["why"].startswith(f"kept: {table.loc[table['kept'], 'candidate'].item()}, ")


def test_a_task_is_measured_on_all_its_candidates(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(tmp_path / "home"))
    path = tmp_path / "texts.jsonl"
    texts = [" ".join(WORDS[i % 13 :] + WORDS[: i % 7]) + f" and {i}" for i in range(80)]
    pd.DataFrame({"text": texts}).to_json(path, orient="records", lines=True)
    task = own_texts.measured(path, load_backbone("tiny"), SMALL)
    check(json.loads(json.dumps(task, allow_nan=False)))


def test_the_stored_record():
    path = ROOT / "results" / own_texts.OWN_TEXTS
    if not path.is_file():
        pytest.skip("the three tasks have not been run")
    tasks = json.loads(stored.read(path))
    assert tasks and set(tasks) <= {"alpaca", "documentation", "wikitext-2"}
    for name, task in tasks.items():
        check(task)
        assert task["command"] == "python -m chameleon_study.own_texts DATA" and task["versions"]["torch"]
        assert FitSettings(**task["settings"]) == own_texts.SETTINGS[name] and task["backbone"] == "smollm2"
        assert len(task["commit"].rstrip("+")) == 40


def test_a_folder_without_the_data_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="alpaca.jsonl"):
        own_texts.write_tasks(tmp_path, tmp_path)
