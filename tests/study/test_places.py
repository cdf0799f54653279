"""No record, table or message that is kept names a person, a machine or a place."""

import json
import os
import shutil
from pathlib import Path

import pytest

from chameleon_lite.backbone import load_backbone
from chameleon_study.provenance import default_command, message_from_here, placeless, without_places
from chameleon_study.records import load_records, name_of


@pytest.fixture
def small_file(tmp_path, swept):
    """small_file(settings) → an experiment's file with one frozen regime."""

    def write(over):
        path = tmp_path / "small.yaml"
        path.write_text(json.dumps(swept | {"regimes": ["R0"]} | over))
        return path

    return write


@pytest.fixture
def two_corpora(made_up):
    """two_corpora(folder) → two files of texts in it."""

    def write(folder):
        folder.mkdir(parents=True)
        return [Path(shutil.copy(made_up, folder / name)) for name in ("own.jsonl", "other.jsonl")]

    return write


def test_records_name_no_person_no_machine_and_no_place(command, made_up, swept, tmp_path, monkeypatch):
    here, home = tmp_path / "here", tmp_path / "people" / "somebody"
    for folder in (here, home / "texts"):
        folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "somebody")
    monkeypatch.delenv("CHAMELEON_LITE_COMMAND", raising=False)
    monkeypatch.chdir(here)
    shutil.copy(made_up, here / "made.jsonl")
    path = home / "texts" / "small.yaml"
    path.write_text(json.dumps(swept | {"corpora": ["made.jsonl"]}))
    words = ["run", path, "--profile", "paper", "--out", here / "runs", f"--data-dir={home / 'texts'}"]
    code, _, err = command(*words)
    assert code == 0, err
    found = [p for p in (here / "runs").rglob("*") if p.is_file() and p.suffix in (".json", ".jsonl")]
    assert len(found) > 3
    for path in found:
        for word in ("somebody", str(tmp_path), os.uname().nodename):
            assert word not in path.read_text(), (path, word)
    record = json.loads(next(here.glob("runs/R0*/record.json")).read_text())
    command = record["provenance"]["command"]
    assert command.startswith(
        "chameleon-lite run ~/texts/small.yaml --profile paper --out ./runs --data-dir=~/texts"
    )


@pytest.mark.parametrize("where", ["people/somebody", "scratch/somebody", "here/somebody"])
def test_texts_and_a_backbone_given_by_their_place_leave_no_place_in_what_is_kept(
    where, command, small_file, two_corpora, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "people" / "somebody"))
    monkeypatch.setenv("USER", "somebody")
    monkeypatch.delenv("CHAMELEON_LITE_COMMAND", raising=False)
    own, other = two_corpora(tmp_path / where)
    backbone, tiny = tmp_path / where / "tiny model", load_backbone("tiny")
    tiny.lm.save_pretrained(backbone)
    tiny.tokenizer.save_pretrained(backbone)
    (tmp_path / "here").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "here")
    given = ["--corpus", own, "--backbone", backbone, "--profile", "paper", "--results", "results"]
    path = small_file({"probes": {"corpora": [str(other)]}, "seeds": 1})
    code, shown, err = command("run", path, *given)
    assert code == 0, err
    outputs = [shown, *(command(*words)[1] for words in (["tables"], ["tables", "--csv", "tables.csv"]))]
    (record,) = load_records(tmp_path / "here" / "results" / "small.jsonl")
    assert record.corpus == placeless(str(own)) and record.backbone == placeless(str(backbone))
    assert record.corpus.startswith("local:own.jsonl-") and record.backbone.startswith("local:tiny model-")
    assert record.settings["corpora"] == [record.corpus] and record.settings["backbone"] == record.backbone
    assert f"transfer:{placeless(str(other))}_nll" in record.metrics
    assert list(record.data["transfers"]) == record.settings["probes"]["corpora"] == [placeless(str(other))]
    kept = {p: p.name.encode() + p.read_bytes() for p in (tmp_path / "here").rglob("*") if p.is_file()}
    kept = {p: text for p, text in kept.items() if where != "here/somebody" or "somebody" not in str(p)}
    assert {".json", ".jsonl", ".parquet", ".csv"} <= {p.suffix for p in kept}
    words = {str(tmp_path), os.uname().nodename, "/home/", "/root/"}
    words |= set() if where == "here/somebody" else {"somebody"}  # else below the folder one works in
    for name, text in [*kept.items(), *((None, text.encode()) for text in outputs)]:
        assert not [word for word in words if word.encode() in text], name
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "here" / "runs").rglob("record.json")}
    assert command("run", path, *given)[0] == 0, "and what is there is found again"
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "here" / "runs").rglob("record.json")}


def test_names_that_are_no_places_stay(small, monkeypatch, tmp_path):
    for name in (
        "docstrings",
        "hub:owner/name",
        "owner/name",
        "texts/own.jsonl",
        "./own.jsonl",
        "~nobody-of-that-name/x",
    ):
        assert placeless(name) == name
    made = small(["R0"], corpora=["owner/name"], backbone="smollm2", probes={"corpora": ["docstrings"]})
    assert without_places(made) == made and without_places(made).key() == made.key()
    assert name_of(made, "R0", "owner/name", 0).startswith("R0--smollm2--owner_name--")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert placeless("~/x/m") == placeless(f"{tmp_path}/x/m") == placeless(f"{tmp_path}/x/../x/m/")
    assert placeless("/a/m") != placeless("/b/m") and placeless("/a/tiny").startswith("local:tiny-")


def test_a_command_and_a_message_name_no_place(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("CHAMELEON_LITE_COMMAND", raising=False)
    far, own, here = "/scratch/somebody/a b.yaml", tmp_path / "me" / "x", tmp_path / "here" / "y"
    words = ["run", far, f"--out={own}", f"--corpus={here},{far}", "--dask", "tcp://machine:8786", "a/b"]
    monkeypatch.setattr("sys.argv", ["chameleon-lite", *words])
    far_name = placeless(far)
    expected = f"run {far_name} --out=~/x --corpus=./y,{far_name} --dask tcp://… a/b"
    assert default_command() == f"chameleon-lite {expected}"
    for given in ("--dask machine:8786", "--dask=machine:8786", "--dask [::1]:8786"):
        monkeypatch.setattr("sys.argv", ["chameleon-lite", "run", *given.split(), "--seeds", "2"])
        assert default_command() == f"chameleon-lite run --dask{given[6]}… --seeds 2"
    monkeypatch.setenv("CHAMELEON_LITE_COMMAND", f"chameleon-lite run {own} --seeds 2")
    assert default_command() == "chameleon-lite run ~/x --seeds 2"
    text = f'File "{own}/a.py", line 3: no /scratch/somebody/m: 1/2 tokens / s'
    shown = f'File "~/x/a.py", line 3: no {placeless("/scratch/somebody/m")}: 1/2 tokens / s'
    assert message_from_here(text) == shown
