"""The pictures of the chapter on streams show the stored numbers."""

import matplotlib
import pandas as pd
import pytest

from chameleon_study.streams.figures import phase, running_losses, taken
from chameleon_study.streams.run import run_streams

matplotlib.use("Agg")


@pytest.fixture
def ax():
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_running_losses_end_where_the_last_documents_do(
    ax, small_corpus, small_settings, small_model, home, tmp_path
):
    only = ["static R1", "static frozen", "stream S1"]
    store = run_streams(small_settings, small_model, small_corpus, tmp_path, only, say=lambda _: None)
    running_losses(ax, store, {"R1": "trained"}, window=40)
    (line, _) = ax.get_lines()
    nats = {name: store.frame[f"{name}|any|32"].astype(float).sum() for name in ("R1", "frozen")}
    expected = (nats["R1"] - nats["frozen"]) / store.frame["tokens"].sum()
    assert line.get_ydata()[-1] == pytest.approx(expected) and line.get_label() == "trained"


def test_a_cell_says_what_is_taken_of_what_there_is(ax):
    rows = [(1, prefix, purity, 32, to) for prefix in (1, 4) for purity in (0.25, 1.0) for to in (4, 16)]
    frame = pd.DataFrame(rows, columns=["sources", "prefix", "purity", "batch", "to"])
    frame["frozen"] = frame["bayes none"] = 2.0
    frame["R4"] = 2.0 - 0.1 * frame["prefix"] * frame["purity"] * (frame["to"] == 16)
    frame["bayes batch"] = 1.0
    gains = taken(frame, "R4", sources=1)
    assert (
        gains.loc[(1.0, 4), "taken"] == pytest.approx(0.4) and (gains["there"] == 1).all() and len(gains) == 4
    )
    phase(ax, gains, "title")
    assert {text.get_text() for text in ax.texts} >= {"0.40 of\n1.00", "0.02 of\n1.00"}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["25%", "100%"]
