"""What `results/` holds is admissible, complete in its circumstances, and says what the pages say of it."""

from pathlib import Path

import pytest

from chameleon_lite.study.records import REFUSED_BACKBONES, load_records
from chameleon_lite.study.statistics import contrast
from chameleon_lite.study.tables import documents_of, loss_matrix

RESULTS = Path(__file__).parents[2] / "results"
STORED = sorted(p for p in RESULTS.glob("*.jsonl") if p.stem != "proofs")


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
def test_every_record_may_be_kept_and_names_its_circumstances(path):
    records = load_records(path)
    assert len({r.name for r in records}) == len(records)
    for r in records:
        assert r.profile != "smoke" and not r.backbone.startswith(REFUSED_BACKBONES)
        assert r.provenance["commit"] not in ("", "unknown") and r.provenance["device_name"]
        assert r.provenance["command"].startswith("chameleon-lite run experiments/")
        assert r.data["hash"] and r.data["backbone_hash"] and r.seconds and r.peak_memory_bytes
        assert not [word for word in ("/tmp", "/root", "/home") if word in r.model_dump_json()]


def test_a_table_never_mixes_arithmetic():
    for path in STORED:
        found = {(r.data["feature_dtype"], r.data["matmul_dtype"]) for r in load_records(path)}
        assert len(found) == 1, path.name


def test_rank_four_lora_is_below_the_frozen_model_on_docstrings():
    records = [r for r in load_records(RESULTS / "four-regimes.jsonl") if r.corpus == "docstrings"]
    documents = documents_of(records, RESULTS)
    nll = {name: loss_matrix([r for r in records if r.regime == name], documents) for name in ("R0", "R1")}
    found = contrast(nll["R1"][0], nll["R0"][0], nll["R0"][1])
    assert found.n == 5 and found.documents > 300
    assert found.high < 0  # the whole 95 % interval, over seeds and documents


def test_per_document_losses_add_up_to_the_recorded_mean():
    records = load_records(RESULTS / "four-regimes.jsonl")
    documents = documents_of(records, RESULTS)
    for record in records:
        nll, tokens = loss_matrix([record], documents)
        assert nll.sum() / tokens.sum() == pytest.approx(record.metrics["test_nll"], abs=1e-5)
