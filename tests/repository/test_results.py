"""What `results/` costs: the size of the clone, and the minutes of a GPU that the honest study took."""

import re
from pathlib import Path

from chameleon_study.provenance import Span, device_minutes, load_spans
from chameleon_study.records import NOT_RECORDS, load_records

from .counts import ROOT

RESULTS = ROOT / "results"
BENCHMARKS = ROOT / "benchmarks" / "results"
EARLY_RATES = 2  # learning rates in an early run with LoRA in the layers
STORED = [p for p in RESULTS.glob("*.jsonl") if p.stem not in NOT_RECORDS]


def test_the_stored_results_stay_small():
    assert 0 < sum(p.stat().st_size for p in RESULTS.rglob("*") if p.is_file()) < 60e6


def test_the_honest_study_cost_at_most_seventy_minutes_of_a_gpu():
    spans = [s for s in load_spans(RESULTS) if s.experiment.startswith("honest-")]
    assert {s.experiment for s in spans} == {path.stem for path in STORED if path.stem.startswith("honest-")}
    bill = device_minutes(spans).set_index("experiment").loc["all of them"]
    early = unnoted_minutes(RESULTS / "honest-layers.jsonl", spans)
    assert "H200" in bill["device"]
    assert 0 < bill["device minutes"] + early <= 70


def unnoted_minutes(path: Path, spans: list[Span]) -> float:
    """Minutes of training in an experiment's records on corpora without a span, one run after another.

    For regimes with LoRA in the layers, whose record gives the mean of a run's learning rates. 0 without the file.
    """
    known = {(s.experiment, s.corpus) for s in spans}
    records = load_records(path) if path.is_file() else []
    seconds = sum(r.seconds["training"] for r in records if (r.experiment, r.corpus) not in known)
    return seconds * EARLY_RATES / 60


def test_a_results_folder_without_the_early_experiment_has_no_early_minutes(tmp_path):
    assert unnoted_minutes(tmp_path / "honest-layers.jsonl", []) == 0


def test_no_stored_file_names_a_folder_of_a_machine():
    kept = [p for ends in ("*.jsonl", "*.json") for p in (*RESULTS.rglob(ends), *BENCHMARKS.rglob(ends))]
    place = re.compile(r"(?<![\w.~])/(?:[\w.-]+/)+[\w.-]*(?=[\s\"',;)])")
    found = {p.name: place.findall(p.read_text(encoding="utf-8")) for p in kept}
    assert len(kept) > 20 and {name: places for name, places in found.items() if places} == {}
