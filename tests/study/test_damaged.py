"""Damaged, foreign and misplaced results: one line with the file's name, exit code 1 or 2, and verdicts stay."""

import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from chameleon_lite.errors import DamagedFile
from chameleon_study import page, stored
from chameleon_study.claims.contrasts import StoredRuns
from chameleon_study.claims.ledger import stored_verdicts
from chameleon_study.provenance import load_spans
from chameleon_study.records import load_records, load_results
from chameleon_study.released.proofs.store import load_proofs

ROOT = Path(__file__).parents[2]
NAME = "honest-docstrings"
PROOF = b'{"proof": "x", "title": "", "audit": [1], "where": "", "shows": "", "numbers": {}}\n'


def refused(found, *parts, code=1):
    """The call ended with `code` and one line on stderr that holds all parts."""
    lines = found[2].splitlines()
    assert found[0] == code and len(lines) == 1 and lines[0].startswith("chameleon-lite: "), found
    for part in parts:
        assert part in lines[0], (part, lines[0])


@pytest.fixture
def results(tmp_path, study_of):
    """A results folder of one small experiment, without checksums."""
    folder = tmp_path / "results"
    folder.mkdir()
    study_of(folder, "docstrings", {"R0": 3.7, "R19-R1": 3.5, "R4": 3.4})
    for kind in ("jsonl", "parquet"):
        (folder / f"honest-docstrings-smollm2.{kind}").rename(folder / f"{NAME}.{kind}")
    return folder


def old(part):
    """A stored row of a part that has a verdict."""
    row = {"claim": int(part[:-1]), "part": part, "headline": "contradicted", "beside": {}}
    return row | {"cells": {"docstrings": {"verdict": "contradicted", "number": "a", "detectable": None}}}


@pytest.fixture
def summed(results):
    """The same with checksums and verdicts."""
    with stored.storing(results / "verdicts.json") as part:
        part.write_text(json.dumps({"evidence": "", "parts": [old("1c")]}))
    return results


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    path.write_bytes(content)


