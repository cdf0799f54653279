import numpy as np
import pytest
import torch

from chameleon_lite.fast.layers import first_fit, packed, sees
from chameleon_lite.text import TokenTable, cumulative


def table_of(lengths, prefix=None):
    lengths = np.asarray(lengths)
    n, prefix = len(lengths), np.ones(len(lengths)) if prefix is None else np.asarray(prefix)
    return TokenTable(
        ids=np.arange(1, lengths.sum() + 1, dtype=np.int32),
        offsets=cumulative(lengths),
        prefix=prefix.astype(np.int32),
        condition=np.zeros((n, 2), dtype=np.int32),
        names=("",) * n,
        groups=("",) * n,
        scored_bytes=lengths,
    )


def test_every_document_lies_in_one_row_and_no_row_overflows():
    lengths = np.random.default_rng(0).integers(1, 65, 200)
    rows = first_fit(lengths, 64)
    assert sorted(np.concatenate(rows).tolist()) == list(range(200))
    assert max(lengths[row].sum() for row in rows) <= 64
    assert (
        len(rows) <= 11 / 9 * -(-lengths.sum() // 64) + 1
    )  # what first fit, longest first, is proven to reach


def test_rows_fill_up_and_what_does_not_fit_is_said():
    assert [row.tolist() for row in first_fit(np.array([3, 5, 2, 6]), 8)] == [[3, 2], [1, 0]]
    assert first_fit(np.array([], dtype=int), 8) == []
    with pytest.raises(ValueError, match="9 tokens has no room in rows of 8"):
        first_fit(np.array([1, 9]), 8)


def test_tokens_positions_and_scored_pairs_are_the_documents_own():
    table = table_of([3, 5, 2, 4], prefix=[1, 4, 2, 0])
    found = packed(table, [np.array([1, 2]), np.array([3, 0])], 8, n_rows=3)
    assert found.ids.tolist() == [[4, 5, 6, 7, 8, 9, 10, 0], [11, 12, 13, 14, 1, 2, 3, 0], [0] * 8]
    assert found.position.tolist() == [[0, 1, 2, 3, 4, 0, 1, 0], [0, 1, 2, 3, 0, 1, 2, 0], [0] * 8]
    assert found.document.tolist() == [[0, 0, 0, 0, 0, 1, 1, -1], [2, 2, 2, 2, 3, 3, 3, -1], [-1] * 8]
    assert found.state.tolist() == [3, 8, 9, 10, 12, 13]
    assert found.target.tolist() == [
        8,
        12,
        13,
        14,
        2,
        3,
    ]  # nothing predicts a first token, whatever the prefix
    assert found.owner.tolist() == [0, 2, 2, 2, 3, 3]


def test_a_token_sees_its_document_up_to_itself_and_padding_sees_something():
    mask = sees(torch.tensor([[0, 0, 1, -1, -1]]))
    assert mask.shape == (1, 1, 5, 5)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
