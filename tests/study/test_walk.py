"""The walk from the released to the honest procedure: its stops in order, also a switch set first and mended later."""

from pathlib import Path

import pytest

from chameleon_study.config import load_experiment
from chameleon_study.figures.study import LABELS, waterfall
from chameleon_study.figures.style import COLOURS, HEADS, figure, look_of
from chameleon_study.records import load_records
from chameleon_study.released.protocol import PRESETS, Protocol, mended, protocol_of
from chameleon_study.released.tables import YARDSTICK, steps_frame, walk_frame

ROOT = Path(__file__).parents[2]
WALKS = ("waterfall-lite", "waterfall-alpaca-lite")
NAMES = {"R1": "LoRA", "R4": "hyper-network"}


class Made:
    """As much of a record as `walk_frame` reads."""

    def __init__(self, protocol, regime, loss, seed=0):
        self.corpus, self.backbone, self.regime, self.seed = "alpaca", "smollm2", regime, seed
        self.metrics = {"reported_nll": loss, "validation_nll": loss}
        self.data = {
            "protocol": protocol.model_dump(),
            "scored_tokens": {"validation": 10, "test": 7},
            "documents": {"validation": 5, "test": 4},
            "full_rows": {"validation": 2},
        }


@pytest.fixture(params=WALKS)
def stops(request):
    """The stops of a walk as its experiment file orders them."""
    return mended(load_experiment(ROOT / "experiments" / f"{request.param}.yaml", "paper").protocol)


def test_stops_are_in_the_order_of_mending_whatever_order_the_records_are_in(stops):
    made = [
        Made(protocol_of(protocol), regime, float(n))
        for n, (_, protocol) in enumerate(stops)
        for regime in ("R4", "R1")
    ]
    walk = walk_frame(made[::-1])
    assert walk["mended"].tolist() == [
        name for name, _ in stops for _ in range(2)
    ]  # not one stop lost or merged
    assert walk["loss"].tolist() == [float(n) for n in range(len(stops)) for _ in range(2)]
    assert (
        walk["scored"].tolist() == [10] * (2 * len(stops) - 2) + [7] * 2
    )  # the last stop reads the test split
    assert set(walk.loc[~walk["same yardstick"], "mended"]) <= {"", *YARDSTICK}


def test_changes_are_taken_seed_by_seed_and_by_hand():
    released = PRESETS["as_released"]
    other = released.model_copy(update={"kmeans": "plusplus"})
    losses = {("R1", 0): (3.0, 2.0), ("R1", 1): (4.0, 3.5), ("R4", 0): (2.5, 2.5), ("R4", 1): (4.5, 3.0)}
    made = [
        Made(p, regime, pair[n], seed)
        for n, p in enumerate((released, other))
        for (regime, seed), pair in losses.items()
    ]
    frame = steps_frame(walk_frame(made), NAMES)
    assert frame["mended"].tolist() == ["(as released)", "kmeans"] and frame["same yardstick"].tolist() == [
        "–",
        "yes",
    ]
    assert frame["LoRA"].tolist() == [3.5, 2.75] and frame["change of LoRA"].tolist()[0] == "–"
    assert frame["change of LoRA"].tolist()[1] == "-0.7500 [-1.0000, -0.5000]"
    assert frame["hyper-network − LoRA"].tolist()[1] == "+0.0000 [-0.5000, +0.5000]"


@pytest.mark.parametrize("name", WALKS)
def test_the_stored_walks_have_every_stop_once_a_seed_and_regime(name):
    import matplotlib.pyplot as plt

    stops = mended(load_experiment(ROOT / "experiments" / f"{name}.yaml", "paper").protocol)
    walk = walk_frame(load_records(ROOT / "results" / f"{name}.jsonl"))
    assert walk["mended"].drop_duplicates().tolist() == [name for name, _ in stops]
    assert not walk.duplicated(["step", "regime", "seed"]).any()
    assert len(walk) == len(stops) * 2 * walk["seed"].nunique()
    same = walk[walk["same yardstick"]]  # where we say that the same is counted, as many positions are
    before = walk.groupby("step")["scored"].first()
    assert all(row.scored == before[row.step - 1] for row in same.itertuples())
    fig, ax = figure()
    waterfall(ax, walk, NAMES)
    written = [t.get_text() for t in ax.texts]
    assert all(any(text.startswith(LABELS[stop]) for text in written) for stop, _ in stops)
    assert len(ax.patches) == 2 * len(stops)
    plt.close(fig)


def test_every_switch_of_a_walk_has_a_label():
    assert set(Protocol.model_fields) - set(LABELS) == {"layers", "backbone"}


def test_a_head_has_one_look_under_its_code_its_order_and_its_name():
    assert look_of("R4-best") == look_of("ChameleonLLM") != look_of("R3-clustered")
    assert look_of("R19-R1") == look_of("R1") == look_of("LoRA, rank 4")
    looks = [tuple(look_of(code).values()) for code in HEADS]
    assert len(set(looks)) == len(HEADS) <= len(COLOURS)
