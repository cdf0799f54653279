"""Continued prompts: the frozen head is transformers' own, the condition is the evaluation's own, scores by hand."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from chameleon_lite.backbone import load_backbone
from chameleon_lite.errors import UserError
from chameleon_lite.heads import LoraHead
from chameleon_lite.processes import Processes
from chameleon_study import run, write
from chameleon_study.claims.continuations import Generations, generation_frame
from chameleon_study.config import PROFILES, Experiment, load_experiment
from chameleon_study.corpora import docstrings, load_corpus
from chameleon_study.evaluate import Context, head_and_source, measure, train_seed
from chameleon_study.prepare import prepare, seed_material
from chameleon_study.provenance import without_places
from chameleon_study.records import SCORES, WITHIN, load_records, name_of, pack, write_run
from chameleon_study.regimes import REGIMES, Choice
from chameleon_study.run import run_experiment
from chameleon_study.write import distinct

ROOT = Path(__file__).parents[2]
COHERENCE = ROOT / "experiments" / "coherence-alpaca.yaml"
PROBES = {"generate": {"documents": 20, "new_tokens": 12, "rows": 8}}
KINDS = ["R0", "R1", "R2", "R3", "R4", "R6", "R7", "R10", "R11", "R12", "R15", "R18", "R20", "R4-stream"]
SAME_LOGITS = 1e-3  # two best logits nearer than this may change places: padding alone moves them by 1e-4


@pytest.fixture
def trained(small):
    """trained(regimes): context, clusterings and one-epoch heads of seed 0 on the tiny backbone."""

    def make(names):
        settings = small(names, probes=PROBES)
        context = Context(
            settings,
            prepare(settings, load_backbone("tiny"), load_corpus(settings.corpora[0])),
            Processes(),
            "",
        )
        trained = [REGIMES[n] for n in names if REGIMES[n].head]
        members = train_seed(context, [(r, Choice(1e-2)) for r in trained], 0)
        return (
            context,
            seed_material(settings, context.material, 0),
            {r.name: member for r, member in zip(trained, members)},
        )

    return make


def told_of(name, context, seeded, members):
    """(head, conditions) as `generated` makes them."""
    r = REGIMES[name]
    head, source = head_and_source(r, members, seeded, "test")
    order = seeded.epoch("test", r.order, 0)
    return head, write.conditions(source, order, context.settings.train.rows_per_step)


def test_the_frozen_head_writes_what_transformers_writes(trained):
    context, seeded, members = trained(["R0"])
    material, settings = context.material, context.settings
    table, model = material.tables["test"], write.writer(context.settings, material)
    rows = write.chosen(settings, table)
    assert len(rows) == 20 and (rows.diff() > 0).all()
    found = write.write(model, None, None, rows, table, settings)
    untrained = LoraHead(model.backbone.width, model.backbone.vocab).train()  # starts as a no-op
    assert (
        torch.equal(write.write(model, untrained, None, rows, table, settings), found) and untrained.training
    )
    differ = 0
    for own, row in zip(found, rows.tolist()):
        ids = torch.from_numpy(table.ids[table.offsets[row] : table.offsets[row] + table.prefix[row]]).long()[
            None
        ]
        plain = material.backbone.lm.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            min_new_tokens=12,
            pad_token_id=0,
        )
        plain = plain[0, ids.shape[1] :]
        if not torch.equal(own, plain):
            step = int((own != plain).nonzero()[0])
            with torch.no_grad():
                best = (
                    material.backbone.lm(torch.cat([ids[0], plain[:step]])[None]).logits[0, -1].topk(2).values
                )
            assert best[0] - best[1] <= SAME_LOGITS, row
            differ += 1
    assert differ <= 2


def test_what_a_head_writes_under_is_what_it_is_evaluated_under(trained):
    """The reference's loss under the update of generation is the loss that evaluation measured, document by document.

    Evaluation reads hidden states of 16 bits, hence the tolerance; other conditions move the losses by more.
    """
    context, seeded, members = trained(KINDS)
    for member in members.values():  # trained for an epoch a head hardly hears its condition
        generator = torch.Generator().manual_seed(0)
        for p in member.head.parameters():
            p.data += 0.2 * torch.randn(p.shape, generator=generator)
    measured = measure(context, seeded, [REGIMES[n] for n in KINDS], members)
    table, model = context.material.tables["test"], write.writer(context.settings, context.material)
    rows = torch.arange(len(table))
    ids, mask = table.padded(rows)
    scored = mask[:, 1:] & (torch.arange(1, ids.shape[1]) >= torch.from_numpy(table.prefix)[:, None])
    for name in KINDS:
        head, told = told_of(name, context, seeded, members)
        head = head.eval() if head is not None else LoraHead(model.backbone.width, model.backbone.vocab)
        with torch.no_grad():
            update = write._update(head, told, rows)
            logits = model(input_ids=ids, attention_mask=mask.long(), head_update=update).logits
        each = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        nll = (each * scored).sum(1)
        assert torch.allclose(nll.double(), measured[name].nll["test"], rtol=5e-3), name
    assert (measured["R4"].nll["test"] - measured["R7"].nll["test"]).abs().max() > 0.1


def test_prompts_are_padded_on_the_left(trained):
    context, *_ = trained(["R0"])
    table = context.material.tables["test"]
    ids, mask = write.prompts(table, torch.tensor([3, 1]))
    assert ids.shape == mask.shape and mask[:, -1].all()
    for own, shown, row in zip(ids, mask, (3, 1)):
        start = table.offsets[row]
        assert own[shown.bool()].tolist() == table.ids[start : start + table.prefix[row]].tolist()


def test_a_run_keeps_scores_and_no_text(small, tmp_path):
    settings = small(["R0", "R1", "R4", "R7"], seeds=2, probes=PROBES)
    records = run_experiment(settings, runs=tmp_path)
    for record in records:
        frame = pd.read_parquet(tmp_path / record.name / "documents.parquet")
        written = frame[frame["rouge_l"].notna()]
        assert len(written) == 20 and set(written["split"]) == {"test"} and len(frame) == 48
        for name in SCORES:
            some = written[name].dropna() if name == WITHIN else written[name]
            assert len(some) and some.between(0, 1).all()
            assert record.metrics[f"generated_{name}"] == pytest.approx(written[name].mean())
        assert (
            not frame.drop(columns=["split", "document", "group"])
            .map(lambda v: isinstance(v, str))
            .any()
            .any()
        )
        assert record.seconds["generation"] > 0
    asked = [
        frozenset(
            pd.read_parquet(tmp_path / r.name / "documents.parquet").dropna(subset="rouge_l")["document"]
        )
        for r in records
    ]
    assert len(set(asked)) == 1  # the same documents under every regime and seed
    again = run_experiment(settings, runs=tmp_path / "again")
    assert [r.metrics for r in again] == [r.metrics for r in records]
    kept = [r.model_copy(update={"backbone": "smollm2"}) for r in records]
    results = tmp_path / "results"
    pack_as("coherence-small", kept, tmp_path, results)
    generations = Generations(results, draws=200)
    frame = generation_frame(generations).set_index("regime")
    assert list(frame["n seeds"]) == [2] * 4 and list(frame["documents"]) == [20] * 4
    assert frame.loc["R4", "ROUGE-L"] == pytest.approx(
        np.mean([r.metrics["generated_rouge_l"] for r in kept[4:6]])
    )


def pack_as(name, records, runs, results):
    """Pack records that say they are of another backbone, which the tiny one's must not be."""
    results.mkdir()
    for r in records:
        write_run(runs, r, pd.read_parquet(runs / r.name / "documents.parquet"))
    pack(name, [r.name for r in records], runs, results)
    assert len(load_records(results / f"{name}.jsonl")) == len(records)


