"""Claim 11 is decided by stored timings: made-up files of a machine lead to each verdict."""

import json

import pytest

from chameleon_study.claims.contrasts import StoredRuns
from chameleon_study.claims.ledger import RULES, ledger


def overhead(p50=1.02, p95=1.03, width=0.01, batches=200, **more):
    """An entry as `chameleon-lite bench overhead` stores it, with what the rule reads."""
    ratios = {q: {"ratio": r, "low": r - width, "high": r + width} for q, r in (("p50", p50), ("p95", p95))}
    waits = [
        {"batches": name, "size": 32, "p50": s, "p95": 2 * s, "p99": 3 * s}
        for name, s in (("by cluster", 1781.0), ("mixed", 0.5))
    ]
    return {
        "status": "shown",
        "batches": batches,
        "ratios": ratios,
        "whole": {"plain": {"p50": 0.01, "p95": 0.02}},
        "fitting clusters": {"seconds a batch": 0.004},
        "conditions": {"quick": False},
        "waiting": {"arrivals a second": 960.0, "batches": waits},
    } | more


def generating(times):
    """Row B12 in which adapted generation takes so many times the plain model's seconds."""
    theirs = {"median": 1.0, "low": 0.99, "high": 1.01}
    ours = {name: value * times for name, value in theirs.items()}
    return {"status": "met", "comparisons": [{"ours": ours, "theirs": theirs, "ratio": 1 / times}]}


def found(folder, **machines):
    """The finding for files of rows by machine."""
    for name, rows in machines.items():
        (folder / f"{name}.json").write_text(json.dumps({"machine": {}, "rows": rows}))
    return RULES[11][1](StoredRuns(folder / "results", benchmarks=folder))


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ({"overhead": overhead()}, "confirmed"),
        ({"overhead": overhead(), "B12": generating(1.01)}, "confirmed"),
        ({"overhead": overhead(p50=1.2, p95=1.2)}, "refuted"),
        ({"overhead": overhead(p95=1.2)}, "refuted"),  # the slow batches count as well
        ({"overhead": overhead(), "B12": generating(1.3)}, "refuted"),
        ({"overhead": overhead(p95=1.095)}, "not decidable here"),  # the limit lies inside the interval
        ({"overhead": overhead(batches=12)}, "not decidable here"),
        ({"overhead": overhead(p50=1.5, batches=12)}, "not decidable here"),
        ({"B12": generating(1.01)}, "not tested"),  # five repetitions hold no 95th percentile
        ({"overhead": overhead(status="gate failed")}, "not tested"),
        ({"overhead": overhead(conditions={"quick": True})}, "not tested"),
    ],
)
def test_verdict(tmp_path, rows, verdict):
    assert found(tmp_path, machine=rows).verdict == verdict


def test_a_machine_with_few_batches_shows_its_numbers_and_stops_no_other(tmp_path):
    both = found(tmp_path, cpu={"overhead": overhead(p50=1.5, batches=9)}, gpu={"overhead": overhead()})
    assert both.verdict == "confirmed"
    assert both.corpora == {"cpu": "not decidable here", "gpu": "confirmed"}
    assert "cpu: 1.500" in both.number and "n = 9" in both.number


def test_every_machine_that_can_decide_must_confirm(tmp_path):
    assert found(tmp_path, a={"overhead": overhead()}, b={"overhead": overhead(p50=1.3)}).verdict == "refuted"


def test_waiting_is_printed_and_never_counted(tmp_path):
    text = found(tmp_path, gpu={"overhead": overhead()}).number
    assert "by cluster 1,781 / 3,562 / 5,343 s" in text and "at 960 texts a second" in text
    assert text.index("beside") < text.index("waiting") and "k-means fitted anew +40.0%" in text


def test_timings_lie_beside_the_results_unless_said_otherwise(tmp_path):
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (folder / "gpu.json").write_text(json.dumps({"rows": {"overhead": overhead()}}))
    assert ledger(tmp_path / "results")[11].verdict == "confirmed"
    assert ledger(tmp_path / "results", benchmarks=tmp_path)[11].verdict == "not tested"


def test_the_rule_reads_what_the_benchmark_writes(tmp_path):
    import torch

    from chameleon_bench.bench import Bench
    from chameleon_bench.rows import measured

    entry = measured("overhead", Bench(torch.device("cpu"), quick=True, model="tiny"))
    made = found(tmp_path, tiny={"overhead": json.loads(json.dumps(entry))})
    assert made.verdict == "not decidable here" and "n = 3" in made.number
