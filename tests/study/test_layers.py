"""LoRA in the layers: rates from a sweep of their own, training until validation stops falling, the best state."""

import pytest

from chameleon_study.regimes import REGIMES, Choice
from chameleon_study.run import run_experiment
from chameleon_study.sweep import sweep_jobs

IN_LAYERS = [n for n, r in REGIMES.items() if r.procedure == "layers"]


def test_rates_are_swept_like_all_others_on_seeds_that_are_not_reported(small, tmp_path):
    sweep = {"grid": [1e-3, 1e-2], "seeds": 1, "extend": 1}
    settings = small(["R16-clustered", "R17"], learning_rates={}, sweep=sweep)
    for record in run_experiment(settings, runs=tmp_path):
        trials = record.learning_rate_trials
        assert len(trials) == 3  # one of two rates lies on the edge, so a third was tried
        assert all(list(by_seed) == ["1000"] for by_seed in trials.values())
        assert record.learning_rate == float(min(trials, key=lambda rate: trials[rate]["1000"]))
        assert len(list((tmp_path / "sweeps").glob(f"{record.regime}--*--seed1000.json"))) == 3


def test_heads_whose_layers_train_share_no_job(small):
    choices = Choice(1e-3), Choice(1e-2)
    keys = [(name, choice, 1000) for name in ("R1", "R16", "R17-random") for choice in choices]
    jobs = {job.keys for job in sweep_jobs(small(["R1"]), "corpus", keys)}
    assert jobs == {tuple(keys[:2]), *((key,) for key in keys[2:])}


@pytest.mark.parametrize("name", IN_LAYERS)
def test_training_ends_when_validation_stops_falling_and_the_best_state_is_read(small, tmp_path, name):
    train = {"epochs": 8, "validations_per_epoch": 2, "patience": 1, "rows_per_step": 16}
    train |= {"feature_dtype": "float32", "matmul_dtype": "float32"}
    settings = small([name], train=train, learning_rates={name: 0.1})
    (record,) = run_experiment(settings, runs=tmp_path)
    losses = [point["validation_nll"] for point in record.curve]
    assert [point["epoch"] for point in record.curve[:3]] == [0.0, 0.5, 1.0] and len(losses) < 17
    assert losses.index(min(losses)) == len(losses) - 3  # two more misses than none end it
    assert record.metrics["validation_nll"] == pytest.approx(min(losses), rel=1e-6)
    assert record.learning_rate == 0.1 and record.metrics["test_nll"] < losses[0]


def test_a_hyper_network_above_layers_that_train_drops_anew_for_each_row(small, tmp_path):
    losses = []
    for masks in ("group", "row"):
        train = {"rows_per_step": 16, "feature_dtype": "float32", "matmul_dtype": "float32", "masks": masks}
        settings = small(["R17-constant"], train=train | {"epochs": 2})
        (record,) = run_experiment(settings, runs=tmp_path)
        losses.append([point["validation_nll"] for point in record.curve])
    one, other = losses
    assert one[0] == other[0] and abs(one[-1] - other[-1]) > 1e-4
