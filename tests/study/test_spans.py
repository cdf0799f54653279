import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest

from chameleon_lite.study import experiment, spans
from chameleon_lite.study.experiment import run_experiment
from chameleon_lite.study.provenance import device_name
from chameleon_lite.study.spans import (
    FILE,
    Span,
    device_minutes,
    load_spans,
    noted,
    pack_spans,
    unnoted_minutes,
)


def span(start, end, experiment="a", device="one"):
    return Span(
        experiment=experiment, corpus="c", device=device, device_name="a GPU", started=start, ended=end
    )


def test_time_that_processes_share_counts_once_and_devices_add_up():
    several = [
        span(0, 60),
        span(30, 120),
        span(300, 360),
        span(0, 60, device="two"),
        span(90, 150, "b"),
        span(7, None),
    ]
    table = device_minutes(several).set_index("experiment")
    assert table.loc["a", "device minutes"] == pytest.approx(
        2 + 1 + 1
    )  # 0–120 and 300–360 of one, 0–60 of two
    assert table.loc["b", "device minutes"] == pytest.approx(1)
    assert table.loc["all of them", "device minutes"] == pytest.approx(2.5 + 1 + 1)
    assert (
        table.loc["a", "unfinished"] == 1
        and table.loc["a", "processes"] == 5
        and table.loc["a", "devices"] == 2
    )


def test_a_span_is_on_disk_from_the_start_and_packed_once(tmp_path):
    with noted("x", "a/b", "cpu", tmp_path):
        (path,) = (tmp_path / "spans").glob("x--*.json")
        assert json.loads(path.read_text())["ended"] is None
    with pytest.raises(RuntimeError), noted("x", "c", "cpu", tmp_path):
        raise RuntimeError
    results = tmp_path / "results"
    results.mkdir()
    assert load_spans(results) == []
    pack_spans("x", tmp_path, results)
    first = (results / FILE).read_text()
    pack_spans("x", tmp_path, results)
    assert (results / FILE).read_text() == first
    assert {s.corpus for s in load_spans(results)} == {"a/b", "c"}
    assert all(s.ended >= s.started and s.device == "cpu" for s in load_spans(results))


def test_every_piece_of_work_has_a_file_of_its_own_that_any_system_takes(tmp_path):
    for _ in range(3):  # the stops of one experiment, within a second
        with noted("x", "hub:owner/a", "cpu", tmp_path):
            pass
    names = [path.name for path in (tmp_path / "spans").iterdir()]
    assert len(names) == 3 and not any(c in name for name in names for c in "/:\\")


def test_an_experiment_takes_no_others_spans(tmp_path):
    for name in ("x", "x--y"):
        with noted(name, "c", "cpu", tmp_path):
            pass
    assert [s.experiment for s in load_spans(pack_spans("x", tmp_path, tmp_path).parent)] == ["x"]


def test_experiments_packed_side_by_side_lose_no_span(tmp_path, monkeypatch):
    for name in ("x", "y"):
        with noted(name, "c", "cpu", tmp_path):
            pass
    read = spans.load_spans

    def slowly(results):
        found = read(results)
        time.sleep(0.3)
        return found

    monkeypatch.setattr(spans, "load_spans", slowly)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: pack_spans(name, tmp_path, tmp_path), ("x", "y")))
    assert {s.experiment for s in read(tmp_path)} == {"x", "y"}


def test_a_span_is_of_the_device_that_holds_the_backbone(small, tiny_backbone, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        experiment, "noted", lambda name, corpus, device, runs: asked.append(device) or nullcontext()
    )
    run_experiment(small(["R0"]), runs=tmp_path, backbone=tiny_backbone, device="cuda:1")
    assert asked == ["cpu"]


def test_a_device_is_named_by_its_own_number(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device=None: f"the GPU {device}")
    assert device_name("cuda:1") == "the GPU cuda:1"


def test_a_results_folder_without_the_early_experiment_has_no_early_minutes(tmp_path):
    assert unnoted_minutes(tmp_path / "honest-layers.jsonl", []) == 0
