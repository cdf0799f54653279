import json

import pytest

from chameleon_lite.study.spans import FILE, Span, device_minutes, load_spans, noted, pack_spans


def span(start, end, experiment="a", device="one"):
    return Span(experiment=experiment, corpus="c", device=device, device_name="a GPU", started=start, ended=end)


def test_time_that_processes_share_counts_once_and_devices_add_up():
    spans = [span(0, 60), span(30, 120), span(300, 360), span(0, 60, device="two"), span(90, 150, "b"), span(7, None)]
    table = device_minutes(spans).set_index("experiment")
    assert table.loc["a", "device minutes"] == pytest.approx(2 + 1 + 1)  # 0–120 and 300–360 of one, 0–60 of two
    assert table.loc["b", "device minutes"] == pytest.approx(1)
    assert table.loc["all of them", "device minutes"] == pytest.approx(2.5 + 1 + 1)
    assert table.loc["a", "unfinished"] == 1 and table.loc["a", "processes"] == 5 and table.loc["a", "devices"] == 2


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
