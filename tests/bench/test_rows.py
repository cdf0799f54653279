"""Every row on the tiny backbone: it runs, its gates hold, its JSON is complete. Nothing here looks at a time."""

import json

import pytest
import torch

from chameleon_bench import rows_app, rows_head, rows_layers
from chameleon_bench.bench import Bench
from chameleon_bench.measure import ROWS, agreement, measured
from chameleon_bench.report import run_rows, summary
from chameleon_bench.rows_app import learning
from chameleon_bench.tables import many_texts_frame
from chameleon_lite.app import boundary
from chameleon_lite.app.learn import LearningStream
from chameleon_lite.errors import RunFailed, UserError
from chameleon_study.provenance import ROOT
from chameleon_study.records import load_records

HEAVY = {
    "B3",
    "B16",
    "B20",
}  # the first one's size does not follow the backbone's, the others start processes
ON_GPUS = {"torch.compile", "torch.compile, reduce-overhead", "torch.compile, in chunks"}
ON_GPUS |= {"PEFT and Trainer, LoRA in the layers too"}  # raced there alone


@pytest.mark.parametrize("name", sorted(set(ROWS) - HEAVY))
@pytest.mark.filterwarnings("ignore")  # peers' own
def test_a_row_runs_and_its_gates_hold(name, small_bench):
    row = measured(name, small_bench)
    peers = {peer for goals in ROWS[name]["goals"].values() for peer in goals}
    assert {c["peer"] for c in row["comparisons"]} == peers - ON_GPUS
    assert row["limit"] and row["workload"]
    assert [gate for gate in row["gates"] if not gate["passed"]] == []
    assert row["status"] == "shown"  # quick runs are held to no goal
    assert json.loads(json.dumps(row)) == row
    text = summary(row | {"name": name, "seconds": 1.0})
    assert text.startswith(name) and all(c["peer"] in text for c in row["comparisons"])


@pytest.mark.slow
def test_clusters_row():
    row = measured("B3", Bench(torch.device("cpu"), quick=True))
    assert all(gate["passed"] for gate in row["gates"])


@pytest.mark.filterwarnings("ignore")  # of loading the compiler
def test_the_compiled_peers_do_the_released_work():
    with torch.compiler.set_stance("force_eager"):  # what is compiled elsewhere, as it is written
        work = rows_head.HeadWork(
            Bench(torch.device("cpu"), quick=True, model="tiny"), 3 * rows_head.CHUNK - 5
        )
        released, steps = work.outcome(work.step(work.released)), work.compiled()
        assert set(steps) <= ON_GPUS and len(steps) == 3
        for step in steps.values():
            gates = agreement(work.outcome(step), released, (2e-2, 2e-3))
            assert all(gate["passed"] for gate in gates), gates


def test_learning_that_looks_ahead_fails_its_row(small_bench, monkeypatch):
    read = LearningStream._read

    def twice(stream, table, errors):
        read(stream, table, dict(errors))  # every batch is learned from before it counts
        return read(stream, table, errors)

    assert all(gate["passed"] for gate in learning(small_bench, rows=40, layers=1)["gates"])
    monkeypatch.setattr(LearningStream, "_read", twice)
    assert not all(gate["passed"] for gate in learning(small_bench, rows=40, layers=1)["gates"])


@pytest.mark.slow
def test_waiting_times_commands_and_quotes_what_takes_minutes_from_its_file(small_bench):
    row = measured("B20", small_bench)
    assert [c["quantity"] for c in row["comparisons"]] == [
        "--help",
        "claims",
    ]  # nothing of minutes in a quick run
    noted = json.loads(rows_app.WAITS.read_text())
    assert (
        set(noted) < set(ROWS["B20"]["goals"])
        and ROWS["B20"]["goals"].keys() == ROWS["B20"]["options"]["limits"].keys()
    )
    for wait in noted.values():
        assert (
            wait["seconds"] > 0
            and len(wait["commit"]) == 40
            and wait["at"]
            and wait["machine"]
            and wait["how"]
        )


def test_the_studys_bill_is_that_of_its_stored_spans():
    row = measured("B19", Bench(torch.device("cpu")))
    (bill,) = row["comparisons"]
    assert (
        bill["ours"]["median"] == 60 * row["workload"]["minutes, all of them"]
        and bill["theirs"]["median"] == 1_200
    )
    assert row["workload"]["runs"] > 1_000 and len(row["workload"]) == 9  # five corpora
    paths = [p for p in (ROOT / "results").glob("honest-*.jsonl") if p.stem != "honest-layers"]
    prepared = {record.seconds["tokens"] for path in paths for record in load_records(path)}
    assert row["profile"]["tokens"] == pytest.approx(sum(prepared))  # each process's once


@pytest.mark.slow
def test_adapting_many_short_texts_row(small_bench):
    row = measured("B16", small_bench)
    assert row["status"] == "shown" and [gate for gate in row["gates"] if not gate["passed"]] == []
    work = row["workload"]
    assert work["rows"] == 200 and work["scored tokens"] > 200 and work["peak bytes"] >= 50e6
    # Two starts of the same program: what a handful of rows adds is small beside the libraries.
    assert work["peak bytes"] < 1.5 * work["peak bytes, one row"] and work["processor s"] > 0
    entry = json.loads(json.dumps(row))
    assert entry["comparisons"][0]["ratio"] > 1
    (shown,) = many_texts_frame({"here": {"machine": {"device": "this"}, "rows": {"B16": entry}}}).to_dict(
        "records"
    )
    assert (
        shown["peak (GB)"] == work["peak bytes"] / 1e9 and shown["limit (GB)"] == 4 and shown["rows"] == 200
    )