def test_runs_that_do_not_write_keep_their_columns_names_and_settings(small, tmp_path):
    (record,) = run_experiment(small(["R0"]), runs=tmp_path)
    frame = pd.read_parquet(tmp_path / record.name / "documents.parquet")
    assert list(frame) == ["split", "document", "group", "tokens", "nll"]
    assert "generate" not in record.settings["probes"] and "generation" not in record.seconds
    settings = without_places(small(["R0"]))
    assert Experiment(**record.settings).key() == settings.key() != small(["R0"], probes=PROBES).key()


@pytest.mark.parametrize("name", ["honest-alpaca", "honest-mixed", "table1-released-lite"])
def test_stored_runs_keep_the_names_that_follow_from_their_settings(name):
    path = ROOT / "results" / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"no stored {name}")
    for r in load_records(path):
        train = {"masks": "group"} | r.settings["train"]  # what a record without the setting was trained with
        assert name_of(Experiment(**r.settings | {"train": train}), r.regime, r.corpus, r.seed) == r.name


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        ([[1, 2, 1, 2]], 1, 2 / 4),
        ([[1, 2, 1, 2]], 2, 2 / 3),  # 12 21 12
        ([[1, 2, 3], [1, 2, 4]], 2, 3 / 4),  # 12 23 12 24, and no 31
        ([[5, 5, 5, 5, 5]], 1, 1 / 5),
    ],
)
def test_distinct_by_hand(texts, n, expected):
    assert distinct(texts, n) == pytest.approx(expected)


