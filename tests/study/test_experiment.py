import json
import shutil
from operator import attrgetter

import pandas as pd
import pytest
import torch

from chameleon_lite.backbone import load_backbone
from chameleon_lite.processes import Processes
from chameleon_lite.train import evaluate
from chameleon_study import run, sweep
from chameleon_study.corpora import load_corpus
from chameleon_study.evaluate import Context, measure, source_of, train_seed
from chameleon_study.prepare import prepare, seed_material
from chameleon_study.records import pack, read_run
from chameleon_study.regimes import REGIMES, Choice
from chameleon_study.run import expected_names, run_experiment, stops
from chameleon_study.tables import nll_by_size, sizes_frame, summary_frame

# what equal settings and seed must reproduce bit for bit
measured = attrgetter("metrics", "curve", "learning_rate")

FEW = ["R0", "R1", "R4", "R7", "R15"]


def test_a_run_repeats_itself_exactly(small, tmp_path):
    first = run_experiment(small(FEW), runs=tmp_path / "a")
    alone = run_experiment(small(["R4"]), runs=tmp_path / "b")  # from its own settings, in another company
    (again,) = [r for r in alone if r.regime == "R4"]
    (before,) = [r for r in first if r.regime == "R4"]
    assert before.name == again.name and measured(before) == measured(again)
    assert before.metrics["test_nll"] < [r for r in first if r.regime == "R0"][0].metrics["test_nll"]


