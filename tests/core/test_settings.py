"""Settings: whatever is no finite number in its range is refused in one line, from files, options and Python."""

import pytest

from chameleon_lite.app.fit import FitSettings
from chameleon_lite.errors import UserError
from chameleon_lite.settings import validated
from chameleon_study.config import Experiment, experiment_from

NAN, INF = float("nan"), float("inf")
OF_FIT = [
    ({"learning_rate": NAN}, "learning_rate"),
    ({"learning_rate": INF}, "learning_rate"),
    ({"learning_rate": -1}, "learning_rate"),
    ({"learning_rate": 0}, "learning_rate"),
    ({"learning_rate": True}, "learning_rate"),
    ({"rank": 10**9}, "rank"),
    ({"rank": -1}, "rank"),
    ({"rank": 0}, "rank"),
    ({"rank": True}, "rank"),
    ({"lora_rank": 10**9}, "lora_rank"),
    ({"dropout": NAN}, "dropout"),
    ({"dropout": 1.0}, "dropout"),
    ({"seed": -1}, "seed"),
    ({"seed": 1 << 32}, "seed"),
    ({"seed": 10**30}, "seed"),
    ({"seed": "one"}, "seed"),
    ({"max_train_tokens": 10**40}, "max_train_tokens"),
    ({"max_held_out": 0}, "max_held_out"),
    ({"tokens": {"max_length": 1}}, "tokens.max_length"),
    ({"tokens": {"prefix_tokens": 0}}, "tokens.prefix_tokens"),
    ({"clusters": {"batch_rows": 0}}, "clusters.batch_rows"),
    ({"clusters": {"batch_rows": True}}, "clusters.batch_rows"),
    ({"clusters": {"routing_clusters": 1}}, "clusters.routing_clusters"),
    ({"train": {"epochs": 0}}, "train.epochs"),
    ({"train": {"weight_decay": NAN}}, "train.weight_decay"),
    ({"train": {"weight_decay": -0.1}}, "train.weight_decay"),
    ({"train": {"scale": INF}}, "train.scale"),
    ({"train": {"scale": 0}}, "train.scale"),
    ({"train": {"rows_per_step": 1e300}}, "train.rows_per_step"),
    ({"train": {"epocs": 2}}, "train.epocs"),
]


@pytest.mark.parametrize("values, where", OF_FIT)
def test_settings_of_fit_out_of_range(values, where):
    with pytest.raises(UserError) as error:
        validated(FitSettings, values)
    line = str(error.value)
    assert line.startswith(f"{where}: ") and len(line.splitlines()) == 1


@pytest.mark.parametrize(
    "values, where",
    [
        ({"learning_rates": {"R1": NAN}}, "learning_rates.R1"),
        ({"learning_rates": {"R1": 0}}, "learning_rates.R1"),
        ({"learning_rates": {"R1": True}}, "learning_rates"),
        ({"seeds": True}, "seeds"),
        ({"seeds": 10**9}, "seeds"),
        ({"sweep": {"grid": [1e-3, NAN]}}, "sweep.grid.1"),
        ({"sweep": {"grid": [True]}}, "sweep.grid"),
        ({"sweep": {"grid": []}}, "sweep.grid"),
        ({"probes": {"foreign_shares": [5]}}, "probes.foreign_shares.0"),
        ({"probes": {"foreign_shares": [-0.1]}}, "probes.foreign_shares.0"),
        ({"probes": {"foreign_shares": [NAN]}}, "probes.foreign_shares.0"),
        ({"data": {"max_train_tokens": 0}}, "data.max_train_tokens"),
        ({"data": {"subset_seed": -1}}, "data.subset_seed"),
        ({"protocol": {"held_out": INF}}, "protocol.held_out"),
    ],
)
def test_settings_of_an_experiment_out_of_range(values, where):
    with pytest.raises(UserError) as error:
        experiment_from({"name": "x", "regimes": ["R0", "R1"]} | values)
    assert str(error.value).startswith(f"experiment x: {where}: ")


def test_what_is_written_in_files_today_keeps_its_meaning():
    settings = {"learning_rates": {"R1": "1e-3"}, "protocol": {"switches": {"released_mask": True}}}
    found = Experiment(name="x", regimes=["R1"], shared_order=True, **settings)
    assert found.learning_rates == {"R1": 1e-3} and found.protocol.switches == {"released_mask": True}
    assert FitSettings(record_layers=False).record_layers is False
    assert (
        FitSettings(head="hyper").key() == "ac8d4f44"
        and Experiment(name="x", regimes=["R1"]).key() == "d1377d3c"
    )
    grouped = {"masks": "group"}  # all there was when runs of the first study got their names
    assert FitSettings(head="hyper", train=grouped | {"epochs": 3}).key() == "830b05af"
    assert Experiment(name="x", regimes=["R1"], train=grouped).key() == "7fc83aa5"
    released = Experiment(name="x", regimes=["R1"], protocol={"preset": "as_released"})
    assert released.train.masks == "group" and "masks" not in released.model_dump()["train"]


@pytest.mark.parametrize(
    "name", ["nonsense", "meta", "cuda:99", "cpu:7", "xla", "mps:1", "", "CUDA", "cuda:-1"]
)
def test_a_device_that_is_not_there_is_refused_by_every_command(name):
    import torch

    from chameleon_lite.backbone import load_backbone
    from chameleon_lite.backbones.formats import device_of

    if name:
        with pytest.raises(UserError, match="is not there; choose one of"):
            load_backbone("tiny", device=name)
    assert device_of().type == ("cuda" if torch.cuda.is_available() else device_of().type)
    assert device_of("cpu") == torch.device("cpu")
