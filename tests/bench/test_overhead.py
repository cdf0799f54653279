"""What adapting adds to a batch: everything is there, what is timed is right, and the ratios are those of the times."""

import json

import pytest
import torch

from chameleon_bench.measure import measured
from chameleon_bench.overhead import ROWS, Batches, quantiles, ratios


@pytest.fixture
def found(small_bench):
    return measured("overhead", small_bench)


def test_whole_batches_and_waiting_are_there_and_gates_hold(found):
    assert json.loads(json.dumps(found)) == found
    assert found["status"] == "shown" and all(gate["passed"] for gate in found["gates"])
    assert found["batches"] == 3
    assert set(found["whole"]) == {"plain", "adapted"} and set(found["ratios"]) == {"p50", "p95"}
    assert all(0 < whole["p50"] <= whole["p95"] for whole in found["whole"].values())
    waiting = {row["batches"]: row for row in found["waiting"]["batches"]}
    assert waiting["by cluster"]["p50"] > waiting["mixed"]["p50"] > 0


def test_an_assignment_that_is_wrong_fails_its_gate(small_bench, monkeypatch):
    def wrong(vectors, centroids):
        return torch.zeros(len(vectors), dtype=torch.int64), vectors[:, 0]

    monkeypatch.setattr("chameleon_bench.overhead.nearest_centroid", wrong)
    assert measured("overhead", small_bench)["status"] == "gate failed"


def test_a_batch_scores_what_follows_the_prefix(small_bench):
    b = Batches(small_bench, 1, longest=32, centroids=32).batch(0)
    rows, place = b["where"] // b["ids"].shape[1], b["where"] % b["ids"].shape[1]
    assert int(rows.max()) == ROWS - 1 and int(place.min()) == 15
    assert torch.equal(b["target"], b["ids"][rows, place + 1])


def test_ratios_are_paired_over_batches():
    plain = [1.0 + 0.01 * i for i in range(200)]
    exact = ratios([1.05 * s for s in plain], plain)
    for own in exact.values():
        assert (own["ratio"], own["low"], own["high"]) == pytest.approx((1.05, 1.05, 1.05))
    slow_at_times = [2.0 if i % 8 == 0 else 1.0 for i in range(200)]  # the median hides these
    found = ratios(slow_at_times, [1.0] * 200)
    assert found["p95"]["low"] > 1.1 > found["p50"]["high"]
    assert quantiles([1.0, 2.0, 3.0]) == {"p50": 2.0, "p95": pytest.approx(2.9)}


def test_rows_that_train_can_use_the_backbone_afterwards(small_bench):
    measured("overhead", small_bench)
    assert not any(p.is_inference() or p.dtype != torch.float32 for p in small_bench.backbone.lm.parameters())
