import numpy as np
import pytest
import torch

from chameleon_lite.errors import UserError
from chameleon_study.arrivals import Service, known_means, waiting_table, waiting_times

NOTHING = Service(0.0, 0.0)


def test_what_conditions_each_text():
    """Four texts on a line, two clusters; they arrive as 2, 0 | 1, 3."""
    vectors, labels = torch.tensor([[1.0], [3.0], [-2.0], [5.0]]), torch.tensor([1, 1, 0, 1])
    batches, own = torch.tensor([2, 0, 1, 3]).split(2), torch.tensor([5, 8, 5, 8])
    found = {
        k: v.flatten().tolist() for k, v in known_means(vectors, labels, vectors * 10, own, batches).items()
    }
    assert found == {
        "current": [1.0, 4.0, -2.0, 4.0],
        "past": [1.0, 3.0, -2.0, 3.0],
        "offline": [3.0, 3.0, -2.0, 3.0],
        "whole rows": [-5.0, 40.0, -5.0, 40.0],
    }


def test_the_future_changes_nothing_that_is_possible_in_a_stream():
    generator = torch.Generator().manual_seed(0)
    vectors, labels = torch.randn(40, 4, generator=generator), torch.arange(40) % 3
    batches = torch.randperm(40, generator=generator).split(8)
    changed, seen = vectors.clone(), torch.cat(batches[:2])
    changed[torch.cat(batches[2:])] += 1.0
    one, two = (known_means(x, labels, x, labels, batches) for x in (vectors, changed))
    for known in ("current", "past"):
        assert torch.equal(one[known][seen], two[known][seen])
    assert not torch.equal(one["offline"][seen], two["offline"][seen])


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


def test_a_busy_worker_makes_a_queue():
    labels = np.random.default_rng(1).integers(20, size=2_000)
    slow = waiting_times(labels, rate=10, batch=1, service=Service(0.2, 0.0), seed=0)
    assert slow[-100:].mean() > 100  # 2,000 texts at 5 a second, arriving at 10 a second


def test_no_text_has_its_result_before_it_arrives():
    labels = np.random.default_rng(1).integers(5, size=300)
    assert waiting_times(labels, rate=7, batch=4, service=NOTHING, seed=2).min() >= 0


def test_table_says_that_clusters_wait_longer_than_mixed_batches():
    labels = np.random.default_rng(0).integers(30, size=1_500)
    table = waiting_table(labels, rate=20, batches=(1, 4, 16), service=Service(0.01, 0.001))
    assert list(table.columns) == ["batches", "size", "p50", "p95", "p99"] and len(table) == 6
    wide = table.pivot(index="size", columns="batches", values="p50")
    assert (wide["by cluster"] >= wide["mixed"] - 1e-9).all()
    assert wide.loc[16, "by cluster"] > 5 * wide.loc[16, "mixed"]
    assert (table["p50"] <= table["p95"]).all() and (table["p95"] <= table["p99"]).all()


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"batch": 0}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(UserError):
        waiting_times(np.zeros(3), **{"rate": 1.0, "batch": 1, "service": NOTHING, "seed": 0} | wrong)
