"""Views of documents, and similarity, spread and maps of vectors: values one can work out by hand."""

from dataclasses import replace

import pytest
import torch

from chameleon_lite.backbone import load_backbone
from chameleon_lite.batches import arrange
from chameleon_lite.embed import normalise
from chameleon_lite.states import hidden_states
from chameleon_lite.text import Document, tokenise
from chameleon_study.sources import RandomMean, Views, main_direction, mean_cosine


def test_mean_cosine_is_that_of_all_pairs():
    assert mean_cosine(torch.tensor([[1.0, 0], [0, 2], [3, 0]])) == pytest.approx(1 / 3)  # 0, 1, 0
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    pairs = normalise(x) @ normalise(x).T
    assert mean_cosine(x) == pytest.approx(float((pairs.sum() - pairs.trace()) / (20 * 19)), abs=1e-6)


def test_main_direction_of_points_on_a_line():
    place, share = main_direction(torch.tensor([[1.0, 2], [2, 4], [3, 6]]))
    assert share == pytest.approx(1) and place.tolist() == pytest.approx([-(5**0.5), 0, 5**0.5], abs=1e-5)
    place, share = main_direction(torch.tensor([[2.0, 0], [-2, 0], [0, 1], [0, -1]]))
    assert share == pytest.approx(8 / 10) and place.tolist() == pytest.approx([2, -2, 0, 0], abs=1e-6)
    assert main_direction(torch.ones(3, 2))[1] == 0


def test_the_states_view_is_the_mean_state_over_the_condition_span(tmp_path):
    backbone = load_backbone("tiny")
    documents = [
        Document(str(n), "the mean of a batch tells what kind of text " * (1 + n % 3)) for n in range(7)
    ]
    table = tokenise(documents, backbone.tokenizer, max_length=64, prefix_tokens=9, min_scored=4)
    states = hidden_states(backbone, table, torch.float32, tmp_path)
    views = Views(backbone, table, states, 64)
    for n, (offset, (start, stop)) in enumerate(zip(table.offsets, table.condition)):
        mean = torch.tensor(states[offset + start : offset + stop]).float().mean(0)
        assert torch.allclose(views["states"][n], normalise(mean), atol=1e-6)


def test_the_prompt_view_is_the_mean_embedding_of_all_that_is_not_scored(tmp_path):
    backbone = load_backbone("tiny")
    documents = [Document(str(n), "an answer", "", f"Q: word {n}?\nA: ", f"word {n}") for n in range(5)]
    how = {"max_length": 64, "prefix_tokens": 9, "min_scored": 4, "condition_on": "instruction"}
    table = tokenise(documents, backbone.tokenizer, **how)
    views = Views(backbone, table, hidden_states(backbone, table, torch.float32, tmp_path), 64)
    for n, (offset, count) in enumerate(zip(table.offsets, table.prefix)):
        ids = torch.from_numpy(table.ids[offset : offset + count]).long()
        assert torch.allclose(views["prompt"][n], normalise(backbone.embedding[ids].mean(0)), atol=1e-6)
    assert (views["prompt"] - views["prefix"]).norm(dim=1).min() > 0.01


def test_random_groups_follow_from_the_order_and_not_its_clusters():
    vectors = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64) // 16
    orders = [arrange(64, labels, torch.Generator().manual_seed(n)) for n in (0, 1)]
    source = RandomMean(vectors, 8)
    for order in orders:
        rows = order.order[:16]  # one cluster
        condition, group = source(order, rows)
        drawn = source.drawn(order.order).groups(8).of  # (64,)
        for row, place in zip(rows, group):
            assert torch.allclose(condition.vector[place], vectors[drawn == drawn[row]].mean(0), atol=1e-6)
        assert (drawn.bincount() == 8).all() and len(labels[drawn == 0].unique()) > 1
        again = source(replace(order), rows)[0].vector
        assert torch.equal(again, condition.vector)
    assert not torch.equal(source.drawn(orders[0].order).order, source.drawn(orders[1].order).order)
