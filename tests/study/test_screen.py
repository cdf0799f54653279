"""`tables` and `claims` at a terminal: 80 columns, from what is stored, ended by a reader without a word."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from chameleon_study.records import load_records
from chameleon_study.screen import WIDTH, as_text, stored_rows
from chameleon_study.stored import SUMS, checksums, storing
from chameleon_study.tables import all_rows, summary_frame

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
HEAVY = ("torch", "transformers", "scipy", "sklearn", "statsmodels", "pyarrow.parquet", "pyarrow.dataset")


@pytest.fixture
def write(study_of):
    """write(folder, loss): one small experiment, whose R1 has that many nats per token."""

    def make(folder, loss):
        study_of(folder, "docstrings", {"R0": 3.7, "R1": loss, "R4": 3.4})
        for kind in ("jsonl", "parquet"):
            (folder / f"honest-docstrings-smollm2.{kind}").replace(folder / f"honest-docstrings.{kind}")

    return make


@pytest.fixture
def results(tmp_path, write):
    """A folder of one small experiment."""
    folder = tmp_path / "results"
    folder.mkdir()
    write(folder, 3.5)
    return folder


def test_the_stored_tables_are_those_of_the_stored_records():
    rows = stored_rows(RESULTS)
    assert rows, "records or losses have changed: chameleon-lite tables --write"
    records = load_records(RESULTS / "four-regimes.jsonl")
    of_it = [row for row in rows if row.get("experiment") == "four-regimes"]
    again = json.loads(summary_frame(records, RESULTS).to_json(orient="records", double_precision=15))
    about = {"experiment": "four-regimes", "command": records[0].provenance["command"]}
    assert of_it == [{k: v for k, v in row.items() if v is not None} | about for row in again]


@pytest.mark.slow
def test_all_stored_tables_come_from_the_records():
    assert stored_rows(RESULTS) == all_rows(RESULTS)


def test_everything_fits_80_columns():
    lines = as_text(stored_rows(RESULTS)).splitlines()
    assert len(lines) > 300 and max(map(len, lines)) <= WIDTH == 80


@pytest.mark.parametrize("name", ["tables", "claims"])
def test_what_is_stored_is_shown_without_heavy_libraries(name):
    code = f"""
import sys
from chameleon_lite.app.cli import main
main([{name!r}, "--results", "results"])
assert not (loaded := [m for m in {HEAVY!r} if m in sys.modules]), loaded
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and run.stderr == "" and len(run.stdout.splitlines()) > 50
    assert max(map(len, run.stdout.splitlines())) <= WIDTH


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell with pipefail")
@pytest.mark.parametrize("words", ["tables", "tables --wide", "tables --json", "claims", "claims --wide"])
def test_a_reader_of_one_line_ends_the_command_quietly(words):
    command = f"set -o pipefail; {shlex.quote(sys.executable)} -m chameleon_lite {words} | head -n 1"
    run = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "") and len(run.stdout.splitlines()) == 1


def test_tables_are_stored_shown_and_made_again_when_records_change(command, results, write, monkeypatch):
    made = command("tables", "--results", results, "--write")
    assert made[0] == 0 and "3.7" in made[1], made
    with monkeypatch.context() as patch:
        patch.setattr("chameleon_study.tables.all_rows", None)
        assert command("tables", "--results", results) == made
        rows = json.loads(command("tables", "--results", results, "--json")[1])
        assert [row["regime"] for row in rows] == ["R0", "R1", "R4"]
    assert command("tables", "--results", results, "--recompute") == made
    (results / SUMS).unlink()
    write(results, 3.3)
    assert stored_rows(results) == []
    assert command("tables", "--results", results)[1] != made[1]


def test_stored_tables_do_not_make_verdicts_stale(results, command):
    assert command("claims", "--results", results, "--write")[0] == 0
    before = json.loads((results / "verdicts.json").read_text())["evidence"]
    command("tables", "--results", results, "--write")
    command("claims", "--results", results, "--write")
    assert json.loads((results / "verdicts.json").read_text())["evidence"] == before
    assert {"tables.json", "verdicts.json"} <= set(checksums(results))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": 3, "evidence": ""}', '{"rows": [1]}'])
def test_damaged_tables_are_named(command, results, content):
    with storing(results / "tables.json") as part:
        part.write_text(content)
    code, _, err = command("tables", "--results", results)
    assert code == 1 and "tables.json holds no tables" in err and len(err.splitlines()) == 1


def test_every_column_is_in_the_csv_and_the_wide_table(command, results, tmp_path):
    _, out, _ = command("tables", "--results", results, "--wide", "--csv", tmp_path / "t.csv")
    frame = pd.read_csv(tmp_path / "t.csv")
    assert {"what", "parameters", "test nll", "command"} <= set(frame) and len(frame) == 3
    assert all(column in out for column in frame.columns)
