"""Nothing that is scored may be read before it is scored: tried on every regime by changing what comes later.

Every test document keeps its prefix and its first scored tokens; the rest is other text of another length. The
losses of what stayed must stay, in every regime but the declared leaks, where they must change.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chameleon_lite.app.own_texts import read_jsonl, write_jsonl
from chameleon_lite.backbone import load_backbone
from chameleon_lite.processes import Processes
from chameleon_lite.train import Member, evaluate
from chameleon_study import layers, write
from chameleon_study.corpora import load_corpus
from chameleon_study.evaluate import Context, head_and_source
from chameleon_study.prepare import prepare, seed_material
from chameleon_study.regimes import REGIMES, Choice

PREFIX, KEPT = 10, 3  # tokens, characters for the byte tokenizer
CACHED = [n for n, r in REGIMES.items() if r.procedure is None and n != "R0"]


@pytest.fixture(scope="module")
def two_worlds(made_up, tmp_path_factory):
    """A context for the corpus as it is and one in which every test document goes on differently."""
    corpus = read_jsonl(Path(made_up))

    def otherwise(i, d):
        return replace(d, text=d.text[: PREFIX + KEPT] + ("zebra quiz " * 9)[: 6 + 5 * (i % 7)])

    test = tuple(otherwise(i, d) for i, d in enumerate(corpus.splits["test"]))
    path = tmp_path_factory.mktemp("other") / "other.jsonl"
    write_jsonl(replace(corpus, splits=corpus.splits | {"test": test}), path)
    return made_up, str(path)


def contexts(small, two_worlds, **more):
    backbone = load_backbone("tiny")
    settings = small(["R4"], **more)
    return [
        Context(settings, prepare(settings, backbone, load_corpus(name)), Processes(), "")
        for name in two_worlds
    ]


def head_of(r, context, seeded):
    """A head with every parameter moved: an untrained one would change nothing and prove nothing."""
    lender = REGIMES[r.weights_of] if r.weights_of else r
    backbone = context.material.backbone
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = lender.head(backbone, seeded.splits["train"])
    with torch.no_grad():
        for p in head.parameters():
            p += 0.2 * torch.randn(p.shape, generator=generator)
    return head


def first_losses(name, context, seeded):
    """Losses (N, KEPT) of each test document's first scored tokens."""
    r, material = REGIMES[name], context.material
    member = Member(r.weights_of or name, head_of(r, context, seeded), None, None, 0.0)
    pair = head_and_source(r, {member.name: member}, seeded, "test")
    found = torch.zeros(len(material.tables["test"]), KEPT)

    def watch(nll, document):
        for n in document.unique():
            found[n] = nll[0, document == n][:KEPT]

    order = seeded.epoch("test", r.order, 0)
    evaluate([pair], material.scored["test"], order, material.weight, rows=16, watch=watch)
    return found


def test_what_comes_later_changes_no_loss_but_in_the_declared_leaks(small, two_worlds):
    worlds = [(c, seed_material(c.settings, c.material, 0)) for c in contexts(small, two_worlds)]
    for name in CACHED:
        before, after = (first_losses(name, *world) for world in worlds)
        if REGIMES[name].leak:
            assert (before - after).abs().max() > 1e-3, f"{name} is declared a leak and reads nothing"
        else:
            assert torch.allclose(before, after, atol=1e-4), f"{name} reads what it must not"


def written(name, context, seeded):
    """Tokens (N, 8) that a regime continues every test document's prefix with."""
    r, material, settings = REGIMES[name], context.material, context.settings
    member = Member(r.weights_of or name, head_of(r, context, seeded), None, None, 0.0)
    head, source = head_and_source(r, {member.name: member}, seeded, "test")
    order = seeded.epoch("test", r.order, 0)
    told = write.conditions(source, order, settings.train.rows_per_step)
    table = material.tables["test"]
    return write.write(
        write.writer(settings, material), head, told, torch.arange(len(table)), table, settings
    )


def test_what_is_scored_never_changes_what_is_written_but_in_the_declared_leaks(small, two_worlds):
    both = contexts(small, two_worlds, probes={"generate": {"new_tokens": 8, "rows": 24}})
    worlds = [(c, seed_material(c.settings, c.material, 0)) for c in both]
    for name in CACHED:
        before, after = (written(name, *world) for world in worlds)
        assert torch.equal(before, after) != REGIMES[name].leak, name


def test_the_leaks_are_r8_and_r9_and_no_others():
    assert {n for n, r in REGIMES.items() if r.leak} == {"R8", "R9"}


def test_prefixes_in_context_hold_no_scored_token_of_a_neighbour(small, two_worlds):
    here, there = (c.material for c in contexts(small, two_worlds))
    groups = torch.arange(48) // 16
    before, after = (layers.neighbours_in_front(m.tables["test"], groups, [10]) for m in (here, there))
    assert (before[1] == after[1]).all() and before[1].min() == 15 * (PREFIX + 1)
    for n, stop in enumerate(before[1] + PREFIX + KEPT):
        assert (before[0][n][:stop] == after[0][n][:stop]).all()


@pytest.mark.parametrize("name", [n for n, r in REGIMES.items() if r.procedure])
def test_other_rows_scored_text_changes_nothing_without_the_cache(name, small, two_worlds, made_up, tmp_path):
    corpus, other = (read_jsonl(Path(p)) for p in two_worlds)
    first = corpus.splits["test"][0]
    mixed = replace(corpus, splits=corpus.splits | {"test": (first, *other.splits["test"][1:])})
    write_jsonl(mixed, tmp_path / "mixed.jsonl")
    losses = []
    for context in contexts(small, (made_up, str(tmp_path / "mixed.jsonl"))):
        seeded = seed_material(context.settings, context.material, 0)
        run = layers.PROCEDURES[REGIMES[name].procedure]
        losses.append(run(context, seeded, REGIMES[name], Choice(1e-2)).nll["test"])
    assert float(losses[0][0]) == pytest.approx(float(losses[1][0]), rel=1e-5)
    assert not torch.allclose(losses[0][1:], losses[1][1:])