LINES = {
    "empty": lambda b: b"",
    "half of the last line": lambda b: b[: -len(b.splitlines()[-1]) // 2],
    "cut in the first line": lambda b: b[:100],
    "no UTF-8": lambda b: b.replace(b"honest-docstrings", b"honest-\xff\xfe", 1),
    "UTF-16": lambda b: b.decode().encode("utf-16"),
    "zeros": lambda b: bytes(len(b)),
    "a list": lambda b: b"[1, 2]\n",
    "an empty object": lambda b: b"{}\n" + b,
    "a proof": lambda b: b + PROOF,
    "deep nesting": lambda b: b'{"name": ' + b"[" * 100_000 + b"\n",
    "5,000 digits": lambda b: b.replace(b'"seed":0', b'"seed":' + b"9" * 5_000, 1),
    "one field too many": lambda b: b.replace(b'{"name"', b'{"more": 1, "name"', 1),
    "a table": lambda b: b"regime,seed,loss\nR1,0,3.5\n",
    "a page": lambda b: b"<html><body>404</body></html>",
}
TABLES = {
    "empty": lambda b: b"",
    "cut": lambda b: b[: len(b) // 2],
    "without its end": lambda b: b[:-8],
    "garbage": lambda b: b"\xff\x00PAR" * 1_000,
    "zeros between": lambda b: b[:64] + bytes(len(b) - 128) + b[-64:],
    "a CSV file": lambda b: b"document,group,split,tokens,nll\na,g,test,3,9.0\n",
    "only its ends": lambda b: b"PAR1PAR1",
}


@pytest.mark.parametrize("command_name", ["tables", "claims"])
@pytest.mark.parametrize("damage", LINES)
def test_a_file_of_records_that_is_none_is_named(command, results, damage, command_name):
    path = results / f"{NAME}.jsonl"
    path.write_bytes(LINES[damage](path.read_bytes()))
    refused(command(command_name, "--results", results), str(path))


@pytest.mark.parametrize("command_name", ["tables", "claims"])
@pytest.mark.parametrize("damage", TABLES)
def test_a_file_of_losses_that_is_none_is_named(command, results, damage, command_name):
    path = results / f"{NAME}.parquet"
    path.write_bytes(TABLES[damage](path.read_bytes()))
    refused(command(command_name, "--results", results), str(path), "restore it")


@pytest.mark.parametrize("columns", [["a"], ["document", "group", "split", "tokens"], []])
def test_another_table_is_no_table_of_losses(command, results, columns):
    path = results / f"{NAME}.parquet"
    pd.DataFrame({name: [1] for name in columns}).to_parquet(path)
    refused(command("tables", "--results", results), str(path), "there is no column")


@pytest.mark.parametrize("place", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_flipped_bit_is_found(command, summed, kind, place):
    path = summed / f"{NAME}.{kind}"
    flip(path, place)
    for words in (("tables",), ("claims",), ("claims", "--write")):
        refused(command(*words, "--results", summed), str(path), stored.SUMS)
    assert stored_verdicts(summed)["1c"]["headline"] == "contradicted"


def test_records_in_another_order_a_lost_file_and_one_nobody_stored_are_found(command, summed):
    path = summed / f"{NAME}.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[1:], lines[0]]))
    refused(command("tables", "--results", summed), str(path), "is damaged")
    path.write_bytes(b"".join(lines))
    other = summed / "another.jsonl"
    other.write_bytes(path.read_bytes())
    refused(command("tables", "--results", summed), str(other), "take it away")
    other.unlink()
    (summed / f"{NAME}.parquet").unlink()
    refused(command("claims", "--results", summed), f"{NAME}.parquet", "not there")


@pytest.mark.parametrize("content", [b"", b"\x00\x01\xff\n", b"0123  x.jsonl\n", b"{}"])
def test_damaged_checksums_are_named(command, summed, content):
    (summed / stored.SUMS).write_bytes(content)
    refused(command("tables", "--results", summed), stored.SUMS, "is damaged")


def test_a_flipped_bit_in_verdicts_and_proofs_and_spans_is_found(summed):
    for name, line in (
        ("proofs.jsonl", PROOF),
        (
            "spans.jsonl",
            b'{"experiment": "a", "corpus": "b", "device": "c", "device_name": "d", "started": 1, "ended": 2}\n',
        ),
    ):
        with stored.storing(summed / name) as part:
            part.write_bytes(line)
    assert len(load_proofs(summed)) == len(load_spans(summed)) == len(stored_verdicts(summed)) == 1
    for load, name in (
        (load_proofs, "proofs.jsonl"),
        (load_spans, "spans.jsonl"),
        (stored_verdicts, "verdicts.json"),
    ):
        flip(summed / name, 0.9)
        with pytest.raises(DamagedFile, match=f"{name} is damaged"):
            load(summed)


def test_the_first_checksums_of_a_folder_are_of_all_its_files(summed):
    listed = stored.checksums(summed)
    assert set(listed) == {f"{NAME}.jsonl", f"{NAME}.parquet", "verdicts.json"}
    assert len(load_results(summed)) == 15


def _store(path):
    with stored.storing(path) as part:
        part.write_text(path.name)


def test_processes_that_store_at_once_lose_no_checksum(tmp_path):
    paths = [tmp_path / f"{n}.jsonl" for n in range(12)]
    with ProcessPoolExecutor(3) as pool:
        list(pool.map(_store, paths))
    assert set(stored.checksums(tmp_path)) == {p.name for p in paths}
    assert all(stored.read(p).decode() == p.name for p in paths)


def test_the_projects_results_have_checksums():
    names = {p.name for p in (ROOT / "results").iterdir() if p.suffix in stored.KEPT}
    assert set(stored.checksums(ROOT / "results")) == names
    for name in names:
        stored.read(ROOT / "results" / name)


@pytest.mark.parametrize("write", [(), ("--write",)])
def test_what_decides_nothing_is_refused_and_verdicts_stay(command, summed, tmp_path, write):
    before = (summed / "verdicts.json").read_bytes()
    nowhere, empty = tmp_path / "nowhere", tmp_path / "empty"
    empty.mkdir()
    for folder in (nowhere, empty, summed / f"{NAME}.jsonl"):
        refused(command("claims", "--results", folder, *write), "no records in", str(folder), code=2)
    found = command("claims", "--results", summed, "--backbone", "smolm2", *write)
    refused(found, "unknown backbone", "did you mean 'smollm2'", code=2)
    for folder in (nowhere, summed / f"{NAME}.jsonl"):
        found = command("claims", "--results", summed, "--benchmarks", folder, *write)
        refused(found, "no folder of timings", str(folder), code=2)
    assert (summed / "verdicts.json").read_bytes() == before and not nowhere.exists()


def test_verdicts_are_not_replaced_by_fewer(command, summed, study_of):
    path = summed / "verdicts.json"
    with stored.storing(path) as part:
        part.write_text(json.dumps({"evidence": "", "parts": [old("1e"), old("3a")]}))
    before = path.read_bytes()
    code, out, said = command("claims", "--results", summed, "--write")
    assert code == 1 and "verdicts.json is kept" in said and "claim 1e, 3a" in said and "not tested" in out
    assert path.read_bytes() == before
    path.unlink()
    assert command("claims", "--results", summed, "--write")[0] == 0
    assert {"5b", "18a", "18b"} <= {part for part, row in stored_verdicts(summed).items() if row["cells"]}


@pytest.mark.parametrize(
    "content",
    [b'{"rows": {"over', b"", b"[]", b'{"rows": []}', b'{"machine": {}}', b"\xff\xfe\x00", b"[" * 100_000, b"null",
     b'{"rows": {"overhead": {"status": "met"}}}', b'{"rows": {"overhead": 3}}'],
)  # fmt: skip
def test_timings_that_cannot_be_read_are_named(command, results, tmp_path, content):
    folder = tmp_path / "timings"
    folder.mkdir()
    (folder / "gpu.json").write_bytes(content)
    found = command("claims", "--results", results, "--benchmarks", folder)
    refused(found, str(folder / "gpu.json"), "restore it")


@pytest.mark.parametrize("option", ["--csv", "--contrasts"])
def test_a_csv_is_refused_before_the_work(command, results, tmp_path, option, monkeypatch):
    monkeypatch.setattr("chameleon_study.claims.ledger.ledger", None)
    taken = results / f"{NAME}.jsonl"
    before = taken.read_bytes()
    for place, word, code in (
        (results, "no regular file", 2),
        (taken, "is the input itself", 2),
        (taken / "table.csv", "is not a folder", 1),
        (results / ".." / "results" / f"{NAME}.parquet", "is the input itself", 2),
        ("/dev/null", "no regular file", 2),
    ):
        refused(command("claims", "--results", results, option, place), word, code=code)
    assert taken.read_bytes() == before


def test_a_csv_in_a_new_folder_and_over_an_old_one_is_written(command, results, tmp_path):
    place = tmp_path / "new" / "folder" / "table.csv"
    for name in ("tables", "claims", "tables"):
        assert command(name, "--results", results, "--csv", place)[0] == 0
    assert len(pd.read_csv(place)) == 3 and [p.name for p in place.parent.iterdir()] == ["table.csv"]
    refused(command("tables", "--results", results, "--csv", results), "no regular file", code=2)


def test_prove_names_damaged_proofs_and_what_may_not_be_kept_before_the_work(command, tmp_path):
    experiment = ROOT / "experiments" / "table1-released-lite.yaml"
    words = ("prove", experiment, "--results", tmp_path)
    refused(command(*words), "smoke profile: shown, never kept", code=2)
    found = command(*words, "--profile", "paper", "--backbone", "tiny")
    refused(found, "whose weights are random", code=2)
    for content in (PROOF[:-20], b"\xff", PROOF + b"[]\n", b"{}"):
        (tmp_path / "proofs.jsonl").write_bytes(content)
        refused(command(*words, "--profile", "paper"), "proofs.jsonl is damaged", "is no proof")
    found = command(
        "prove", experiment, "--only", "padding_share", "--only", "padding_shar", "--backbone", "tiny"
    )
    refused(found, "unknown proof 'padding_shar'", code=2)


def test_a_reader_that_leaves_ends_the_command_without_a_word(results):
    words = [sys.executable, "-m", "chameleon_lite", "tables", "--results", str(results)]
    reader, writer = os.pipe()
    os.close(reader)  # nobody reads any more
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=300)
    os.close(writer)
    assert done.returncode in (0, 1) and done.stderr == ""


def test_markup_in_names_is_shown_as_text(results):
    path = results / f"{NAME}.jsonl"
    name = "<script>alert(1)</script>"
    path.write_text(
        path.read_text().replace('"R4"', '"R4"').replace('"corpus":"docstrings"', f'"corpus":"{name}"')
    )
    from chameleon_study import study_tables
    from chameleon_study.tables import summary_frame

    evidence = StoredRuns(results, draws=50)
    assert evidence.corpora == [name]
    for frame in (
        study_tables.across_frame(evidence),
        evidence.family_frame(),
        summary_frame(load_records(path), results),
    ):
        shown = frame._repr_html_()
        assert "&lt;script&gt;" in shown and "<script>" not in shown
    link = page.csv_link(pd.DataFrame({"a": [name]}), 'x"><script>')._repr_html_()
    assert "<script>" not in link
