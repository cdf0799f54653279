"""The released tables end to end on the tiny backbone: every preset, a walk, and the decomposition's identity."""

import math
from operator import attrgetter

import pandas as pd
import pytest
import torch

from chameleon_lite.backbone import load_backbone
from chameleon_lite.errors import UserError
from chameleon_study.released.protocol import preset
from chameleon_study.released.run import decomposition, make_head, row_weights
from chameleon_study.released.tables import protocol_label, released_frame, walk_frame
from chameleon_study.run import expected_names, run_experiment

# what equal settings and seed must reproduce bit for bit
measured = attrgetter("metrics", "curve", "learning_rate")


@pytest.fixture
def run(tiny_backbone, released_settings, tmp_path):
    def go(corpus, protocol, **settings):
        settings = released_settings(corpus, protocol, **settings)
        records = run_experiment(settings, runs=tmp_path / "runs", backbone=tiny_backbone, command="test")
        return settings, records, tmp_path

    return go


def test_as_released_on_plain_text(run):
    settings, records, folder = run("plain", {"preset": "as_released"})
    assert [r.regime for r in records] == ["R0", "R1", "R4"] and [r.name for r in records] == expected_names(
        settings
    )
    assert set(records[0].data["documents"]) == {"train", "validation"}  # the test split is never read
    for record in records:
        m = record.metrics
        f = m["full_share_weighted"]
        assert m["validation_nll"] == pytest.approx(f * m["full_nll"] + (1 - f) * m["padded_nll"], rel=1e-9)
        rows = pd.read_parquet(folder / "runs" / record.name / "documents.parquet")
        assert float((rows["nll"] * rows["weight"]).sum()) == pytest.approx(m["reported_nll"], rel=1e-6)
        assert record.data["full_rows"]["validation"] == m["full_rows"] == rows["full"].sum()
    assert records[1].metrics["padded_nll"] < records[0].metrics["padded_nll"]  # the pad rule is learned
    frame = released_frame(records)
    assert frame["published loss"].tolist() == [13.7876, 0.5023, 0.3753] and set(frame["table"]) == {1}


def test_a_second_run_finds_the_first(run, monkeypatch):
    settings, first, folder = run("plain", {"preset": "as_released"})
    monkeypatch.setattr("chameleon_study.run.measure_released", None)
    again = run_experiment(settings, runs=folder / "runs", backbone=load_backbone("tiny"), command="test")
    assert [measured(r) for r in again] == [measured(r) for r in first]


def test_alpaca_is_validated_inside_training_as_released(run):
    _, records, _ = run("alpaca-like", {"preset": "as_released", "switches": {"initialisation": "alpaca"}})
    data = records[0].data
    assert data["documents"] == {
        "train": 80,
        "validation": 8,
    }  # a tenth of all rows, which are all trained on
    assert protocol_label(records[0]) == "as_released + initialisation=alpaca"


def test_as_described_trains_the_layers_and_leaves_the_backbone_alone(run, tiny_backbone):
    before = {name: p.clone() for name, p in tiny_backbone.lm.named_parameters()}
    _, records, _ = run("plain", {"preset": "as_described"})
    lora = records[1]
    assert lora.trainable_parameters > 4 * (16 + 257)
    assert lora.metrics["reported_nll"] < records[0].metrics["reported_nll"]
    assert all(torch.equal(p, before[name]) for name, p in tiny_backbone.lm.named_parameters())


def test_live_dropout_is_recorded(run):
    switches = {"backbone": "live with dropout"}
    _, records, _ = run(
        "plain", {"preset": "as_released", "switches": switches}, regimes=["R1"], learning_rates={"R1": 1e-2}
    )
    assert records[0].data["backbone_dropout"]["configured"] == 0.1


def test_a_walk_runs_once_a_stop_and_ends_on_the_test_split(run):
    mend = [
        "average",
        "ignored",
        "attention",
        "objective",
        "padding_in_mean",
        "reads",
        "validation_clusters",
        "kmeans",
        "batches",
        "initialisation",
        "split",
        "reported",
    ]
    settings, records, _ = run("plain", {"preset": "as_released", "mend": mend})
    walk = walk_frame(records)
    assert walk["mended"].drop_duplicates().tolist() == ["", *mend] and len(records) == 13 * 3
    assert len(set(expected_names(settings))) == len(records)
    assert walk["loss"].map(math.isfinite).all()
    last = records[-1]
    assert last.metrics["reported_nll"] == last.metrics["test_nll"]


def test_missing_rates_and_unknown_regimes_are_refused(run):
    with pytest.raises(UserError, match="sweeps nothing: give learning_rates for R4"):
        run("plain", {"preset": "as_released"}, learning_rates={"R1": 1e-2})
    with pytest.raises(UserError, match="unknown regime under protocol as_released 'R5'"):
        run("plain", {"preset": "as_released"}, regimes=["R5"], learning_rates={"R5": 1e-2})


def test_initialisations():
    for name, up, down in (("wikitext", True, True), ("no_op", False, True)):
        head = make_head("R1", 16, 50, preset("as_released", initialisation=name), 0)
        assert bool(head.up.any()) == up and bool(head.down.any()) == down
    wikitext, alpaca = (
        make_head("R4", 16, 50, preset("as_released", initialisation=n), 0).last.weight.std()
        for n in ("wikitext", "alpaca")
    )
    assert wikitext < 2e-3 < 0.05 < alpaca


def test_decomposition_by_hand():
    nll, counts = torch.tensor([8.0, 1.0, 6.0, 0.0]).double(), torch.ones(4, dtype=torch.int64)
    full = torch.tensor([True, False, True, False])
    weight = row_weights(counts, [torch.tensor([0, 1, 3]), torch.tensor([2])], "batch")
    assert torch.allclose(weight, torch.tensor([1 / 6, 1 / 6, 1 / 2, 1 / 6]).double())
    found = decomposition(nll, counts, full, weight)
    assert found["full_share"] == 0.5 and found["full_share_weighted"] == pytest.approx(2 / 3)
    assert found["full_nll"] == pytest.approx((8 / 6 + 6 / 2) / (2 / 3)) and found["full_row_nll"] == 7
    assert found["padded_nll"] == pytest.approx(0.5)
