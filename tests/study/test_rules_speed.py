"""Claim 11 is decided by stored timings: made-up files of a machine lead to each verdict."""

import json

import pytest

from chameleon_study.claims.contrasts import StoredRuns
from chameleon_study.claims.rules_stored import machines


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


def found(folder, **rows_of):
    """The cells for files of rows by machine."""
    for name, rows in rows_of.items():
        (folder / f"{name}.json").write_text(json.dumps({"machine": {}, "rows": rows}))
    return machines(StoredRuns(folder / "results", benchmarks=folder))


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ({"overhead": overhead()}, "supported"),
        ({"overhead": overhead(p50=1.2, p95=1.2)}, "contradicted"),
        ({"overhead": overhead(p95=1.2)}, "contradicted"),  # the slow batches count as well
        ({"overhead": overhead(p95=1.095)}, "not decidable here"),  # the limit lies inside the interval
        ({"overhead": overhead(batches=12)}, "not decidable here"),
        ({"overhead": overhead(p50=1.5, batches=12)}, "not decidable here"),
        ({"overhead": overhead(status="gate failed")}, None),
        ({"overhead": overhead(conditions={"quick": True})}, None),
        ({}, None),
    ],
)
def test_every_word(tmp_path, rows, verdict):
    others = {name: {"overhead": overhead()} for name in ("a", "b", "c")}
    cells = found(tmp_path, machine=rows, **others)
    assert cells["machine"].verdict == verdict if verdict else "machine" not in cells
    assert {cells[name].verdict for name in others} == {"supported"}


def test_fewer_than_three_machines_decide_nothing(tmp_path):
    two = found(
        tmp_path,
        cpu={"overhead": overhead(batches=9)},
        a={"overhead": overhead()},
        b={"overhead": overhead()},
    )
    assert {cell.verdict for cell in two.values()} == {"not decidable here"}
    assert two["cpu"].number.startswith("1.020 [1.010, 1.030] at p50") and "n = 9" in two["cpu"].number


def test_waiting_is_printed_and_never_counted(tmp_path):
    text = found(tmp_path, gpu={"overhead": overhead()})["gpu"].number
    assert "by cluster 1,781 / 3,562 / 5,343 s" in text and "at 960 texts a second" in text
    assert text.index("beside") < text.index("waiting") and "k-means fitted anew +40.0%" in text


def test_timings_lie_beside_the_results_unless_said_otherwise(tmp_path):
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (folder / "gpu.json").write_text(json.dumps({"rows": {"overhead": overhead()}}))
    assert machines(StoredRuns(tmp_path / "results"))["gpu"].number
    assert machines(StoredRuns(tmp_path / "results", benchmarks=tmp_path)) == {}


def test_the_rule_reads_what_the_benchmark_writes(tmp_path):
    import torch

    from chameleon_bench.bench import Bench
    from chameleon_bench.measure import measured

    entry = measured("overhead", Bench(torch.device("cpu"), quick=True, model="tiny"))
    made = found(tmp_path, tiny={"overhead": json.loads(json.dumps(entry))})["tiny"]
    assert made.verdict == "not decidable here" and "n = 3" in made.number
