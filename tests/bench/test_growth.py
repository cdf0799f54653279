import numpy as np
import pytest

from chameleon_bench.growth import EXPECTED, growth, measure_rows, slope
from chameleon_lite.backbone import load_backbone


def test_slope_by_hand():
    assert slope([1, 10, 100, 1000], [5.0, 5.0, 50.0, 500.0]) == pytest.approx(1.0)
    assert slope([1, 10], [3.0, 3.0]) == pytest.approx(0.0)


def test_every_curve_is_there(small_bench, monkeypatch):
    monkeypatch.setattr(
        "chameleon_bench.growth.measure_rows",
        lambda bench, backbone, n: {stage: float(n) for stage in EXPECTED},
    )
    curves = growth(small_bench)["curves"]
    assert {c["against"] for c in curves} == {"rows", "clusters", "vocabulary", "rank"}
    assert all(len(c["sizes"]) == len(c["values"]) and np.isfinite(c["slope"]) for c in curves)


@pytest.mark.slow
def test_feature_memory_does_not_grow_with_rows(small_bench):
    """The small version of the curve to a million rows: ten times the rows, the same memory but for the ids."""
    backbone = load_backbone("tiny")
    measure_rows(small_bench, backbone, 500)
    small, large = (measure_rows(small_bench, backbone, n)["feature memory"] for n in (3_000, 30_000))
    assert large < small + 64e6
