"""What `results/` costs: the size of the clone, and the minutes of a GPU that the honest study took."""

import re

from chameleon_study.provenance import device_minutes, load_spans
from chameleon_study.records import NOT_RECORDS

from .counts import ROOT

RESULTS = ROOT / "results"
BENCHMARKS = ROOT / "benchmarks" / "results"
STORED = [p for p in RESULTS.glob("*.jsonl") if p.stem not in NOT_RECORDS]


def test_the_stored_results_stay_small():
    assert 0 < sum(p.stat().st_size for p in RESULTS.rglob("*") if p.is_file()) < 60e6


def test_the_honest_study_cost_at_most_54_minutes_of_a_gpu_and_with_the_layers_150():
    # Nine of them are group sizes and banks that were made a second time, with rates of their own.
    spans = [s for s in load_spans(RESULTS) if s.experiment.startswith("honest-")]
    assert {s.experiment for s in spans} == {path.stem for path in STORED if path.stem.startswith("honest-")}
    for of, most in (([s for s in spans if s.experiment != "honest-layers"], 54), (spans, 150)):
        bill = device_minutes(of).set_index("experiment").loc["all of them"]
        assert "H200" in bill["device"] and 0 < bill["device minutes"] <= most


def test_no_stored_file_names_a_folder_of_a_machine():
    kept = [p for ends in ("*.jsonl", "*.json") for p in (*RESULTS.rglob(ends), *BENCHMARKS.rglob(ends))]
    place = re.compile(r"(?<![\w.~])/(?:[\w.-]+/)+[\w.-]*(?=[\s\"',;)])")
    found = {p.name: place.findall(p.read_text(encoding="utf-8")) for p in kept}
    assert len(kept) > 20 and {name: places for name, places in found.items() if places} == {}
