"""The registry and the table of regimes agree: a contrast differs in what it names, and in nothing else."""

import csv
from importlib.resources import files

import pytest

from chameleon_study.claims.contrasts import REGISTERED, registered
from chameleon_study.claims.paper import parts
from chameleon_study.claims.statistics import MARGIN, VERDICTS
from chameleon_study.config import load_experiment

PLAN = registered()
CONTRASTS, PREDICTIONS = PLAN["contrasts"], PLAN["predictions"]
EXPLORATORY = {  # of several regimes the first; they differ in their tuning
    name: plan
    | {side: ([plan[side]] if isinstance(plan[side], str) else plan[side])[0] for side in ("first", "second")}
    for name, plan in PLAN["exploratory"].items()
}
ALL = CONTRASTS | EXPLORATORY
TABLE = (files("chameleon_study") / "regimes.csv").read_text(encoding="utf-8").splitlines()
ROWS = {row["name"]: row for row in csv.DictReader(TABLE)}
STATIC = ""  # the condition of a head that has none


def facts(name):
    """Order, head, condition and tuning of a regime; with another's weights, its order and head."""
    row = ROWS[name]
    donor = ROWS[row["weights_of"]] if row["weights_of"] else row
    return {
        "order": donor["order"],
        "head": (donor["head"], row["procedure"]),
        "condition": row["source"] or (STATIC if row["head"] else row["conditioned_on"]),
        "tuning": row.get("searched") or "",
    }


def differences(first, second):
    """The names of what two regimes differ in; a static head has no condition that could differ."""
    a, b = facts(first), facts(second)
    found = {name for name in a if a[name] != b[name]}
    return found - {"condition"} if STATIC in (a["condition"], b["condition"]) else found


def present(name):
    """Whether both regimes of a contrast have a row that names its head."""
    pair = (ALL[name]["first"], ALL[name]["second"])
    return all(r in ROWS and not ROWS[r]["procedure"].startswith("layers_") for r in pair)


@pytest.mark.parametrize("name", ALL)
def test_the_regimes_of_a_contrast_differ_in_what_it_names(name):
    if not present(name):
        pytest.skip("a regime without a row, which the next test forbids")
    plan = ALL[name]
    assert differences(plan["first"], plan["second"]) == set(plan["differs"])


def test_every_registered_regime_has_a_row_and_is_run():
    assert all(map(present, ALL)) and len(ALL) == len(CONTRASTS) + len(EXPLORATORY)
    paths = [*REGISTERED.parent.glob("honest-*.yaml"), *REGISTERED.parent.glob("planted*.yaml")]
    run = {name for path in paths for name in load_experiment(path, "paper").regimes}
    assert {plan[side] for plan in CONTRASTS.values() for side in ("first", "second")} <= run


def test_a_name_says_what_it_compares_and_leaks_are_marked():
    for name, plan in ALL.items():
        kind = [plan["of"]] if "of" in plan else []
        assert name.replace("*", "") == " ".join([*kind, f"{plan['first']}<{plan['second']}"])
        leak = any(ROWS.get(plan[side], {}).get("leak") == "yes" for side in ("first", "second"))
        assert leak == plan.get("leak", False)
        assert plan.get("family", "claims") in ("claims", "beside", "own")


def test_the_deciding_contrasts_of_single_causes_are_in_equal_order():
    for name, plan in CONTRASTS.items():
        assert len(plan["differs"]) == 1 or "condition" not in plan["differs"] or "head" in plan["differs"], (
            name
        )


def test_predictions_and_rules_name_registered_contrasts_and_the_margin_is_one():
    assert PLAN["version"] == 2 and PLAN["margin"] == MARGIN
    for prediction in PREDICTIONS.values():
        assert prediction.get("contrast", "R4<R6") in CONTRASTS
        assert set(prediction.get("expected", ())) <= set(VERDICTS)
    deciding = {n for p in parts() for n in p["arguments"].get("names", ())}
    beside = {n for p in parts() for n in p["beside"]}
    assert deciding <= set(CONTRASTS) and beside <= set(ALL)
    assert set(EXPLORATORY) <= beside and not any("family" in plan for plan in EXPLORATORY.values())


def test_every_contrast_of_the_claims_decides_one():
    named = {n for p in parts() for n in p["arguments"].get("names", ())} | {"R4<R6"}
    named |= {"foreign R4<R6", "R4<R11-K2"}  # decided 7 and 10b until the review
    assert named >= {name for name, plan in CONTRASTS.items() if plan.get("family", "claims") == "claims"}