def test_short_texts_are_whole_pieces_of_equal_length():
    from chameleon_bench.rows_app import WORDS, short_texts
    from chameleon_lite.app.corpus import Corpus
    from chameleon_lite.text import Document

    long = Document("a", " ".join(map(str, range(2 * WORDS + 3))))
    corpus = Corpus(
        "made up", {"train": (long, Document("b", "too short")), "validation": (), "test": (long,)}, "here"
    )
    pieces = list(short_texts(corpus))
    assert len(pieces) == 4 and {len(p.split()) for p in pieces} == {WORDS} and pieces[:2] == pieces[2:]


def test_a_command_that_fails_is_said_to():
    from chameleon_bench.bench import run

    with pytest.raises(RunFailed, match="chameleon_lite adapt .*ended with code 2.*No such option: --modl"):
        run(
            "-m", "chameleon_lite", "adapt", "nowhere.jsonl", "--modl", "none"
        )  # known before PyTorch is loaded


def test_ladder_goes_from_the_released_way_to_ours(small_bench):
    found = measured("ladder", small_bench)
    assert [s["step"] for s in found["steps"]][0] == "released way"
    assert all(s["seconds"] > 0 for s in found["steps"])


def test_a_result_is_kept_row_by_row_and_replaced_when_run_again(tmp_path, monkeypatch, small_bench):
    path = tmp_path / "results" / "machine.json"
    shared_pass = rows_head.shared_pass
    monkeypatch.setattr(rows_head, "shared_pass", lambda bench, **sizes: shared_pass(small_bench, **sizes))

    def broken(bench, **sizes):
        raise ValueError("no such thing")

    monkeypatch.setattr(rows_head, "head_time", broken)
    run_rows(["B14"], device="cpu", quick=True, out=path)
    said = []
    with pytest.raises(RunFailed, match="B5"):
        run_rows(["B5", "B14"], device="cpu", quick=True, out=path, say=said.append)
    kept = json.loads(path.read_text())
    assert set(kept["rows"]) == {"B5", "B14"}
    assert kept["rows"]["B5"]["status"] == "failed" and "no such thing" in kept["rows"]["B5"]["unavailable"]
    assert kept["rows"]["B14"]["conditions"]["versions"]["torch"]
    assert any("B14" in text for text in said)


def test_a_row_whose_library_is_missing_is_not_available(tmp_path, monkeypatch):
    def missing(bench, **sizes):
        raise ImportError("no module named peft")

    monkeypatch.setattr(rows_layers, "lora_step", missing)
    kept = run_rows(["B10"], device="cpu", quick=True, out=tmp_path / "x.json")
    assert kept["rows"]["B10"]["status"] == "not available"


def test_an_unknown_row_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="B15"):
        run_rows(["B51"])


def test_roofline_points_are_complete(small_bench):
    found = measured("roofline", small_bench)
    assert all(rate > 0 for rate in found["rates"].values())
    for point in found["points"]:
        assert point["operations"] > 0 and point["bytes"] > 0 and point["seconds"] > 0
        assert point["format"] in found["rates"]


def test_two_workers_are_not_available_where_there_are_not_two_gpus(tmp_path):
    kept = run_rows(["workers"], device="cpu", quick=True, out=tmp_path / "now.json")
    assert kept["rows"]["workers"]["status"] == "not available"
    assert "two GPUs" in kept["rows"]["workers"]["unavailable"]


@pytest.mark.slow
def test_scaling_runs_as_two_processes_that_train_as_one(small_bench):
    found = measured("scaling", small_bench)
    assert found["processes"] == {"1": 1, "2": 2} and found["status"] == "shown"
    assert found["gates"][0]["value"] < 1e-4


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "xpu", "cpu:x", "meta"])
def test_a_device_that_is_not_there_is_named(device, tmp_path):
    with pytest.raises(UserError, match=f"device '{device}'") as raised:
        run_rows(["B14"], device=device, quick=True, out=tmp_path / "x.json")
    assert raised.value.exit_code == 2 and not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        '{"rows": {"B1"',
        "",
        "[]",
        "3",
        '{"a": 1}',
        '{"rows": [], "machine": {}}',
        '{"rows": {"B1": 3}, "machine": {}}',
    ],
)
def test_a_file_that_holds_no_results_is_named_and_kept(content, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(RunFailed, match="x.json is no file of `chameleon-lite bench`") as raised:
        run_rows(["B14"], device="cpu", quick=True, out=path)
    assert "\n" not in str(raised.value) and path.read_text() == content


@pytest.mark.parametrize("where", ["a file/x.json", "a folder", "a file/"])
def test_a_place_that_cannot_be_written_is_known_before_anything_is_measured(where, tmp_path):
    (tmp_path / "a file").write_text("")
    (tmp_path / "a folder").mkdir()
    said = []
    with pytest.raises((OSError, RunFailed), match="a f") as raised:
        run_rows(["B14"], device="cpu", quick=True, out=tmp_path / where, say=said.append)
    assert boundary.report(raised.value)[1] == 1 and said == []


def test_a_folder_that_is_not_there_is_made(tmp_path):
    run_rows(["workers"], device="cpu", quick=True, out=tmp_path / "new" / "folder" / "x.json")
    assert list(json.loads((tmp_path / "new" / "folder" / "x.json").read_text())["rows"]) == ["workers"]
