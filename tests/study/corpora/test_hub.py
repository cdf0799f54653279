import subprocess
import sys
import time

import pytest

from chameleon_lite.errors import Unreachable, UserError
from chameleon_study.corpora import NAMES, hub, load_corpus


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No hub and no cache: an address that nothing answers, and an empty folder for the cache."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    return tmp_path


@pytest.mark.parametrize("name", ["wikitext-2", "alpaca", "alpaca-cleaned", "hub:owner/name"])
def test_without_network_and_cache_the_answer_comes_within_a_second(nowhere, name):
    start = time.perf_counter()
    with pytest.raises(Unreachable, match="cannot reach the hub.*docstrings"):
        load_corpus(name)
    assert time.perf_counter() - start < 1


def test_a_cached_set_is_read_at_once_without_the_hub(nowhere):
    """A subprocess, because the libraries read the cache's place when they are imported."""
    code = """
import sys, time
from datasets import Dataset, DatasetInfo, SplitDict
from pathlib import Path
folder = Path(sys.argv[1]) / "datasets" / "owner___name" / "default" / "0.0.0" / "abc"
folder.mkdir(parents=True)
data = Dataset.from_dict({"text": ["one", "two"]})
data.save_to_disk(sys.argv[1] + "/saved")
next(Path(sys.argv[1], "saved").glob("*.arrow")).rename(folder / "name-train.arrow")
splits = SplitDict.from_split_dict([{"name": "train", "num_examples": 2, "dataset_name": "name"}])
names = {"builder_name": "parquet", "dataset_name": "name", "config_name": "default", "version": "0.0.0"}
DatasetInfo(features=data.features, splits=splits, **names).write_to_directory(str(folder))
from chameleon_study.corpora.hub import fetch
print(fetch("owner/name"))
"""
    done = subprocess.run([sys.executable, "-c", code, str(nowhere)], capture_output=True, text=True)
    assert done.stdout.strip() == "{'train': [{'text': 'one'}, {'text': 'two'}]}", done.stderr
    assert "Retrying" not in done.stderr


def test_cached_sets_are_seen(nowhere):
    assert not hub.cached("owner/name")
    (nowhere / "hub" / "datasets--owner--name").mkdir(parents=True)
    assert hub.cached("owner/name")


def test_names_that_do_not_exist():
    with pytest.raises(UserError, match="did you mean 'docstrings'"):
        load_corpus("docstring")
    with pytest.raises(UserError, match="not hub:owner/name"):
        load_corpus("hub:name")
    with pytest.raises(UserError, match="no file or folder at texts.jsonl"):
        load_corpus("texts.jsonl")
    assert {"docstrings", "wikitext-2-lite", "alpaca"} <= set(NAMES)
