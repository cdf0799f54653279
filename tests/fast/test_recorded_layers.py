"""A recorded pass: on a GPU the same as the plain one; elsewhere what stands around the recording."""

from contextlib import closing, nullcontext

import numpy as np
import pytest
import torch

from chameleon_lite import train_layers
from chameleon_lite.backbone import load_backbone
from chameleon_lite.batches import Arrangement
from chameleon_lite.fast import layers as fast_layers
from chameleon_lite.fast.layers import PackedPass, RecordedLayers, layer_pass, recorded
from chameleon_lite.heads import LoraHead
from chameleon_lite.lora import add_lora, lora_parameters
from chameleon_lite.loss import HeadWeight
from chameleon_lite.processes import Processes
from chameleon_lite.settings import TrainSettings
from chameleon_lite.train import Common, Member, evaluate, step, train_heads
from chameleon_lite.train_layers import Layers, LiveStates, WithLayers

ROWS, LENGTH = 2, 112


def adapted(device="cpu", dropout=0.0, name="tiny"):
    """A backbone whose layers carry LoRA, the factors with a head, and the frozen weight."""
    backbone = load_backbone(name, device=device)
    torch.manual_seed(1)
    add_lora(backbone, rank=2, dropout=dropout)
    head = LoraHead(backbone.width, backbone.vocab, 2).to(device)
    both = WithLayers(head, lora_parameters(backbone).values())
    for parameter in both.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return backbone, both, HeadWeight(backbone.head.weight, dtype=torch.float32)


def by(backbone, run, table, budget=ROWS * LENGTH, n_rows=ROWS) -> PackedPass:
    return PackedPass(run, backbone.device, table, budget, LENGTH, n_rows)


class Descent:
    """Plain descent that keeps the gradients of each step."""

    def __init__(self, head):
        self.head, self.gradients = head, []

    @torch.no_grad()
    def step(self):
        self.gradients.append(torch.cat([p.grad.flatten() for p in self.head.parameters()]).clone())
        for p in self.head.parameters():
            p -= p.grad

    def zero_grad(self, set_to_none):
        for p in self.head.parameters():
            p.grad = None


def trained(model, run, table, steps=3, read=False):
    """Losses and gradients (steps, parameters) of some steps of plain descent through a run of the layers."""
    backbone, both, weight = model
    live, order, descent = LiveStates(backbone, table), Arrangement(torch.arange(len(table))), Descent(both)
    live.training_pass = by(backbone, run, table)
    member, found = Member("both", both, None, None, 0.0), []
    common = Common(live, weight, TrainSettings(scale=0.7), Processes(), {"both": descent})
    for rows in torch.arange(len(table)).chunk(steps):
        found.append(float(step([member], [(None, None)], rows, 1, common)))
        if read:
            evaluate([(both, None)], live, order, weight, rows=len(table))
            with torch.no_grad():
                live.training_pass.batch(rows[live.training_pass.pieces(rows)[0]])
    return list(zip(found, descent.gradients))


def same(one, two, tolerance):
    for (loss, gradient), (loss2, gradient2) in zip(one, two, strict=True):
        assert loss == pytest.approx(loss2, rel=tolerance)
        assert (gradient - gradient2).norm() < tolerance * gradient2.norm()


def first_piece(way, rows):
    """Ids, position and mask of the first piece, as the layers get them."""
    packed, _ = way.packed(rows[way.pieces(rows)[0]])
    device = way.device
    return packed.ids.to(device), packed.position.to(device), fast_layers.sees(packed.document.to(device))


def static(layers, sample, **options):
    """Stands in for the recording: gradients always come out in the same memory, as a replay's do."""
    factors, kept = list(layers.parameters()), []

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            ctx.inputs = inputs[:3]
            return layers(*inputs[:3]).detach()

        @staticmethod
        def backward(ctx, grad):
            with torch.enable_grad():
                found = torch.autograd.grad(layers(*ctx.inputs), factors, grad)
            kept.extend(torch.empty_like(g) for g in found[len(kept) :])
            for own, g in zip(kept, found):
                own.copy_(g)
            return (None,) * 3 + tuple(own.detach() for own in kept)

    return lambda *inputs: Replay.apply(*inputs, *factors)


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(fast_layers.torch.cuda, "make_graphed_callables", static)
    monkeypatch.setattr(fast_layers.torch.cuda, "graph_pool_handle", lambda: (0, 1))
    for name in ("device", "usable_after"):
        where = fast_layers.torch.cuda if name == "device" else fast_layers
        monkeypatch.setattr(where, name, lambda *_: nullcontext())


def test_gradients_of_several_pieces_add_up_although_replays_share_their_memory(without_gpu, tiny_table):
    one, two = adapted(), adapted()
    run = RecordedLayers(one[0], ROWS, LENGTH)
    assert len(by(one[0], run, tiny_table).pieces(torch.arange(20))) > 3
    expected = trained(two, Layers(two[0]), tiny_table)
    same(trained(one, run, tiny_table, read=True), expected, 1e-5)


