"""What `results/` costs: the size of the clone, and the minutes of a GPU that the honest study took."""

from chameleon_study.records import NOT_RECORDS
from chameleon_study.spans import device_minutes, load_spans, unnoted_minutes

from .counts import ROOT

RESULTS = ROOT / "results"
STORED = [p for p in RESULTS.glob("*.jsonl") if p.stem not in NOT_RECORDS]


def test_the_stored_results_stay_small():
    assert 0 < sum(p.stat().st_size for p in RESULTS.rglob("*") if p.is_file()) < 60e6


def test_the_honest_study_cost_at_most_forty_minutes_of_a_gpu():
    spans = [s for s in load_spans(RESULTS) if s.experiment.startswith("honest-")]
    assert {s.experiment for s in spans} == {path.stem for path in STORED if path.stem.startswith("honest-")}
    bill = device_minutes(spans).set_index("experiment").loc["all of them"]
    early = unnoted_minutes(RESULTS / "honest-layers.jsonl", spans)
    assert "H100" in bill["device"]
    assert 0 < bill["device minutes"] + early <= 40
