"""Parts that the stored proofs decide, and claims 2 and 22, which the re-derived tables do."""

from itertools import product

import pytest

from chameleon_study.claims.contrasts import REGISTERED, StoredRuns
from chameleon_study.claims.paper import paper, parts, published
from chameleon_study.claims.rules_stored import RELEASED, direction, limits, published_again, published_gain
from chameleon_study.config import load_experiment
from chameleon_study.records import Record
from chameleon_study.released.proofs.store import Proof, store_proofs
from chameleon_study.released.protocol import protocol_of
from chameleon_study.released.tables import protocol_label

LIMITS = [(p["part"], limit) for p in parts() if p["rule"] == "limits" for limit in p["arguments"]["proofs"]]


def proved(folder, limit, value):
    """The cells of a limit for a proof whose number, or ratio, is `value`."""
    ratio = isinstance(limit.get("over"), str)
    numbers = {limit["number"]: value * (1.0 if ratio else limit.get("over", 1.0))}
    numbers |= {limit["over"]: 1.0} if ratio else {}
    settings = {"tokens": {"max_length": 256}}
    made = {"title": "", "audit": (), "where": "", "shows": "x.", "profile": "paper", "settings": settings}
    stored = Proof(proof=limit["proof"], backbone="smollm2", corpus="alpaca", numbers=numbers, **made)
    store_proofs([stored], folder)
    return limits(StoredRuns(folder), [limit])


@pytest.mark.parametrize(("part", "limit"), LIMITS, ids=lambda x: x if isinstance(x, str) else x["proof"])
def test_every_word_of_a_limit(tmp_path, part, limit):
    assert limits(StoredRuns(tmp_path), [limit]) == {}
    good, bad = limit["supported"], limit["contradicted"]
    found = {value: [*proved(tmp_path, limit, value).values()][0].verdict for value in (min(good, 1e9), bad)}
    assert found[bad] == ("contradicted" if good != bad else "supported")
    if good < 1e9:
        assert found[good] == "supported"
        between = [*proved(tmp_path, limit, (good + bad) / 2).values()][0].verdict
        assert between == ("not decidable here" if good != bad else "supported")
        assert [*proved(tmp_path, limit, bad + (bad - good) + 1e-3).values()][
            0
        ].verdict == "contradicted" or good > bad
    else:
        assert found[1e9] == "not decidable here"  # a gain over it supports nothing


NEAR = (-0.01, 0.0, 0.01)  # what the seeds of a made-up table add to the published loss


def released(table, regime, seed, loss, **more):
    """A record as table<n>-released stores it, of the paper's own model and data unless told otherwise."""
    length = RELEASED[table][0]
    settings = load_experiment(REGISTERED.parent / f"table{table}-released.yaml", "paper").model_dump()
    settings["protocol"]["switches"] |= more.pop("switches", {})
    protocol = {"preset": settings["protocol"]["preset"], "switches": settings["protocol"]["switches"]}
    settings |= {"tokens": {"max_length": more.pop("length", length)}, "protocol": protocol}
    corpus = more.pop("corpus", next(t["corpus"] for t in paper()["tables"] if t["table"] == table))
    made = protocol_of(load_experiment(REGISTERED.parent / f"table{table}-released.yaml", "paper").protocol)
    data = {"protocol": made.model_dump() | protocol["switches"]}
    data["documents"] = {"train": more.pop("rows", 100)}
    backbone = more.pop("backbone", "gpt2")
    assert not more
    return Record(
        name=f"{regime}--{backbone}--{corpus}--{seed}",
        experiment=f"table{table}-released",
        regime=regime,
        backbone=backbone,
        corpus=corpus,
        seed=seed,
        profile="paper",
        settings=settings,
        learning_rate=1e-4,
        metrics={"reported_nll": loss},
        trainable_parameters=1,
        stored_bytes=1,
        seconds={},
        peak_memory_bytes={},
        data=data,
        provenance={"command": "made up"},
    )


def claim_22(folder, table=1, off=None, seeds=NEAR, regimes=("R1", "R4"), **more):
    """The finding for a table whose losses are the published ones plus `off[regime]`, over seeds."""
    lines = [
        released(table, r, k, published(table, r, "validation_loss") + (off or {}).get(r, 0.0) + add, **more)
        for r in regimes
        for k, add in enumerate(seeds[r] if isinstance(seeds, dict) else seeds)
    ]
    path = folder / f"table{table}-released.jsonl"
    path.write_text("".join(r.model_dump_json() + "\n" for r in lines))
    return published_again(StoredRuns(folder))


