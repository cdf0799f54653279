"""Every rule reaches each of its words: made-up records of each kind, read by every part of every claim."""

import pytest

from chameleon_study.claims.contrasts import StoredRuns, registered
from chameleon_study.claims.ledger import decided
from chameleon_study.claims.paper import parts
from chameleon_study.claims.rules import SIZES
from chameleon_study.released.proofs.store import Proof, store_proofs

S, E, C, U = "supported", "equivalent", "contradicted", "not decidable here"
PARTS = {p["part"]: p for p in parts()}
CONTRASTS = registered()["contrasts"]
SHIFT = {S: -0.1, E: 0.0, C: 0.1}  # of the first regimes; the undecided have a wide spread over seeds


def verdicts(folder, part, draws=400):
    """Place to verdict of one part."""
    cells = decided(StoredRuns(folder, draws=draws), PARTS[part])["cells"]
    return {where: cell["verdict"] for where, cell in cells.items()}


def by_contrast():
    """Each part of registered contrasts with each of the four words."""
    return [(name, word) for name, p in PARTS.items() if p["rule"] == "contrasts" for word in (S, E, C, U)]


@pytest.mark.parametrize(("part", "word"), by_contrast())
def test_parts_of_registered_contrasts(tmp_path, study_of, part, word):
    plans = [CONTRASTS[name] for name in PARTS[part]["arguments"]["names"]]
    firsts, seconds = ({plan[side] for plan in plans} for side in ("first", "second"))
    shift, wide = SHIFT.get(word, -0.05), firsts if word == U else ()
    kind = plans[0].get("of", "test")
    losses = {name: 3.5 for name in seconds} | {name: 3.5 + shift for name in firsts}
    readings, change = {}, lambda record: None
    if kind == "transfer":
        readings = {"transfer:mixed": {"": 0.0}}
    if kind == "gap":  # all of it in the gap
        change = lambda r: r.metrics.update(seen_nll=3.4)  # noqa: E731
    study_of(tmp_path, "alpaca", losses, wide=wide, readings=readings, change=change)
    assert verdicts(tmp_path, part) == {"alpaca": word}
    (tmp_path / "honest-alpaca-smollm2.jsonl").unlink()
    assert verdicts(tmp_path, part) == {}


@pytest.mark.parametrize(
    ("better", "losses", "wide", "word"),
    [
        ("R4-g8", {"R6": 3.5, "R4": 3.55}, (), S),  # one size is enough, whatever the largest does
        ("R4", {"R6": 3.5}, (), S),
        (None, {"R6": 3.5, "R4": 3.5}, (), E),
        (None, {"R6": 3.5, "R4": 3.6}, (), C),
        (None, {"R6": 3.5, "R4": 3.48}, ("R6",), U),
    ],
)
def test_any_size_of_group(tmp_path, study_of, better, losses, wide, word):
    losses = {name: 3.5 for name in SIZES} | losses | ({better: 3.4} if better else {})
    study_of(tmp_path, "alpaca", losses, wide=wide)
    assert verdicts(tmp_path, "6a") == {"alpaca": word}


@pytest.mark.parametrize(
    ("cost", "wrong", "word"),
    [(-0.03, 0.1, S), (0.002, 0.1, E), (0.03, 0.1, C), (0.002, 0.001, U), (0.03, 0.0, U)],
)
def test_robustness_on_clean_rows(tmp_path, study_of, cost, wrong, word):
    readings = {"foreign-50": {"R4": cost, "": 0.0}, "clean-50": {"": 0.0}}
    study_of(tmp_path, "alpaca", {"R4": 3.5, "R7": 3.5 + wrong}, readings=readings)
    assert verdicts(tmp_path, "7a") == {"alpaca": word}
    study_of(tmp_path, "alpaca", {"R4": 3.5, "R7": 3.6}, readings={"foreign-50": {"": 0.1}})
    assert verdicts(tmp_path, "7a") == {}  # the rows of the first study have no clean reading


@pytest.mark.parametrize(
    ("loss", "control", "wide", "null", "words"),
    [
        (2.0, 3.0, (), 3.5, [S, S]),  # all of the gain, and equal to a constant without it
        (2.0, 2.0, (), 3.5, [E, S]),  # all of it, as the constant does: nothing is read
        (2.0, 1.9, (), 3.5, [C, S]),  # or less than it
        (2.5, 3.0, (), 3.4, [C, C]),  # half of it; a gain where there is none
        (2.2, 3.0, ("R4-best",), 3.49, [U, U]),
    ],
)
@pytest.mark.parametrize(("part", "corpus"), [("3c", "planted"), ("3d", "planted-few")])
def test_the_assay(tmp_path, study_of, part, corpus, loss, control, wide, null, words):
    def change(record):
        record.data["notes"] = {"marginal_nll": {"test": 3.0}, "conditional_nll": {"test": 2.0}}

    study_of(tmp_path, "alpaca", {"R4": 3.5})  # planted texts are of another experiment
    known = {"change": change, "experiment": corpus, "wide": wide}
    study_of(tmp_path, corpus, {"R4-best": loss, "R3-best": control}, **known)
    study_of(tmp_path, f"{corpus}-null", {"R4-best": null, "R3-best": 3.5}, **known)
    cells = decided(StoredRuns(tmp_path, draws=400), PARTS[part])["cells"]
    assert [cell["verdict"] for cell in cells.values()] == words
    assert f"R3-best without a condition {3 - control:.1%}, R4-best<R3-best " in cells[corpus]["number"]


