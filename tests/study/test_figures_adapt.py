import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")


@pytest.fixture
def ax():
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_shifts_are_centred_on_no_change(ax):
    from chameleon_study.figures.study import shifts

    shifts(ax, np.array([[1.0, -3.0], [0.0, 2.0]]), ["0", "1"], ["a", "b"])
    assert ax.images[0].get_clim() == (-3.0, 3.0)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"]
