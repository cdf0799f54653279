"""A small stream of three sources on a tiny backbone."""

import numpy as np
import pytest

from chameleon_lite.app.corpus import Corpus
from chameleon_lite.backbone import load_backbone
from chameleon_lite.text import Document
from chameleon_study.streams.material import StreamSettings, prepare

WORDS = "the mean of a batch tells what kind of text it holds and little else than that".split()
SMALL = {"documents": 40, "tuning": 24, "train": 64, "validation": 8, "epochs": 2, "orders": 2}
SMALL |= {"robust": 16, "extra": 8}


def documents(part, count, sources, numbers):
    texts = [" ".join(numbers.choice(WORDS, size=numbers.integers(8, 14))) for _ in range(count)]
    return tuple(Document(f"{part}{i}", t, group=sources[i % len(sources)]) for i, t in enumerate(texts))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def small_corpus():
    numbers = np.random.default_rng(0)
    parts = {"stream": (40, "abc"), "tuning": (24, "ab"), "train": (68, "abc"), "other": (24, "xy")}
    return Corpus("stream", {p: documents(p, n, s, numbers) for p, (n, s) in parts.items()}, "made up")


@pytest.fixture(scope="session")
def small_settings():
    return StreamSettings(**SMALL)


@pytest.fixture(scope="session")
def small_model():
    return load_backbone("tiny-llama")


@pytest.fixture
def material(small_corpus, small_settings, small_model, home):
    return prepare(small_settings, small_model, small_corpus, say=lambda text: None)