def test_other_shapes_modes_and_readings_are_not_replayed(without_gpu, tiny_table):
    backbone, _, _ = adapted()
    run = RecordedLayers(backbone, ROWS, LENGTH)
    replayed, replay = [], run.replay
    run.replay = lambda *inputs: replayed.append(1) or replay(*inputs)
    fits = first_piece(by(backbone, run, tiny_table), torch.arange(3))
    other = first_piece(by(backbone, run, tiny_table, 400, None), torch.arange(9))
    run(*fits)
    assert len(replayed) == 1
    run(*other)
    run(fits[0], None, fits[0] >= 0)
    with torch.no_grad():
        run(*fits)
    backbone.lm.train()
    run(*fits)
    backbone.lm.eval()
    run.release()
    run(*fits)
    assert len(replayed) == 1


def test_a_recording_that_fails_warns_once_and_the_plain_pass_serves(monkeypatch, tiny_table):
    class Gpu:
        name, device = "tiny", torch.device("cuda")

    def broken(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(fast_layers, "RecordedLayers", broken)
    with pytest.warns(UserWarning, match="tiny: its layers cannot be recorded.*stream is capturing\\)$"):
        assert recorded(Gpu, ROWS, LENGTH) is None
    backbone, _, _ = adapted()
    assert recorded(backbone, ROWS, LENGTH) is None  # no GPU, and no warning
    way = layer_pass(backbone, tiny_table)
    assert isinstance(way.run, Layers) and way.length == 256 and way.n_rows is None


def test_recording_can_be_switched_off(monkeypatch, tiny_table):
    monkeypatch.setattr(fast_layers, "recorded", lambda *_: pytest.fail("recorded"))
    assert isinstance(layer_pass(adapted()[0], tiny_table, record=False).run, Layers)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a GPU")


@needs_gpu
@pytest.mark.parametrize("name", ["tiny", "tiny-llama"])
def test_recorded_is_plain(name, tiny_table):
    one, two = adapted("cuda", name=name), adapted("cuda", name=name)
    run = RecordedLayers(one[0], ROWS, LENGTH)
    assert len(by(one[0], run, tiny_table).pieces(torch.arange(20))) > 3
    found = trained(one, run, tiny_table, read=True)
    expected = trained(two, Layers(two[0]), tiny_table)
    # 16-bit products, the same kernels: what differs is the order in which gradients are added
    same(found, expected, 1e-2)
    assert len({loss for loss, _ in found}) == 3
    run.release()
    same(trained(one, run, tiny_table, 1), trained(two, Layers(two[0]), tiny_table, 1), 1e-2)


@needs_gpu
def test_dropout_draws_anew_in_every_replay(tiny_table):
    backbone, _, _ = adapted("cuda", dropout=0.5)
    backbone.body.train()  # PEFT's dropout with the rest
    way = by(backbone, RecordedLayers(backbone, ROWS, LENGTH), tiny_table)
    piece = torch.arange(3)[way.pieces(torch.arange(3))[0]]
    one, two = (way.batch(piece)[0].detach().clone() for _ in range(2))
    assert torch.isfinite(one).all() and not torch.equal(one, two)


@needs_gpu
def test_training_on_a_gpu_records_its_layers(monkeypatch, tiny_table):
    replays, before = [], RecordedLayers._keep_gradients_apart  # what every replay begins with
    monkeypatch.setattr(
        RecordedLayers, "_keep_gradients_apart", lambda self: replays.append(1) or before(self)
    )
    (backbone, both, weight), table = adapted("cuda"), tiny_table.take(np.arange(40))
    order, settings = Arrangement(torch.arange(40)), TrainSettings(epochs=3, patience=9, rows_per_step=8)
    member = Member("both", both, None, None, 1e-2)
    with closing(LiveStates(backbone, table)) as live:
        train_heads([member], live, lambda n: order, live, order, weight, settings, progress=False)
        assert isinstance(live.training_pass.run, RecordedLayers)
    assert member.failure is None and member.best < member.curve[0]["validation_nll"] and len(replays) >= 15


@needs_gpu
def test_after_layers_that_cannot_be_recorded_the_gpu_serves_as_before(monkeypatch, tiny_table):
    device, x = torch.device("cuda"), torch.ones(1_000, device="cuda")
    backbone, both, weight = adapted("cuda", dropout=0.5)
    backbone.body.train()  # the broken recording has drawn at random
    hidden = train_layers.Layers.forward

    def waits(self, ids, position, mask):
        out = hidden(self, ids, position, mask)
        float(out.detach().sum())
        return out

    with monkeypatch.context() as patch:
        patch.setattr(train_layers.Layers, "forward", waits)
        with pytest.warns(UserWarning, match="cannot be recorded"):
            assert recorded(backbone, ROWS, LENGTH) is None
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.manual_seed(3)
    one = [torch.rand(5, device=device), torch.nn.functional.dropout(x)]
    torch.manual_seed(3)
    assert all(map(torch.equal, one, [torch.rand(5, device=device), torch.nn.functional.dropout(x)]))
    torch.cuda.empty_cache()
    backbone.body.eval()
    run = RecordedLayers(backbone, ROWS, LENGTH)
    again = trained((backbone, both, weight), run, tiny_table)
    assert all(torch.isfinite(gradient).all() for _, gradient in again)