@pytest.mark.parametrize("table", [1, 2])
@pytest.mark.parametrize(
    ("how", "verdict"),
    [
        ({}, "supported"),
        ({"off": {"R4": 0.019}}, "supported"),  # sd 0.01: just inside two of them
        ({"off": {"R4": 0.021}}, "contradicted"),  # just outside
        ({"off": {"R1": -0.1}}, "contradicted"),
        ({"seeds": (0.0,)}, "not decidable here"),  # one seed has no spread
        ({"regimes": ("R1",)}, "not decidable here"),
        ({"backbone": "smollm2"}, "not decidable here"),
        ({"backbone": "smollm2", "off": {"R1": 5.0}}, "not decidable here"),
        ({"length": 100}, "not decidable here"),
        ({"switches": {"kmeans": "plusplus"}}, "not decidable here"),
    ],
)
def test_claim_22(tmp_path, table, how, verdict):
    (cell,) = claim_22(tmp_path, table, **how).values()
    assert cell.verdict == verdict, cell
    assert str(published(table, "R4", "validation_loss")) in cell.number  # printed whoever measured it


def test_claim_22_needs_the_papers_own_data(tmp_path):
    (cell,) = claim_22(tmp_path, corpus="wikitext-2-lite-released").values()
    assert cell.verdict == "not decidable here"


def test_both_tables_have_their_verdict_beside_another_backbones(tmp_path):
    claim_22(tmp_path, 2, off={"R1": 0.1})
    other = released(1, "R1", 0, 3.0, backbone="smollm2").model_dump_json()
    (tmp_path / "table1-released-smollm2.jsonl").write_text(other + "\n")
    found = claim_22(tmp_path)
    assert [cell.verdict for cell in found.values()] == ["supported", "not decidable here", "contradicted"]


def test_tables_of_the_same_name_and_other_rows_are_two(tmp_path):
    for name, rows, gain in (("full", 900, 0.1), ("lite", 90, -0.1)):
        lines = [
            released(2, r, seed, 1.0 + seed / 100 - (r == "R4") * gain, rows=rows).model_dump_json()
            for r in ("R1", "R4")
            for seed in range(3)
        ]
        (tmp_path / f"table2-released-{name}.jsonl").write_text("\n".join(lines) + "\n")
    found = direction(StoredRuns(tmp_path))
    words = {name.rsplit(", ", 1)[1]: cell.verdict for name, cell in found.items()}
    assert words == {"90 rows": "contradicted", "900 rows": "supported"}


def test_experiments_that_differ_in_nothing_else_are_two_tables_with_names_of_their_own(tmp_path):
    path, records = tmp_path / "table1-released-both.jsonl", []
    for name, gain in (("one", 0.1), ("other", -0.1)):
        for seed, regime in product(range(3), ("R1", "R4")):
            record = released(1, regime, seed, 1.0 + seed / 100 - (regime == "R4") * gain)
            records.append(record.model_copy(update={"experiment": name}))
    path.write_text("".join(record.model_dump_json() + "\n" for record in records))
    words = {name.rsplit(", ", 1)[1]: cell.verdict for name, cell in direction(StoredRuns(tmp_path)).items()}
    assert words == {"one": "supported", "other": "contradicted"}


def test_without_tables_nothing_is_tested(tmp_path):
    evidence = StoredRuns(tmp_path)
    assert published_again(evidence) == direction(evidence) == published_gain(evidence) == {}


@pytest.mark.parametrize(
    ("how", "of_direction", "of_gain"),
    [
        ({}, "supported", "supported"),
        ({"off": {"R4": 0.2}}, "contradicted", "contradicted"),
        ({"off": {"R4": 0.05}}, "supported", "contradicted"),
        ({"seeds": (0.0,)}, "not decidable here", "not decidable here"),
        ({"backbone": "smollm2"}, "supported", "not decidable here"),  # the size is of the paper's model
        ({"seeds": {"R1": NEAR, "R4": (0.3, -0.3, 0.1)}}, "not decidable here", "not decidable here"),
    ],
)
def test_direction_and_size_of_the_published_gain(tmp_path, how, of_direction, of_gain):
    claim_22(tmp_path, 1, **how)
    evidence = StoredRuns(tmp_path)
    assert [cell.verdict for cell in direction(evidence).values()] == [of_direction]
    assert [cell.verdict for cell in published_gain(evidence).values()] == [of_gain]


@pytest.mark.parametrize("table", [1, 2])
def test_the_released_procedure_is_that_of_the_experiments(table):
    record = released(table, "R1", 0, 1.0)
    assert (record.settings["tokens"]["max_length"], protocol_label(record)) == RELEASED[table]
    own = load_experiment(REGISTERED.parent / f"table{table}-released.yaml", "paper")
    assert own.tokens.max_length == RELEASED[table][0]
    assert (own.backbone, *own.corpora) == (record.backbone, record.corpus)
