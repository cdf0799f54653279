"""Layers that learn from a stream in pieces of few shapes, on a GPU recorded, against padded documents."""

import numpy as np
import pytest
import torch

from chameleon_lite import engine
from chameleon_lite.backbone import load_backbone
from chameleon_lite.fast import rows as fast_rows
from chameleon_lite.loss import HeadWeight
from chameleon_lite.streams.memory import HEAD, LearnSettings, Memory, fresh_start
from chameleon_lite.streams.online import LayerStates, layer_shapes, learn

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a GPU")


def learned(model, table, how, device="cpu", clusters=3, backbone=None):
    """Nats of 40 documents, how the memory changed, and what computed the states."""
    backbone = backbone or load_backbone(model, device=device)
    shapes = {HEAD: (2, backbone.width, backbone.vocab)} | layer_shapes(backbone, 2)
    start = fresh_start(shapes, torch.Generator().manual_seed(0)).to(device)
    memory = Memory(shapes, start, torch.full((1 + clusters,), 0.01), LearnSettings(batch_rows=8))
    live, rows = LayerStates(backbone, table, piece_tokens=400), torch.arange(40) % len(table)
    weight = HeadWeight(backbone.head.weight, backbone.head.bias, dtype=torch.float32)
    labels = torch.arange(len(table)) % clusters if clusters else None
    with engine.use(how):
        nats = learn(live, weight, rows, memory, labels=labels).cpu()
        return nats, (memory.values - memory.start).cpu(), live.learning_pass


@pytest.mark.parametrize("model", ["tiny", "tiny-llama"])
@pytest.mark.parametrize("clusters", [0, 3])
def test_pieces_of_few_shapes_learn_what_padded_documents_do(model, clusters, tiny_table):
    nats, change, way = learned(model, tiny_table, "fast", clusters=clusters)
    plain, expected, none = learned(model, tiny_table, "plain", clusters=clusters)
    assert none is None and {key[:2] for key in way.kept} <= {(6, 64), (3, 128)}
    torch.testing.assert_close(nats, plain, atol=1e-3, rtol=1e-5)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(change, expected, atol=2e-3, rtol=0)


def test_what_is_taken_has_the_gradient_of_indexing():
    numbers = torch.Generator().manual_seed(0)
    values, weight = torch.randn(5, 7, generator=numbers), torch.randn(6, 2, 7, generator=numbers)
    slots = torch.tensor([[0, 3], [0, 1], [0, 3], [0, 4], [0, 0], [4, 1]])  # none reads slot 2
    found, expected = (values.clone().requires_grad_() for _ in range(2))
    (fast_rows.Taken.apply(found, slots) * weight).sum().backward()
    (expected[slots] * weight).sum().backward()
    torch.testing.assert_close(found.grad, expected.grad)
    assert (found.grad[2] == 0).all() and found.grad[0].abs().min() > 0


def test_a_piece_holds_as_many_rows_as_its_longest_document_leaves_room_for(tiny_table):
    live = LayerStates(load_backbone("tiny"), tiny_table, piece_tokens=400)
    lengths = np.array([30, 130, 64, 65, 5, 1_000] + [7] * 9)
    pieces = fast_rows.RowsPass(live).pieces(lengths)
    assert sorted(torch.cat(pieces).tolist()) == list(range(15))
    assert [piece.tolist() for piece in pieces[:2]] == [[5], [1, 3]]
    assert [len(piece) for piece in pieces[2:]] == [6, 6]


def test_a_model_that_takes_no_such_masks_goes_the_plain_way(monkeypatch, tiny_table):
    monkeypatch.setattr(fast_rows, "takes_packed", lambda backbone, longest: False)
    assert learned("tiny", tiny_table, "fast")[2] is None


@needs_gpu
@pytest.mark.parametrize("model", ["tiny", "tiny-llama"])
@pytest.mark.parametrize("clusters", [0, 3])
def test_recorded_pieces_learn_what_padded_documents_do(model, clusters, tiny_table):
    nats, change, way = learned(model, tiny_table, "auto", "cuda", clusters)
    plain, expected, _ = learned(model, tiny_table, "plain", "cuda", clusters)
    assert way.pool is not None and way.kept  # none of them went the plain way
    torch.testing.assert_close(nats, plain, atol=0, rtol=2e-2)  # 16-bit states
    # Adam's first steps are of the rate's size whatever a gradient's: one near zero may take either sign
    assert ((change - expected).abs() > 5e-3).float().mean() < 0.02


@needs_gpu
def test_where_a_piece_cannot_be_recorded_it_goes_the_plain_way(monkeypatch, tiny_table):
    hidden = LayerStates.hidden

    def waits(self, *given):
        out = hidden(self, *given)
        float(out.detach().sum())
        return out

    expected = learned("tiny", tiny_table, "auto", "cuda")[0]
    monkeypatch.setattr(LayerStates, "hidden", waits)
    with pytest.warns(UserWarning, match="launched one by one") as heard:
        nats, _, way = learned("tiny", tiny_table, "auto", "cuda")
    assert way.pool is None and len(heard) == 1
    torch.testing.assert_close(nats, expected, atol=0, rtol=2e-2)
