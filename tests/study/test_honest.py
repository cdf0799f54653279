from pathlib import Path

import matplotlib
import pandas as pd
import pytest

from chameleon_study import page, study_tables
from chameleon_study.claims.contrasts import StoredRuns
from chameleon_study.figures import study as figures
from chameleon_study.tables import losses_of

matplotlib.use("Agg")
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def evidence(made_up_results):
    return StoredRuns(made_up_results, draws=300)


def test_no_mean_without_n_and_interval(evidence):
    frame = study_tables.regimes_frame(evidence, "docstrings")
    assert (frame["n seeds"] == 5).all() and (frame["low"] < frame["high"]).all()
    assert set(frame.loc[frame["regime"].str.contains("leak"), "regime"]) == {"R8 (leak)", "R9 (leak)"}


def test_loss_falls_along_the_group_sizes_that_were_made_so(evidence):
    frame = study_tables.group_frame(evidence, "docstrings").set_index(["order", "rows in a group"])["nll"]
    assert (
        list(frame["clustered"].index) == [1, 2, 4, 8, 16, 32] and frame["clustered"].is_monotonic_decreasing
    )


def test_group_sizes_are_read_against_the_rows_own_prefix(evidence):
    frame = study_tables.group_frame(evidence, "docstrings").set_index(["order", "rows in a group"])
    own = frame.loc[("clustered", 1)]
    assert own["difference"] == own["low"] == own["high"] == 0.0
    largest = frame.loc[("clustered", 32)]
    assert (
        largest["difference"] == pytest.approx(largest["nll"] - own["nll"], abs=2e-3) and largest["high"] < 0
    )


def test_every_corpus_has_a_column_and_the_regimes_are_named(evidence):
    across = study_tables.across_frame(evidence)
    assert len(across.columns) == len(evidence.corpora) and across.index[0].startswith("R1: ")


def test_foreign_rows_cost_what_was_put_in(evidence):
    frame = study_tables.foreign_frame(evidence, "docstrings").set_index("regime")["cost"]
    assert frame["R4"] == pytest.approx(0.02, abs=1e-6) and frame["R6"] == pytest.approx(0.2, abs=1e-6)


def test_matched_rank_and_its_difference():
    frame = study_tables.matched_frame().set_index("backbone")
    assert list(frame["R2's rank"]) == [133, 133]
    assert frame.loc["gpt2", "difference"] == -271 and frame.loc["smollm2", "difference"] == 10_720


@pytest.mark.parametrize(
    ("draw", "frame"), [("by_position", "position_frame"), ("foreign_rows", "foreign_frame")]
)
def test_pictures_draw_their_frame_and_name_their_axes(draw, frame, evidence):
    import matplotlib.pyplot as plt

    ax = getattr(figures, draw)(plt.subplots()[1], getattr(study_tables, frame)(evidence, "docstrings"))
    assert ax.get_xlabel() and "nats" in ax.get_ylabel()
    plt.close("all")


def test_a_table_can_be_saved(evidence):
    link = page.csv_link(study_tables.accounting_frame(evidence, "docstrings"), "accounting")._repr_html_()
    assert 'download="accounting.csv"' in link and "base64," in link


def test_no_losses_are_printed_on_the_way(made_up_results, monkeypatch):
    """Where pages show all rows of a table, pandas printed 180,000 of them into an exception that it dropped."""
    printed, as_text = [], pd.Series.__repr__
    monkeypatch.setattr(pd.Series, "__repr__", lambda rows: printed.append(len(rows)) or as_text(rows))
    evidence = StoredRuns(made_up_results, draws=300)
    records = [
        r.model_copy(update={"experiment": "honest-mixed-smollm2"}) for r in evidence.runs("mixed", "R4")
    ]
    assert evidence.contrast("mixed", "R4", "R1") and losses_of(records, made_up_results)
    assert not printed
