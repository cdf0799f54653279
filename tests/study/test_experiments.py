"""Every experiment file loads under every profile and names only what exists."""

from pathlib import Path

import pytest

from chameleon_study.config import PROFILES, load_experiment
from chameleon_study.regimes import REGIMES
from chameleon_study.released.run import check_released
from chameleon_study.run import expected_names, stops

FOLDER = Path(__file__).resolve().parents[2] / "experiments"
HONEST = sorted(FOLDER.glob("honest-*.yaml"))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("path", HONEST, ids=lambda p: p.stem)
def test_loads_under_every_profile(path, profile):
    settings = load_experiment(path, profile)
    assert settings.name == path.stem
    assert set(settings.regimes) | set(settings.probes.foreign_regimes) <= set(REGIMES)
    names = expected_names(settings)
    assert len(names) == len(set(names)) == len(settings.regimes) * len(settings.corpora) * settings.seeds


def test_every_regime_is_run_by_some_experiment():
    run = {name for path in HONEST for name in load_experiment(path, "paper").regimes}
    assert run == set(REGIMES)


def test_reported_seeds_are_five_but_for_the_layers():
    seeds = {path.stem: load_experiment(path, "paper").seeds for path in HONEST}
    assert seeds.pop("honest-layers") == 3 and set(seeds.values()) == {5}


def test_a_borrowed_rate_or_head_belongs_to_a_regime_of_the_same_kind():
    for r in REGIMES.values():
        for other in (r.rate_of, r.weights_of):
            assert other is None or (REGIMES[other].trained and REGIMES[other].rate_of is None)


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
