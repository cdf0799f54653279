import numpy as np
import pytest
import torch

from chameleon_lite.cluster import Clustering
from chameleon_lite.errors import UserError
from chameleon_study.arrivals import (
    Arrivals,
    Service,
    arrivals,
    evaluate_stream,
    waiting_table,
    waiting_times,
)

NOTHING = Service(0.0, 0.0)


def by_hand():
    """Four texts on a line, two clusters; they arrive as 2, 0 | 1, 3."""
    vectors = torch.tensor([[1.0], [3.0], [-2.0], [5.0]])
    return Arrivals(
        vectors, torch.tensor([1, 1, 0, 1]), torch.tensor([2, 0, 1, 3]), 2, rows=vectors * 10, clusters=2
    )


def test_what_each_text_is_told():
    four = by_hand()
    assert four.vector("current").flatten().tolist() == [1.0, 4.0, -2.0, 4.0]
    assert four.vector("past").flatten().tolist() == [1.0, 3.0, -2.0, 3.0]
    assert four.vector("offline").flatten().tolist() == [3.0, 3.0, -2.0, 3.0]
    leak = four.vector("whole rows").flatten().tolist()
    assert sorted(set(leak)) in ([-5.0, 40.0], [-20.0, 30.0]) and leak[1] == leak[3]
    with pytest.raises(UserError, match="rows="):
        Arrivals(four.vectors, four.labels, four.order, 2).vector("whole rows")


def test_the_future_changes_nothing_that_is_possible_in_a_stream():
    torch.manual_seed(0)
    vectors, centroids = torch.randn(40, 4), torch.randn(3, 4)
    clustering = Clustering(centroids, torch.zeros(1).long(), torch.zeros(1), 0.0)
    one = arrivals(vectors, clustering, batch=8, seed=0)
    changed = vectors.clone()
    changed[one.order[16:]] += 1.0
    two = arrivals(changed, clustering, batch=8, seed=0)
    seen = one.order[:16]
    for known in ("current", "past"):
        assert torch.equal(one.vector(known)[seen], two.vector(known)[seen])
    assert not torch.equal(one.vector("offline")[seen], two.vector("offline")[seen])


def test_stream_is_scored_on_the_same_positions_whatever_is_known(adapter, some_texts, tmp_path):
    from chameleon_lite.embed import mean_embeddings
    from chameleon_lite.loss import HeadWeight
    from chameleon_lite.states import ScoredStates, hidden_states
    from chameleon_lite.text import Document, tokenise

    backbone = adapter.backbone
    table = tokenise(
        [Document(str(i), t) for i, t in enumerate(some_texts(30))], adapter.tokenizer, max_length=96
    )
    scored = ScoredStates(table, hidden_states(backbone, table, torch.float32, tmp_path, progress=False))
    clustering = Clustering(adapter.centroids, torch.zeros(1).long(), torch.zeros(1), 0.0)
    vectors, rows = (mean_embeddings(table, backbone.embedding, span=s) for s in ("condition", "row"))
    weight = HeadWeight(backbone.head.weight, dtype=torch.float32)
    stream = arrivals(vectors, clustering, batch=8, seed=0, rows=rows)
    found = evaluate_stream(adapter.head, scored, stream, weight)
    assert set(found) == {"frozen", "current", "past", "offline", "whole rows"}
    assert all(len(nll) == 30 and torch.isfinite(nll).all() for nll in found.values())
    assert torch.equal(
        found["current"][stream.order[:8]], found["past"][stream.order[:8]]
    )  # nothing came before
    assert not torch.equal(found["past"], found["offline"])


def test_on_the_fly_is_a_table_of_what_may_be_known(adapter, some_texts, tmp_path, monkeypatch):
    from chameleon_lite.app.stream import adapt
    from chameleon_lite.text import Document
    from chameleon_study.arrivals import on_the_fly

    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(tmp_path))
    texts = some_texts(24)
    table = on_the_fly(adapter, [Document(str(i), t) for i, t in enumerate(texts)], batch=8).set_index(
        "known"
    )
    assert list(table.index) == ["frozen", "current", "past", "offline", "whole rows"]
    assert (
        table["possible"].tolist() == [True, True, True, False, False]
        and table["against_frozen"]["frozen"] == 0
    )
    rows = adapt(adapter, texts)  # one window: what `offline` knows
    tokens = sum(r["tokens"] for r in rows)
    assert table["loss"]["offline"] == pytest.approx(
        sum(r["loss"] * r["tokens"] for r in rows) / tokens, rel=2e-2
    )


def test_one_row_a_batch_waits_for_nothing_but_the_worker():
    times = waiting_times(np.array([0, 1, 0, 1]), rate=1e-3, batch=1, service=Service(0.5, 0.25), seed=0)
    assert times == pytest.approx([0.75] * 4)


def test_a_batch_waits_for_its_last_row():
    labels = np.array([0, 1, 0, 1])
    arrival = np.cumsum(np.random.default_rng(0).exponential(1.0, 4))
    times = waiting_times(labels, rate=1.0, batch=2, service=NOTHING, seed=0)
    assert times == pytest.approx([arrival[2] - arrival[0], arrival[3] - arrival[1], 0, 0])
    mixed = waiting_times(labels * 0, rate=1.0, batch=2, service=NOTHING, seed=0)
    assert mixed == pytest.approx([arrival[1] - arrival[0], 0, arrival[3] - arrival[2], 0])


def test_patience_bounds_the_wait_and_a_busy_worker_makes_a_queue():
    labels = np.random.default_rng(1).integers(20, size=2_000)
    impatient = waiting_times(labels, rate=10, batch=32, service=NOTHING, seed=0, patience=1.0)
    assert (
        impatient.max()
        <= 1.0 + 1e-9
        < waiting_times(labels, rate=10, batch=32, service=NOTHING, seed=0).max()
    )
    slow = waiting_times(labels, rate=10, batch=1, service=Service(0.2, 0.0), seed=0)
    assert slow[-100:].mean() > 100  # 2,000 texts at 5 a second, arriving at 10 a second


def test_no_text_has_its_result_before_it_arrives():
    labels = np.random.default_rng(1).integers(5, size=300)
    for patience in (None, 0.0, 0.3):
        assert waiting_times(labels, rate=7, batch=4, service=NOTHING, seed=2, patience=patience).min() >= 0


def test_table_says_that_clusters_wait_longer_than_mixed_batches():
    labels = np.random.default_rng(0).integers(30, size=1_500)
    table = waiting_table(labels, rate=20, batches=(1, 4, 16), service=Service(0.01, 0.001))
    assert list(table.columns) == ["batches", "size", "p50", "p95", "p99"] and len(table) == 6
    wide = table.pivot(index="size", columns="batches", values="p50")
    assert (wide["by cluster"] >= wide["mixed"] - 1e-9).all()
    assert wide.loc[16, "by cluster"] > 5 * wide.loc[16, "mixed"]
    assert (table["p50"] <= table["p95"]).all() and (table["p95"] <= table["p99"]).all()


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"batch": 0}, {"patience": -1.0}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(UserError):
        waiting_times(np.zeros(3), **{"rate": 1.0, "batch": 1, "service": NOTHING, "seed": 0} | wrong)
    with pytest.raises(UserError, match="between 1 and 2"):
        arrivals(torch.zeros(2, 1), Clustering(torch.zeros(1, 1), torch.zeros(2), torch.zeros(2), 0.0), 3, 0)
