import numpy as np
import pytest

from chameleon_study.claims.statistics import (
    Contrast,
    contrast,
    crossed_bootstrap,
    holm,
    mean_interval,
    verdict,
)


def test_difference_is_sum_over_sum_by_hand():
    a, b = np.array([[2.0, 8.0], [4.0, 6.0]]), np.array([[1.0, 5.0], [1.0, 5.0]])
    found = contrast(a, b, np.array([1.0, 3.0]), draws=200)
    assert found.difference == pytest.approx(((1 + 3) / 4 + (3 + 1) / 4) / 2)
    assert found.n == 2 and found.documents == 2


def test_no_difference_has_an_interval_of_zero():
    nll = np.ones((3, 5))
    found = contrast(nll, nll, np.ones(5), draws=100)
    assert (found.low, found.high) == (0, 0) and found.p == 1
    assert verdict(found, 1.0) == "equivalent"


def test_the_wider_interval_decides():
    generator = np.random.default_rng(0)
    seeds = generator.normal(0, 1, (3, 1)) + generator.normal(
        0, 0.001, (3, 400)
    )  # all noise is between seeds
    found = contrast(seeds, np.zeros((3, 400)), np.ones(400), draws=500)
    assert found.decided_by == "t"
    documents = np.repeat(generator.normal(0, 1, (1, 400)), 3, axis=0)  # all noise is between documents
    assert contrast(documents, np.zeros((3, 400)), np.ones(400), draws=500).decided_by == "bootstrap"


@pytest.mark.parametrize(("seed_sd", "document_sd"), [(0.05, 0.02), (0.002, 0.5)])
def test_interval_covers(seed_sd, document_sd):
    """95 % intervals cover the truth in 92–98 % of 400 simulated studies, whichever noise dominates."""
    generator = np.random.default_rng(1)
    truth, covered, studies, documents = -0.03, 0, 400, 80
    for study in range(studies):
        tokens = generator.integers(10, 100, documents).astype(float)
        by_seed = generator.normal(0, seed_sd, (5, 1))
        by_document = generator.normal(0, document_sd, (1, documents))
        noise = generator.normal(0, 0.02, (5, documents))
        difference = (truth + by_seed + by_document + noise) * tokens
        found = contrast(difference, np.zeros_like(difference), tokens, draws=1000, seed=study % 3)
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / studies <= 0.98


def test_bootstrap_is_the_same_for_the_same_seed():
    d, t = np.random.default_rng(0).normal(size=(2, 30)), np.ones(30)
    assert np.array_equal(crossed_bootstrap(d, t, draws=50), crossed_bootstrap(d, t, draws=50))


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


@pytest.mark.parametrize(
    ("low", "high", "p", "expected"),
    [
        (-0.08, -0.04, 0.001, "supported"),
        (-0.08, -0.04, 0.2, "not decidable here"),  # a family's correction can take it back
        (-0.004, 0.004, 0.9, "equivalent"),
        (-0.009, 0.09, 0.5, "contradicted"),
        (-0.05, 0.05, 0.9, "not decidable here"),
        (0.02, 0.05, 0.001, "contradicted"),
    ],
)
def test_verdicts_in_order(low, high, p, expected):
    found = Contrast((low + high) / 2, low, high, low * 0.9, high * 0.9, p, 5, 100, "t")
    assert verdict(found, p) == expected


def test_mean_interval_holds_the_mean():
    nll = np.random.default_rng(0).gamma(2, 1, (4, 50))
    found = mean_interval(nll, np.ones(50), draws=500)
    assert found.low < found.difference < found.high
