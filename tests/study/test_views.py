"""Views of documents, and similarity, spread and maps of vectors: values one can work out by hand."""

import pytest
import torch

from chameleon_lite.backbone import load_backbone
from chameleon_lite.embed import normalise
from chameleon_lite.states import hidden_states
from chameleon_lite.text import Document, tokenise
from chameleon_study.sources import Views, main_direction, mean_cosine


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
