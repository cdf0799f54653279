"""Every method of the stream study: nothing ahead of its time, lanes apart, rivals exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon_lite.heads import Condition, LoraHead
from chameleon_lite.loss import HeadWeight, token_losses
from chameleon_lite.streams.memory import start_of
from chameleon_study.streams import rivals
from chameleon_study.streams.generated import FIRST, Generator, trained
from chameleon_study.streams.material import prepare, with_extra
from chameleon_study.streams.methods import METHODS, merged
from chameleon_study.streams.rivals import RIVALS, cached, nearest_before, neighbours
from chameleon_study.streams.units import Reading, robust_orders, robustness, static_nll, train_static

BATCH, RATE = 8, 0.01
FIXED = {
    "cache": (0.1,),
    "knn": (0.2, 0.3),
    "context": (),
    "S4": (0.0,),
    "S4-updated": (1e-3,),
    "S6": (1e-3,),
}


def statics_of(model):
    """A head of each size that is not nothing."""
    out = {}
    for name, rank in (("R1", 4), ("R2", 0), ("R2-other", 0)):
        torch.manual_seed(1)
        head = LoraHead(model.width, model.vocab, rank or matched(model))
        torch.nn.init.normal_(head.up, std=0.1)
        out[name] = start_of(head)
    return out


def matched(model):
    from chameleon_lite.heads import matched_rank

    return matched_rank(model.width, model.vocab, 4)


def all_nll(material, statics):
    """The sums of nats in the order of arrival under every method and rival."""
    part = material.parts["stream"]
    order = part.order("random", 0)
    out = {}
    for name, method in METHODS.items():
        nll, _ = Reading(material, method, statics).read("stream", [order], [RATE], BATCH)
        out[name] = nll[0]
    for name, rival in RIVALS.items():
        out[name] = rival(material, part, order, BATCH, FIXED[name] or None)[FIXED[name]]
    return order, out


@pytest.mark.slow
def test_later_documents_change_no_number_scored_before(material, small_corpus, small_settings, small_model):
    statics = statics_of(small_model)
    order, before = all_nll(material, statics)
    table = material.parts["stream"].table
    swap = str.maketrans("aeiou", "eioua")

    @given(cut=st.integers(1, 38))
    @settings(max_examples=3, deadline=None)
    def check(cut):
        later = {table.names[n].removeprefix("0/") for n in order[cut:].tolist()}
        rows = [
            replace(d, text=d.text.translate(swap)) if d.id in later else d
            for d in small_corpus.splits["stream"]
        ]
        changed = replace(small_corpus, splits=small_corpus.splits | {"stream": tuple(rows)})
        same, after = all_nll(prepare(small_settings, small_model, changed, say=lambda text: None), statics)
        assert torch.equal(order, same)
        whole = cut // BATCH * BATCH  # online clusters read the prefixes of the whole batch first
        for name in before:
            # "context" reads all rows in one pass, whose widths move a last digit on some processors
            if name != "context":
                assert torch.equal(before[name][:whole], after[name][:whole]), name
            if "online" not in name:
                torch.testing.assert_close(before[name][:cut], after[name][:cut], atol=1e-4, rtol=1e-5)
            assert not torch.equal(before[name][cut:], after[name][cut:]), name

    check()


def test_scored_tokens_choose_no_cluster_and_no_row_to_put_in_front(
    material, small_corpus, small_settings, small_model
):
    swap, start = str.maketrans("aeiou", "eioua"), small_settings.tokens.prefix_tokens
    rows = [
        replace(d, text=d.text[:start] + d.text[start:].translate(swap))
        for d in small_corpus.splits["stream"]
    ]
    changed = replace(small_corpus, splits=small_corpus.splits | {"stream": tuple(rows)})
    other = prepare(small_settings, small_model, changed, say=lambda text: None)
    parts = [m.parts["stream"] for m in (material, other)]
    assert not np.array_equal(parts[0].table.ids, parts[1].table.ids)
    order, every = parts[0].order("random", 0), slice(None, parts[0].scored)
    for groups in {method.groups for method in METHODS.values()} - {""}:
        labels = [m.labels(groups, "stream", order, BATCH)[0][every] for m in (material, other)]
        assert torch.equal(*labels), groups
    near = [nearest_before(part.hidden, order, BATCH) for part in parts]
    assert torch.equal(*near) and near[0].max() > 0


def test_orders_side_by_side_are_the_orders_alone(material):
    orders = [material.parts["stream"].order("random", seed) for seed in (0, 1)]
    orders[1] = orders[1][:20]
    for name in ("S1", "S2-hidden-4", "S3-oracle"):
        reading = Reading(material, METHODS[name], {})
        together, _ = reading.read("stream", orders, [RATE, RATE / 2], BATCH)
        for order, rate, nll in zip(orders, (RATE, RATE / 2), together):
            alone, _ = reading.read("stream", [order], [rate], BATCH)
            torch.testing.assert_close(nll, alone[0], atol=1e-3, rtol=1e-4)


def test_orders_hold_every_document_once(material):
    part = material.parts["stream"]
    for kind in ("random", "bursty", "drifting"):
        order = part.order(kind, 0)
        assert order.sort().values.tolist() == list(range(part.scored))
        assert torch.equal(order, part.order(kind, 0))
    source = part.source[part.order("drifting", 0)]
    largest = torch.bincount(part.source[: part.scored]).argsort(descending=True, stable=True)
    a = torch.isin(source, largest[::2]).int().diff().abs().sum()
    assert a == 2  # A, then B, then A
    runs = (part.source[part.order("bursty", 0)].diff() != 0).sum()
    assert runs < (part.source[part.order("random", 0)].diff() != 0).sum()


def test_robust_orders_put_other_rows_between_the_same_clean_ones(material):
    orders, part = robust_orders(material), material.parts["stream"]
    assert part.table.groups[part.scored] in "xy" and len(part.table) == part.scored + 2 * 8
    for name, order in orders.items():
        assert torch.equal(order[order < part.scored], orders["clean"])
        share = float((order >= part.scored).float().mean())
        assert share == pytest.approx(
            {"clean": 0, "poisoned": 1 / 17}.get(name, float(name[-3:-1]) / 100 if "%" in name else 0),
            abs=0.03,
        )
    some = with_extra(torch.arange(10), torch.arange(100, 102), 0.5, 0)
    assert len(some) == 20 and torch.equal(some[some < 100], torch.arange(10))
    nats = robustness(material, Reading(material, METHODS["S1"], {}), 1e-3)
    assert (
        abs(nats["100 rows after the poisoned one"]) < 0.05 and abs(nats["clean"] - nats["garbage 50%"]) < 0.5
    )


def test_the_cache_counts_what_came_before_the_batch():
    numbers = np.random.default_rng(0)
    counts, vocab, batch = torch.tensor([2, 3, 1, 4, 2]), 5, 2
    target = torch.from_numpy(numbers.integers(0, vocab, int(counts.sum())))
    got, starts = cached(target, counts, batch, vocab), [0, 0, 5, 5, 10]
    document = torch.arange(5).repeat_interleave(counts)
    for i, t in enumerate(target.tolist()):
        start = starts[document[i]]
        assert got[i] == pytest.approx(((target[:start] == t).sum() + 1 / vocab) / (start + 1))


def test_neighbours_are_the_nearest_of_earlier_batches(monkeypatch):
    monkeypatch.setattr(rivals, "KEYS_AT_ONCE", 7)
    monkeypatch.setattr(rivals, "QUERIES_AT_ONCE", 3)
    numbers = torch.Generator().manual_seed(0)
    x, target = torch.randn(30, 4, generator=numbers), torch.randint(3, (30,), generator=numbers)
    distance, agrees = neighbours(x, target, [0, 4, 12, 20, 30], k=5)
    assert distance[:4].isinf().all() and not agrees[:4].any()
    for i, low in [(5, 4), (14, 12), (29, 20)]:
        exact = (x[:low] - x[i]).square().sum(1)
        near = exact.sort()
        k = min(5, low)
        torch.testing.assert_close(distance[i, :k], near.values[:k], atol=1e-4, rtol=1e-4)
        assert agrees[i, :k].tolist() == (target[near.indices[:k]] == target[i]).tolist()
        assert not agrees[i, k:].any()


def test_the_nearest_row_is_of_an_earlier_batch():
    x = torch.nn.functional.normalize(torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    near = nearest_before(x, order, 4)
    assert (near[:4] == -1).all()
    for i in range(4, 12):
        low = i // 4 * 4
        assert near[i] == (x[order[:low]] @ x[order[i]]).argmax()


def test_a_merged_head_scores_as_the_two_parts(material, small_model):
    start = statics_of(small_model)["R1"]
    h, target, _ = material.parts["stream"].states.batch(torch.arange(4))
    head = LoraHead(small_model.width, small_model.vocab, 4)
    down, up = start[0].split([4 * small_model.width, small_model.vocab * 4])
    with torch.no_grad():
        head.down.copy_(down.view_as(head.down))
        head.up.copy_(up.view_as(head.up))
    exact = HeadWeight(small_model.head.weight, small_model.head.bias, dtype=torch.float32)
    both = merged(small_model.head.weight, small_model.head.bias, start, small_model.width)
    torch.testing.assert_close(
        token_losses(h, target, both, [None]),
        token_losses(h, target, exact, [head.factors()]),
        atol=0.05,
        rtol=0.02,
    )


def test_a_static_head_lowers_the_loss_of_the_stream(material):
    start, record = train_static(material, "R1")
    frozen = static_nll(material, "frozen", {})
    assert static_nll(material, "R1", {"R1": start}).sum() < frozen.sum() - 10
    torch.testing.assert_close(static_nll(material, "frozen-live", {}), frozen, atol=0.2, rtol=0.01)
    assert (
        record["validation"] <= min(record["curve"][0].values()) and str(record["rate"]) in record["curve"][0]
    )


def test_a_generated_head_reads_the_means_of_rows_that_have_passed(material):
    part = material.parts["stream"]
    head, means = trained(material)
    generator = Generator(head, means)
    rows, labels = torch.arange(6), torch.tensor([0, 1, 1, 0, 0, 2])
    nll = generator.read(material, part, rows, labels)
    update = head.factors(Condition(means[labels]))
    h, target, row = part.states.batch(rows)
    expected = token_losses(h, target, material.weight, [update], [row])[0].double()
    torch.testing.assert_close(
        nll, torch.segment_reduce(expected, "sum", lengths=part.states.counts[rows], axis=0)
    )
    generator.remember(part.hidden[rows], labels)
    mean = (FIRST * means[1] + part.hidden[1] + part.hidden[2]) / (FIRST + 2)
    torch.testing.assert_close(generator.means[1], mean)
    assert torch.equal(generator.means[3:], means[3:])