@pytest.mark.parametrize(("part", "regime", "base"), [("14a", "R4", "R19-R1"), ("14b", "R18", "R1")])
@pytest.mark.parametrize(
    ("loss", "oracle", "spread", "word"),
    [(3.35, 3.3, False, S), (3.45, 3.3, False, C), (3.4, 3.3, True, U), (3.35, 3.6, False, U)],
)
def test_half_way_to_the_oracle(tmp_path, study_of, part, regime, base, loss, oracle, spread, word):
    study_of(tmp_path, "mixed", {regime: loss, base: 3.5, "R12-oracle": oracle}, wide=[regime] * spread)
    assert verdicts(tmp_path, part) == {"mixed": word}
    study_of(tmp_path, "mixed", {regime: loss, base: 3.5})
    assert verdicts(tmp_path, part) == {}


def qualities(key, values):
    """Sets the quality of each seed's clustering, or takes the key away."""

    def change(record):
        record.data["clusters"][key] = values[record.seed]
        if values[record.seed] is None:
            del record.data["clusters"][key]

    return change


@pytest.mark.parametrize(
    ("values", "word"), [([0.005] * 5, S), ([0.3] * 5, C), ([0.005] * 4 + [0.3], U), ([None] * 5, None)]
)
def test_homogeneity_against_chance(tmp_path, study_of, values, word):
    key = "homogeneity" if word is None else "homogeneity_p"
    study_of(tmp_path, "alpaca", {"R4": 3.5}, change=qualities(key, values))
    assert verdicts(tmp_path, "5b") == ({"alpaca": word} if word else {})


@pytest.mark.parametrize("below", [4, 8])
@pytest.mark.parametrize(
    ("values", "word"), [([0.0] * 5, S), ([0.2] * 5, C), ([0.0] * 4 + [0.2], U), ([None] * 5, None)]
)
def test_rows_in_small_clusters(tmp_path, study_of, below, values, word):
    study_of(tmp_path, "alpaca", {"R4": 3.5}, change=qualities(f"share_below_{below}", values))
    assert verdicts(tmp_path, {4: "18a", 8: "18b"}[below]) == ({"alpaca": word} if word else {})


@pytest.mark.parametrize(("moved", "words"), [(1.0, {"alpaca": S}), (1.5, {})])
def test_records_from_before_a_measure_take_it_from_the_same_clusters_only(tmp_path, study_of, moved, words):
    def change(record):
        del record.data["clusters"]["share_below_4"]
        record.data["clusters"]["inertia"] = 40.0 * moved

    study_of(tmp_path, "alpaca", {"R4": 3.5}, change=change)
    numbers = {"inertia": 40.0, "adjusted_mutual_information": 0.4, "length_variance_explained": 0.1}
    numbers = {f"seed{k}_{n}": x for k in range(5) for n, x in (numbers | {"share_below_4": 0.0}).items()}
    own = {"title": "", "audit": (), "where": "", "shows": "", "corpus": "alpaca"}
    proof = Proof(proof="study_clusters", numbers=numbers, backbone="smollm2", profile="paper", **own)
    store_proofs([proof], tmp_path)
    assert verdicts(tmp_path, "18a") == words


@pytest.mark.parametrize("word", [S, E, C])
def test_more_than_one_backbone(tmp_path, study_of, word):
    study_of(tmp_path, "alpaca", {"R19-R1": 3.50, "R4": 3.50 + SHIFT[word]})
    assert verdicts(tmp_path, "13b") == {"smollm2": U}  # one alone decides nothing about any
    study_of(tmp_path, "alpaca", {"R19-R1": 3.50, "R4": 3.50 + SHIFT[word]}, "gpt2")
    assert verdicts(tmp_path, "13b") == {"gpt2": word, "smollm2": word}


def test_contrasts_named_after_the_runs_are_printed_and_never_judged(tmp_path, study_of):
    def change(record):
        trial = {"R4": 3.2, "R4-best": 3.3}.get(record.regime, 3.0)
        record.learning_rate_trials = {"0.001": {"1000": trial}, "0.003": {"1000": 4.0}}

    losses = {"R1": 3.5, "R19-R1": 3.5, "R4-best": 3.5, "R4": 3.4}
    study_of(tmp_path, "alpaca", losses, change=change)
    row = decided(StoredRuns(tmp_path, draws=400), PARTS["1a"])
    assert row["headline"] == E
    assert row["beside"]["alpaca"].startswith("R4*<R19-R1 -0.1")  # of the one with the lower sweep loss
    assert row["beside"]["alpaca"].count("(exploratory)") == 2
    family = StoredRuns(tmp_path, draws=400).family("alpaca")
    assert set(family) <= set(CONTRASTS) and not set(family) & set(registered()["exploratory"])


def test_contrasts_that_differ_in_their_words_carry_them(tmp_path, study_of):
    study_of(tmp_path, "alpaca", {"R4": 3.4, "R3-clustered": 3.5, "R7": 3.4, "R7b": 3.3})
    number = decided(StoredRuns(tmp_path, draws=400), PARTS["3a"])["cells"]["alpaca"]["number"]
    assert [word in number for word in (f"({S})", f"({E})", f"({C})", f"({U})")] == [True, True, True, False]


def test_what_nothing_decides(made_up_results):
    assert verdicts(made_up_results, "21a") == {}


def test_every_rule_of_the_ledger_has_its_test_here_or_beside():
    here = {
        "contrasts",
        "any_size",
        "robustness",
        "assay",
        "half_way",
        "content",
        "small_clusters",
        "backbones",
    }
    beside = {"limits", "direction", "published_gain", "published_again", "machines", "coherence"}
    assert {p["rule"] for p in PARTS.values()} == here | beside | {"untested"}
