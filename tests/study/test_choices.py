"""What is tuned: choices by name, the heads and vectors they make, what a sweep tries, and the schedule."""

import math
from types import SimpleNamespace

import pytest
import torch

from chameleon_lite.backbone import load_backbone
from chameleon_lite.errors import UserError
from chameleon_study.config import SweepSettings
from chameleon_study.evaluate import new_members
from chameleon_study.regimes import OPTIONS, RATES, REGIMES, Choice, new_head, transformed, trials
from chameleon_study.run import run_experiment
from chameleon_study.sweep import choose, first_choices, loss_file


def test_a_rate_alone_has_the_name_that_it_always_had():
    assert Choice(0.003).name == "0.003" and Choice(0.003).others == {}
    choice = Choice(3e-4, dropout=0.1, start="released", schedule="cosine")
    assert choice.name == "0.0003 dropout=0.1 start=released schedule=cosine"
    assert choice.others == {"dropout": 0.1, "start": "released", "schedule": "cosine"}
    assert Choice(0.01, dropout=0.0).name == "0.01 dropout=0"
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        Choice(1e-3, schedule="cosin")


def test_trials_differ_are_always_the_same_and_cover_the_product():
    few, many = trials(48), trials(900)
    assert few == many[:48] and len({c.name for c in many}) == 900
    assert RATES[0] == 3e-4 and RATES[-1] == 3e-2 and {c.rate for c in few} == set(RATES)
    for name, values in OPTIONS.items():
        assert {getattr(c, name) for c in few} == set(values)


def test_heads_start_as_chosen():
    backbone, r = load_backbone("tiny"), REGIMES["R4"]

    def made(**how):
        torch.manual_seed(0)
        return new_head(r, Choice(1e-3, **how), backbone, None)

    plain, dry, released, normal = made(), made(dropout=0.0), made(start="released"), made(start="normal")
    assert [plain.net[2].p, dry.net[2].p, dry.net[5].p] == [0.5, 0.0, 0.0]
    assert torch.equal(plain.last.bias, normal.last.bias) and not plain.last.weight.any()
    for x in (normal.last.weight, released.last.weight, released.last.bias):
        assert x.std().item() == pytest.approx(1e-3, rel=0.1)
    assert made(start="released", dropout=0.1).net[5].p == 0.1


def test_transforms_are_fitted_on_train_and_keep_its_mean_length():
    train, other = torch.randn(50, 8) * torch.arange(1, 9) + 3, torch.randn(5, 8)
    assert transformed(other, train, "") is other
    for how in ("centred", "standardised"):
        x = transformed(train, train, how)
        assert x.mean(0).abs().max() < 1e-6 and x.norm(dim=1).mean().item() == pytest.approx(1.0)
        assert torch.allclose(
            transformed(other, train, how), transformed(torch.cat([other, train]), train, how)[:5]
        )
    assert transformed(train, train, "standardised").std(0).std() < 1e-6


def test_a_cosine_falls_over_the_epochs_that_are_set_and_its_losses_have_files_of_their_own(small):
    def of(**more):
        return small(["R4-best"], learning_rates={}, sweep={"grid": [1e-3], "seeds": 1, "extend": 0} | more)

    def file(settings, choice):
        return loss_file(settings, "x", ("a", "b"), ("R4-best", choice, 1000))

    cosine, constant = Choice(1e-3, schedule="cosine"), Choice(1e-3)
    usual, longer = of(), of(cosine_epochs=7)
    assert usual.sweep.cosine_epochs == 5 and of(cosine_epochs=5).key() == usual.key() != longer.key()
    assert file(usual, cosine) != file(longer, cosine) and file(usual, constant) == file(longer, constant)
    for settings, epochs in ((usual, 9), (usual, 3), (longer, 9)):
        train = settings.train.model_copy(update={"epochs": epochs})
        now = settings.model_copy(update={"train": train})
        context = SimpleNamespace(settings=now, material=SimpleNamespace(backbone=load_backbone("tiny")))
        seeded = SimpleNamespace(seed=0, splits={"train": None})
        member, other = new_members(context, seeded, [(REGIMES["R1"], c) for c in (cosine, constant)])
        assert member.cosine == min(epochs, settings.sweep.cosine_epochs) and other.cosine == 0


def test_dropouts_are_tuned_where_there_are_any_and_searched_regimes_take_trials(small):
    sweep = SweepSettings(grid=(1e-3, 1e-2), dropouts=(0.0, 0.5), trials=7)
    assert first_choices(sweep, REGIMES["R1"]) == [Choice(1e-3), Choice(1e-2)]
    assert len(first_choices(sweep, REGIMES["R4"])) == 4 and len(first_choices(sweep, REGIMES["R11"])) == 2
    assert first_choices(sweep, REGIMES["R4-best"]) == trials(7)
    assert len(first_choices(SweepSettings(), REGIMES["R4-best"])) == len(SweepSettings().grid)
    settings = small(
        ["R4", "R4-best"], learning_rates={}, sweep=sweep.model_dump() | {"seeds": 1, "extend": 2}
    )
    best, rounds = Choice(1e-2, dropout=0.5), []

    def measured(wanted):
        rounds.append([choice for name, choice, _ in wanted if name == "R4"])
        losses = {key: abs(math.log(key[1].rate / 0.05)) - (key[1].dropout == 0.5) for key in wanted}
        return losses

    chosen, tried = choose(settings, [REGIMES["R4"], REGIMES["R4-best"]], measured)
    assert (
        rounds[1] == [Choice(3e-2, dropout=0.5)] and chosen["R4"].dropout == 0.5
    )  # the edge, at the best dropout
    assert best.name in tried["R4"] and len(tried["R4-best"]) == 7
    assert chosen["R4"].rate == pytest.approx(0.03) and len(rounds) == 3


def test_records_hold_the_choice_and_every_trial(small, tmp_path):
    sweep = {"grid": [1e-2], "seeds": 1, "extend": 0, "dropouts": [0.0, 0.5], "trials": 6}
    regimes = ["R1", "R4", "R7", "R4-best", "R3-best", "R6-best"]
    settings = small(regimes, learning_rates={}, sweep=sweep, train={"epochs": 2, "rows_per_step": 16})
    found = {r.regime: r for r in run_experiment(settings, runs=tmp_path)}
    assert found["R1"].choice == {} and list(found["R1"].learning_rate_trials) == ["0.01"]
    assert found["R4"].choice == found["R7"].choice and set(found["R4"].choice) == {"dropout"}
    assert list(found["R4"].learning_rate_trials) == ["0.01 dropout=0", "0.01 dropout=0.5"]
    for name in ("R4-best", "R3-best", "R6-best"):
        r = found[name]
        assert Choice(r.learning_rate, **r.choice).name in r.learning_rate_trials
        assert len(r.learning_rate_trials) == 6 and set(r.learning_rate_trials) == {c.name for c in trials(6)}
    again = run_experiment(settings, runs=tmp_path)
    assert [r.name for r in again] == [r.name for r in found.values()]
