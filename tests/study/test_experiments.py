"""Every experiment file loads under every profile and names only what exists."""

from pathlib import Path

import pytest

from chameleon_study.config import PROFILES, load_experiment
from chameleon_study.regimes import REGIMES
from chameleon_study.released.run import check_released
from chameleon_study.run import expected_names, stops
from chameleon_study.sweep import first_choices

FOLDER = Path(__file__).resolve().parents[2] / "experiments"
HONEST = sorted(FOLDER.glob("honest-*.yaml"))
PLANTED = sorted(FOLDER.glob("planted*.yaml"))
TUNED = [path for path in (*HONEST, *PLANTED) if path.stem != "honest-layers"]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("path", [*HONEST, *PLANTED], ids=lambda p: p.stem)
def test_loads_under_every_profile(path, profile):
    settings = load_experiment(path, profile)
    assert settings.name == path.stem
    assert set(settings.regimes) | set(settings.probes.foreign_regimes) <= set(REGIMES)
    names = expected_names(settings)
    assert len(names) == len(set(names)) == len(settings.regimes) * len(settings.corpora) * settings.seeds


@pytest.mark.skipif("R4-best" not in REGIMES, reason="the searched regimes are not there")
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("path", sorted(FOLDER.glob("curve-*.yaml")), ids=lambda p: p.stem)
def test_learning_curves_load_and_have_a_run_for_each_budget(path, profile):
    settings = load_experiment(path, profile)
    budgets = settings.data.budgets
    assert settings.name == path.stem and settings.shared_order and len(budgets) > 1
    names = expected_names(settings)
    assert len(set(names)) == len(names) == len(budgets) * len(settings.regimes) * settings.seeds
    assert (budgets[-1] == 0) == (profile == "paper")


def test_every_regime_is_run_by_some_experiment():
    run = {name for path in HONEST for name in load_experiment(path, "paper").regimes}
    assert run == set(REGIMES)


def test_reported_seeds_are_five():
    assert {load_experiment(path, "paper").seeds for path in HONEST} == {5}


def test_a_regime_and_its_control_are_tuned_on_one_budget():
    for path in TUNED:
        sweep = load_experiment(path, "paper").sweep
        assert sweep.grid == (1e-3, 3e-3, 9e-3) and sweep.seeds == 1 and sweep.extend == 3
        assert sweep.dropouts == (0, 0.1, 0.5) and sweep.trials == 24
    sizes = {name: len(first_choices(sweep, REGIMES[name])) for name in ("R3-best", "R4-best", "R6-best")}
    assert set(sizes.values()) == {24}
    for name in ("R3-clustered", "R4", "R5-clustered", "R6", "R18-clustered", "R13", "R7b"):
        assert first_choices(sweep, REGIMES[name]) == first_choices(sweep, REGIMES["R3"]), name


def test_a_borrowed_head_is_one_that_is_trained():
    for r in REGIMES.values():
        assert r.weights_of is None or REGIMES[r.weights_of].head


TABLES = sorted(path for path in FOLDER.glob("*.yaml") if path.stem.startswith(("table", "waterfall")))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.stem)
def test_tables_load_under_every_profile_and_their_protocols_hold(path, profile):
    settings = load_experiment(path, profile)
    assert settings.name == path.stem and not settings.protocol.honest
    check_released(settings)
    names = expected_names(settings)
    assert len(names) == len(set(names)) == len(stops(settings)) * len(settings.regimes) * settings.seeds
    if profile != "smoke":
        full = settings.data.max_train_tokens is None
        assert full or "described" in path.stem  # the released tables are whole in every profile but smoke
        assert (
            settings.train.patience >= settings.train.epochs
        )  # nothing stops early in the released procedure
