import time

import pytest

from chameleon_lite.data.corpora import NAMES, hub, load_corpus
from chameleon_lite.errors import Unreachable, UserError


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


def test_offline_is_believed_without_a_probe(nowhere, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub.reachable()


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
