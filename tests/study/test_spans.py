import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from chameleon_study.provenance import (
    FILE,
    Span,
    device_minutes,
    device_name,
    load_spans,
    note,
    pack_spans,
    span_of,
)
from chameleon_study.run import run_experiment

CPU = torch.device("cpu")


def span(start, end, experiment="a", device="one"):
    return Span(
        experiment=experiment, corpus="c", device=device, device_name="a GPU", started=start, ended=end
    )


def test_time_that_processes_share_counts_once_and_devices_add_up():
    several = [span(0, 60), span(30, 120), span(300, 360), span(0, 60, device="two"), span(90, 150, "b")]
    table = device_minutes(several).set_index("experiment")
    assert table.loc["a", "device minutes"] == pytest.approx(
        2 + 1 + 1
    )  # 0–120 and 300–360 of one, 0–60 of two
    assert table.loc["b", "device minutes"] == pytest.approx(1)
    assert table.loc["all of them", "device minutes"] == pytest.approx(2.5 + 1 + 1)
    assert table.loc["a", "spans"] == 4 and table.loc["a", "devices"] == 2


def test_every_job_leaves_a_span_and_is_packed_once(small, tmp_path):
    settings = small(["R0", "R1", "R14"], seeds=2)
    run_experiment(settings, runs=tmp_path)
    run_experiment(settings, runs=tmp_path)  # complete: no job, no span
    spans = load_spans(tmp_path)
    assert len(spans) == 4 and all(s.ended > s.started and s.device == "cpu" for s in spans)  # R14 apart
    results = tmp_path / "results"
    results.mkdir()
    assert load_spans(results) == []
    pack_spans(settings.name, tmp_path, results)
    first = (results / FILE).read_text()
    pack_spans(settings.name, tmp_path, results)
    assert (results / FILE).read_text() == first
    assert [json.loads(line)["experiment"] for line in first.splitlines()] == [settings.name] * 4


def test_an_experiment_takes_no_others_spans(tmp_path):
    for name in ("x", "x--y"):
        note(span_of(name, "c", 0.0, CPU), tmp_path)
    assert [s.experiment for s in load_spans(pack_spans("x", tmp_path, tmp_path / "results").parent)] == ["x"]


def test_experiments_packed_side_by_side_lose_no_span(tmp_path):
    names = [f"x{i}" for i in range(20)]
    for name in names:
        note(span_of(name, "c", 0.0, CPU), tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: pack_spans(name, tmp_path, tmp_path / "results"), names))
    assert {s.experiment for s in load_spans(tmp_path / "results")} == set(names)


def test_a_device_is_named_by_its_own_number(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device=None: f"the GPU {device}")
    assert device_name("cuda:1") == "the GPU cuda:1"