def test_both_texts_are_cut_to_the_shorter_ones_tokens(trained):
    context, *_ = trained(["R0"])
    table, tokenizer = context.material.tables["test"], context.material.backbone.tokenizer
    rows = torch.arange(6)
    references = [table.ids[table.offsets[r] + table.prefix[r] : table.offsets[r + 1]] for r in rows.tolist()]
    length = max(map(len, references))
    tokens = torch.tensor([[*r.tolist(), *[ord("x")] * (length - len(r))] for r in references])
    assert write.agreement(tokens, table, rows, tokenizer) == pytest.approx(np.ones(6))


def test_what_cannot_be_done_is_refused_in_words(small, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="R14 has no head"):
        run_experiment(small(["R0", "R14"], probes={"generate": {"regimes": ["R14"]}}), runs=tmp_path)
    with pytest.raises(UserError, match="512 positions"), monkeypatch.context() as patched:
        patched.setattr(run, "train_seed", lambda *_: pytest.fail("trained, and only then refused"))
        run_experiment(small(["R0", "R1"], probes={"generate": {"new_tokens": 510}}), runs=tmp_path)
    for probes, more in (
        ({"generate": {"regimes": ["R1"]}}, {}),
        (PROBES, {"protocol": {"preset": "as_released"}}),
    ):
        with pytest.raises(UserError):
            small(["R0"], probes=probes, learning_rates={}, **more)
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.text.rouge", None)
    with pytest.raises(UserError, match=r"chameleon-lite\[generate\]"):
        run_experiment(small(["R0"], probes=PROBES), runs=tmp_path)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_experiment_loads_under_every_profile(profile):
    settings = load_experiment(COHERENCE, profile)
    assert settings.name == COHERENCE.stem and write.writing(settings) == list(settings.regimes)


def test_its_heads_are_those_of_the_honest_study():
    own, honest = (
        load_experiment(ROOT / "experiments" / f"{n}.yaml", "paper")
        for n in (COHERENCE.stem, "honest-alpaca")
    )
    for part in (
        "backbone",
        "corpora",
        "seeds",
        "tokens",
        "data",
        "clusters",
        "train",
        "sweep",
        "learning_rates",
        "protocol",
        "shared_order",
    ):
        assert getattr(own, part) == getattr(honest, part), part


def test_its_smoke_profile_runs_on_its_own_corpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(tmp_path / "home"))
    build = docstrings.build  # of one library: building all of them takes longer than the run
    monkeypatch.setattr(docstrings, "build", lambda form, seed: build(form, libs=("matplotlib",), seed=seed))
    settings = load_experiment(COHERENCE, "smoke", backbone="tiny")
    records = run_experiment(settings, runs=tmp_path)
    assert [r.regime for r in records] == list(settings.regimes)
    assert all(0 <= r.metrics["generated_rouge_l"] <= 1 and r.failure is None for r in records)
