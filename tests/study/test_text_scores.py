"""Scores of continued texts, by hand: agreement, variety, repetition, and agreement within a batch."""

import numpy as np
import pytest

from chameleon_study.write import agreement_within, distinct, document_scores, repeated, rouge_l


def test_repetition_by_hand():
    assert repeated([1, 2, 3, 4, 5, 6, 7]) == 0.0
    assert repeated([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)  # 1234 2341 3412 4123 1234
    assert np.isnan(distinct([[1]], 2))


def test_rouge_l_by_hand():
    found = rouge_l(["The cat sat.", "", "a b c d", "d c b a"], ["the cat lay", "x", "a x c", "a b c d"])
    # 2 of 3 words both ways; nothing; 2 of 4 and 2 of 3; one word in order
    assert found == pytest.approx([2 / 3, 0, 2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3), 1 / 4], abs=1e-6)
    assert rouge_l(["кот"], ["кот"]) == 0 and rouge_l(["so кот 1"], ["so 1"]) == pytest.approx(1)


def test_a_batch_is_varied_only_if_its_documents_differ():
    same, other = [1, 2, 3, 4], [5, 6, 7, 8]
    tokens, nothing = np.array([same, same, same, other]), np.zeros(4)
    frame = document_scores(tokens, nothing, nothing, np.array([0, 0, 1, 1]))
    assert (frame["distinct_2"] == 1).all() and (frame["repeated"] == 0).all()
    assert frame["batch_distinct_2"].tolist() == [0.5, 0.5, 1, 1]


def test_agreement_within_a_batch_by_hand():
    texts = ["a b c", "one", "a b d", "", "a x y", "two"]
    found = agreement_within(texts, np.array([7, 1, 7, 1, 7, 3]))
    # "a b c" shares 2 of 3 words with "a b d" and 1 of 3 with "a x y"; nothing with nothing; alone
    assert found == pytest.approx([1 / 2, 0, 1 / 2, 0, 1 / 3, np.nan], abs=1e-6, nan_ok=True)
