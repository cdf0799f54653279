"""What `results/streams` holds: admissible, whole, and the records say what the documents' losses add up to."""

import json
from pathlib import Path

import pandas as pd
import pytest

from chameleon_lite.errors import DamagedFile, UserError
from chameleon_study import stored
from chameleon_study.records import REFUSED_BACKBONES
from chameleon_study.streams.material import PROFILES
from chameleon_study.streams.run import Store, pack, run_streams

RESULTS = Path(__file__).parents[3] / "results" / "streams"


@pytest.fixture(scope="module")
def results():
    return Store(RESULTS)


def test_every_record_may_be_kept_and_names_its_circumstances(results):
    assert set(stored.checksums(RESULTS)) == {"records.jsonl", "documents.parquet", "diagram.csv"}
    trained = [r for unit, r in results.records.items() if unit.startswith("training ")]
    measured = [r for unit, r in results.records.items() if not unit.startswith("training ")]
    assert len(measured) > len(trained) and len({r["key"] for r in results.records.values()}) == 1
    for r in measured:
        assert not r["data"]["backbone"].startswith(REFUSED_BACKBONES)
        assert r["data"]["settings"] == PROFILES["paper"].model_dump(mode="json")
        assert r["provenance"]["commit"] not in ("", "unknown") and r["provenance"]["device_name"]
        assert r["provenance"]["command"].startswith("chameleon-lite stream ")
        assert r.get("skipped", 0) == r.get("failed", 0) == 0
    assert not [word for word in ("/tmp", "/root", "/home") if word in json.dumps(results.records)]


def test_records_and_documents_agree(results):
    tokens = results.frame["tokens"].sum()
    for r in results.records.values():
        for order, nats in r.get("nats_per_token", {}).items():
            column = results.frame[f"{r['method']}|{order}|{r['batch']}"].astype(float)
            assert column.sum() / tokens == pytest.approx(nats, abs=1e-5)


def test_the_diagram_is_whole_and_no_bayes_loss_grows_with_what_is_known():
    frame = pd.read_csv(RESULTS / "diagram.csv")
    assert (
        frame.notna().all().all()
        and not frame.duplicated(["sources", "prefix", "purity", "batch", "from"]).any()
    )
    means = frame[[f"bayes {name}" for name in ("none", "prefix", "batch", "past")]].mean()
    assert (means.diff().dropna() < 0).all()


@pytest.fixture
def tiny_run(small_corpus, small_settings, small_model, home, tmp_path):
    run_streams(
        small_settings, small_model, small_corpus, tmp_path / "run", ["static frozen"], say=lambda _: None
    )
    return tmp_path / "run"


def test_a_run_of_random_weights_is_not_stored(tiny_run, tmp_path):
    with pytest.raises(UserError, match="no result"):
        pack(tiny_run, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_what_is_stored_has_checksums_and_damage_is_noticed(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("chameleon_study.streams.run.REFUSED_BACKBONES", ())
    target = tmp_path / "results"
    pack(tiny_run, target)
    assert Store(target).records == Store(tiny_run).records
    path = target / "records.jsonl"
    path.write_bytes(path.read_bytes().replace(b"static", b"statiC", 1))
    with pytest.raises(DamagedFile, match="records.jsonl"):
        Store(target)