@pytest.mark.parametrize("workers", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_resume_after_a_kill_loses_only_the_run_in_progress(small, tmp_path, monkeypatch, workers):
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # as many in a worker as here
    settings = small(["R0", "R1", "R14"], seeds=2)
    whole = {r.name: measured(r) for r in run_experiment(settings, runs=tmp_path / "whole")}
    written, write = [], run.write_run

    def killed(folder, record, documents):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(record.name)
        return write(folder, record, documents)

    monkeypatch.setattr(run, "write_run", killed)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(settings, runs=tmp_path / "runs", workers=workers)
    monkeypatch.setattr(run, "write_run", write)
    assert [read_run(tmp_path / "runs", name) is not None for name in written] == [True] * 3
    times = {n: (tmp_path / "runs" / n / "record.json").stat().st_mtime_ns for n in written}
    said = []
    found = run_experiment(settings, runs=tmp_path / "runs", say=said.append, workers=workers)
    assert {r.name: measured(r) for r in found} == whole
    assert workers or not [line for line in said if "seed 0" in line]  # seed 0 was complete
    for name in written:  # and what is complete is not run again
        assert (tmp_path / "runs" / name / "record.json").stat().st_mtime_ns == times[name]


def test_a_sweep_is_kept_and_not_repeated(small, tmp_path, monkeypatch):
    grid = {"grid": [1e-3, 1e-2], "seeds": 1, "extend": 0}
    settings = small(["R1", "R5", "R5-g4"], learning_rates={}, sweep=grid)
    *_, record = run_experiment(settings, runs=tmp_path)
    assert set(record.learning_rate_trials) == {"0.001", "0.01"}
    kept = sorted(p.name for p in (tmp_path / "sweeps").iterdir() if p.suffix == ".json")
    assert len(kept) == 6  # each regime has rates of its own
    assert json.loads((tmp_path / "sweeps" / kept[0]).read_text())["trial"].startswith("R1@")
    shutil.rmtree(tmp_path / record.name)
    monkeypatch.setattr(sweep, "train_seed", lambda *_: pytest.fail("the sweep ran again"))
    again = run_experiment(settings, runs=tmp_path)
    assert (
        measured(again[2]) == measured(record)
        and again[2].learning_rate_trials == record.learning_rate_trials
    )


def test_readings_beyond_the_test_split_are_recorded(small, tmp_path, made_up, monkeypatch):
    other = shutil.copy(made_up, tmp_path / "other.jsonl").name
    monkeypatch.chdir(tmp_path)  # so that the other corpus has a short name
    probes = {"seen_documents": 20, "position_bins": 3, "corpora": [other]}
    probes |= {"foreign_shares": [0.5, 1.0], "foreign_regimes": ["R4", "R6"]}
    data = {"max_train_tokens": 5_000, "max_test_documents": 30}
    settings = small(["R1", "R4", "R6"], probes=probes, data=data)
    one, four, six = run_experiment(settings, runs=tmp_path)
    assert {"seen_nll", "transfer:other.jsonl_nll", "test_nll", "validation_nll"} <= set(one.metrics)
    assert "foreign-50_nll" in four.metrics and "foreign-50_nll" not in one.metrics
    for record in (four, six):
        frame = pd.read_parquet(tmp_path / record.name / "documents.parquet").set_index(["split", "document"])
        nll = {name: rows.droplevel("split")["nll"] for name, rows in frame.groupby("split")}
        assert len(nll["foreign-50"]) == 15 and len(nll["foreign-100"]) == 1  # foreign rows are not scored
        assert nll["clean-50"].equals(nll["test"][nll["foreign-50"].index])
        assert record.metrics["clean-50_nll"] == pytest.approx(
            nll["clean-50"].sum() / frame.loc["clean-50", "tokens"].sum()
        )
        # a head that reads the row's own vector pays nothing for its neighbours
        assert nll["foreign-50"].equals(nll["clean-50"]) == (record is six)
    tokens = sum(p["tokens"] for p in four.positions)
    assert tokens == four.data["scored_tokens"]["test"]
    assert sum(p["nll"] for p in four.positions) / tokens == pytest.approx(four.metrics["test_nll"], rel=1e-6)
    settings = settings.model_copy(update={"profile": "colab", "backbone": "tiny"})
    assert len(expected_names(settings)) == 3
    with pytest.raises(Exception, match="random"):
        pack("x", [four.name], tmp_path, tmp_path / "results")


def _context(settings):
    material = prepare(settings, load_backbone("tiny"), load_corpus(settings.corpora[0]))
    return Context(settings, material, Processes(), "test")


def test_a_budget_of_tokens_is_a_run_of_its_own_and_part_of_the_next(small, tmp_path):
    settings = small(["R0", "R1"], data={"budgets": [400, 900, 0]})
    names = expected_names(settings)
    assert len(set(names)) == 6 and names[:2] == expected_names(
        small(["R0", "R1"], data={"max_train_tokens": 400})
    )
    few, more, every = [
        prepare(s, load_backbone("tiny"), load_corpus(s.corpora[0])).tables for s in stops(settings)
    ]
    assert set(few["train"].names) < set(more["train"].names) < set(every["train"].names)
    assert (
        few["train"].lengths.sum() <= 400 < more["train"].lengths.sum() <= 900 and len(every["train"]) == 160
    )
    assert few["test"].names == more["test"].names == every["test"].names
    records = run_experiment(settings, runs=tmp_path)
    assert [r.data["tokens"]["train"] for r in records[::2]] == [
        t["train"].lengths.sum() for t in (few, more, every)
    ]
    frame = summary_frame(records, tmp_path)
    assert (
        frame["training tokens"].tolist() == [400, 400, 900, 900, "all", "all"]
        and frame["n seeds"].tolist() == [1] * 6
    )
    assert "budgets" not in records[0].settings["data"]
    curve = sizes_frame(records[::-1], tmp_path, "R1", "R0")
    assert curve["training tokens"].tolist() == [r.data["tokens"]["train"] for r in records[::2]]
    gains = [
        first.metrics["test_nll"] - r.metrics["test_nll"] for first, r in zip(records[::2], records[1::2])
    ]
    assert curve["R1"].tolist() == pytest.approx(gains, abs=1e-6)
    assert curve["difference"].tolist() == pytest.approx([-gain for gain in gains], abs=1e-6)
    assert (curve["low"] <= curve["difference"]).all() and (curve["difference"] <= curve["high"]).all()
    assert set(curve["verdict"]) <= {"supported", "equivalent", "contradicted", "not decidable here"}


def test_a_learning_curve_pairs_seeds_that_all_regimes_finished(small, tmp_path):
    settings = small(["R0", "R1"], seeds=3, data={"budgets": [400]})
    records = run_experiment(settings, runs=tmp_path)
    lost = [
        r.model_copy(update={"status": "failed"}) if (r.regime, r.seed) == ("R1", 1) else r for r in records
    ]
    by_size, tokens = nll_by_size(sorted(lost, key=lambda r: -r.seed), tmp_path)
    ((size, nll),) = by_size.items()
    assert size == records[0].data["tokens"]["train"] and {x.shape for x in nll.values()} == {
        (2, len(tokens))
    }
    means = {(r.regime, r.seed): r.metrics["test_nll"] for r in records}
    for name, sums in nll.items():
        expected = [means[name, seed] for seed in (0, 2)]
        assert (sums.sum(1) / tokens.sum()).tolist() == pytest.approx(expected, abs=1e-6)


def test_seen_documents_are_drawn_from_all_of_training(small):
    """The same ones whatever the run, in the file's order; its first documents may be of one kind."""
    materials = [_context(small(["R4"], seeds=n, probes={"seen_documents": 20})).material for n in (1, 2)]
    first, second = (m.tables["seen"].names for m in materials)
    names = materials[0].tables["train"].names
    places = [names.index(name) for name in first]
    assert first == second and len(first) == 20 and places == sorted(places)
    assert places[-1] > len(names) // 2 and places != list(range(20))


def test_constant_input_is_a_static_adapter(small, tmp_path):
    """R3 trained, then folded into a LoRA head: the same losses, since nothing it is told varies."""
    context = _context(small(["R3"]))
    (member,) = train_seed(context, [(REGIMES["R3"], Choice(1e-2))], 0)
    seeded = seed_material(context.settings, context.material, 0)
    order = seeded.epoch("test", "random", 0)
    source = source_of(REGIMES["R3"], seeded, "test")
    folded = member.head.fold(source(order, torch.arange(4))[0])
    scored, weight = context.material.scored["test"], context.material.weight
    heads = [(member.head, source), (folded, None), (None, None)]
    hyper, static, frozen = evaluate(heads, scored, order, weight, rows=16)
    assert hyper.sum() < frozen.sum()  # it learned something
    assert torch.allclose(hyper / scored.counts, static / scored.counts, atol=1e-5)


def test_every_regime_on_cached_states_is_measured(small, tmp_path):
    names = [n for n, r in REGIMES.items() if r.procedure is None]
    context = _context(small(names))
    trained = [r for r in REGIMES.values() if r.head and not r.procedure]
    members = train_seed(context, [(r, Choice(1e-2)) for r in trained], 0)
    members = {r.name: member for r, member in zip(trained, members)}
    seeded = seed_material(context.settings, context.material, 0)
    found = measure(context, seeded, [REGIMES[n] for n in names], members)
    frozen = found["R0"].nll["test"].sum()
    for r in trained:
        assert torch.isfinite(found[r.name].nll["test"]).all()
        assert found[r.name].nll["test"].sum() < frozen, r.name
