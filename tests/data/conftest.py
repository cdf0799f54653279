import numpy as np
import pytest

from chameleon_lite.data.corpora.documents import Document
from chameleon_lite.data.tokens import tokenise


class ByteTokenizer:
    """Byte b is token b; the smallest thing `tokenise` takes for a tokenizer. Pads with 0, an ordinary id."""

    pad_token_id = 0

    def __call__(self, texts: list[str], add_special_tokens: bool = False) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(text.encode()) for text in texts]}


@pytest.fixture
def byte_tokenizer():
    return ByteTokenizer()


@pytest.fixture
def byte_table():
    """A table of texts, given directly: m = 2 prefix tokens, at least 1 scored."""

    def make(texts, **settings):
        settings = {"max_length": 64, "prefix_tokens": 2, "min_scored": 1} | settings
        documents = [Document(str(i), text, group=f"g{i % 2}") for i, text in enumerate(texts)]
        return tokenise(documents, ByteTokenizer(), **settings)

    return make


@pytest.fixture
def numbers():
    return np.random.default_rng(0)
