import numpy as np
import pytest
import torch

from chameleon_lite.data.corpora.documents import Document
from chameleon_lite.data.tokens import tokenise
from chameleon_lite.loss import HeadWeight
from chameleon_lite.model.backbones import load_backbone
from chameleon_lite.states import ScoredStates, hidden_states

WORDS = "the mean of a batch tells what kind of text it holds and little else than that".split()


@pytest.fixture(scope="session")
def tiny():
    return load_backbone("tiny")


@pytest.fixture(scope="session")
def some_documents():
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, size=generator.integers(8, 20))) for _ in range(60)]
    return [Document(str(i), text, group=f"g{i % 3}") for i, text in enumerate(texts)]


@pytest.fixture(scope="session")
def tiny_table(tiny, some_documents):
    return tokenise(some_documents, tiny.tokenizer, max_length=96, prefix_tokens=8, min_scored=4)


@pytest.fixture(scope="session")
def tiny_states(tiny, tiny_table, tmp_path_factory):
    states = hidden_states(tiny, tiny_table, torch.float32, tmp_path_factory.mktemp("states"))
    return ScoredStates(tiny_table, states)


@pytest.fixture(scope="session")
def tiny_weight(tiny):
    return HeadWeight(tiny.head.weight, tiny.head.bias, dtype=torch.float32)
