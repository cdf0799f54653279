import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")


@pytest.fixture
def ax():
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_waiting_has_a_line_for_every_way_and_quantile(ax):
    from chameleon_study.figures.study import waiting

    ways = [(b, n) for b in ("by cluster", "mixed") for n in (1, 8)]
    rows = [{"batches": b, "size": n, "p50": n, "p95": 2 * n, "p99": 3 * n} for b, n in ways]
    assert len(waiting(ax, pd.DataFrame(rows)).lines) == 6
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "8"]
    assert list(ax.lines[2].get_ydata()) == [3, 24]


def test_shifts_are_centred_on_no_change(ax):
    from chameleon_study.figures.clouds import shifts

    shifts(ax, np.array([[1.0, -3.0], [0.0, 2.0]]), ["0", "1"], ["a", "b"])
    assert ax.images[0].get_clim() == (-3.0, 3.0)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"]
