import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon_lite.embed import masked_mean, mean_embeddings, normalise
from chameleon_lite.errors import UserError
from chameleon_lite.text import Document, tokenise

WEIGHT = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))
TEXTS = st.lists(st.text(st.characters(max_codepoint=127), min_size=2, max_size=20), min_size=1, max_size=6)


def letters(texts, add_special_tokens=False):
    return {"input_ids": [[ord(c) for c in text] for text in texts]}


def letter_table(texts, prefix_tokens=2):
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    return tokenise(documents, letters, max_length=32, prefix_tokens=prefix_tokens, min_scored=0)


def test_by_hand():
    weight = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    table = tokenise([Document("x", "\1\2\2\1")], letters, max_length=8, prefix_tokens=2, min_scored=2)
    assert mean_embeddings(table, weight, normalised=False).tolist() == [[1.5, 2.0]]  # tokens 1 and 2
    assert torch.allclose(mean_embeddings(table, weight), torch.tensor([[0.6, 0.8]]))
    padded = mean_embeddings(table, weight, span="padded", length=8, normalised=False)
    assert padded.tolist() == [[0.75, 1.0]]  # (2 · 3, 2 · 4) over 8 positions, four of them the zero pad


@settings(deadline=None)
@given(TEXTS, st.integers(0, 9))
def test_padding_never_changes_the_masked_mean(texts, more):
    table = letter_table(texts)
    ids, mask = table.padded(range(len(table)), length=20 + more)
    expected = normalise(masked_mean(WEIGHT[ids], mask))
    assert torch.allclose(mean_embeddings(table, WEIGHT, span="row"), expected, atol=1e-5)


@settings(deadline=None)
@given(TEXTS)
def test_neither_do_the_other_documents_nor_what_is_scored(texts):
    together = mean_embeddings(letter_table(texts), WEIGHT)
    alone = torch.cat([mean_embeddings(letter_table([text[:2] + "!?"]), WEIGHT) for text in texts])
    assert torch.allclose(together, alone, atol=1e-6)


@settings(deadline=None)
@given(TEXTS)
def test_padded_is_the_mean_of_all_positions(texts):
    table = letter_table(texts)
    ids, _ = table.padded(range(len(table)), length=16)  # longer rows are cut
    found = mean_embeddings(table, WEIGHT, span="padded", length=16, normalised=False)
    assert torch.allclose(found, WEIGHT[ids].mean(1), atol=1e-5)


def test_half_precision_weights_give_float32():
    assert mean_embeddings(letter_table(["abc"]), WEIGHT.half()).dtype == torch.float32


def test_wrong_use():
    with pytest.raises(UserError, match="did you mean 'padded'"):
        mean_embeddings(letter_table(["abc"]), WEIGHT, span="pad")
    with pytest.raises(UserError, match="needs length"):
        mean_embeddings(letter_table(["abc"]), WEIGHT, span="padded")
