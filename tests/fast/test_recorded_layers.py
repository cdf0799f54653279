"""A recorded pass: on a GPU the same as the plain one; elsewhere what stands around the recording."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from chameleon_lite import train_layers
from chameleon_lite.backbone import load_backbone
from chameleon_lite.batches import Arrangement
from chameleon_lite.fast import recorded_layers
from chameleon_lite.fast.recorded_layers import Layers, RecordedLayers, recorded
from chameleon_lite.heads import LoraHead
from chameleon_lite.lora import add_lora
from chameleon_lite.loss import HeadWeight
from chameleon_lite.train_layers import Layered, StepLayers, Texts, gradients, read_layers, step_layers

ROWS, LENGTH = 2, 112


def adapted(device="cpu", dropout=0.0, name="tiny") -> Layered:
    backbone = load_backbone(name, device=device)
    torch.manual_seed(1)
    add_lora(backbone, rank=2, dropout=dropout)
    head = LoraHead(backbone.width, backbone.vocab, 2).to(device)
    both = Layered(backbone, head, HeadWeight(backbone.head.weight, dtype=torch.float32), 0.7)
    for parameter in both.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return both


def by(both, run) -> StepLayers:
    return StepLayers(run, both.backbone.device, ROWS * LENGTH, LENGTH, ROWS)


def trained(both, layers, table, steps=3, read=False):
    """Losses and gradients (steps, parameters) of some steps of plain descent."""
    order, found = Arrangement(torch.arange(len(table))), []
    texts = Texts(table, lambda number: order, len(table))
    for rows in torch.arange(len(table)).chunk(steps):
        for parameter in both.parameters():
            parameter.grad = None
        nats = gradients(both, layers, texts, order, rows, int(table.n_scored[rows.numpy()].sum()))
        flat = torch.cat([p.grad.flatten() for p in both.parameters()])
        found.append((float(nats), flat.clone()))
        if read:
            read_layers(both, texts)
            with torch.no_grad():
                layers.states(layers.pieces(table, rows)[0])
        with torch.no_grad():
            for parameter in both.parameters():
                parameter -= parameter.grad
    return found


def same(one, two, tolerance):
    for (loss, gradient), (loss2, gradient2) in zip(one, two, strict=True):
        assert loss == pytest.approx(loss2, rel=tolerance)
        assert (gradient - gradient2).norm() < tolerance * gradient2.norm()


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
    monkeypatch.setattr(recorded_layers.torch.cuda, "make_graphed_callables", static)
    monkeypatch.setattr(recorded_layers.torch.cuda, "device", lambda device: nullcontext())


def test_gradients_of_several_pieces_add_up_although_replays_share_their_memory(without_gpu, tiny_table):
    one, two = adapted(), adapted()
    run = RecordedLayers(one.backbone, ROWS, LENGTH)
    assert len(by(one, run).pieces(tiny_table, torch.arange(20))) > 3
    expected = trained(two, by(two, Layers(two.backbone)), tiny_table)
    same(trained(one, by(one, run), tiny_table, read=True), expected, 1e-5)


def test_other_shapes_modes_and_readings_are_not_replayed(without_gpu, tiny_table):
    both = adapted()
    run = RecordedLayers(both.backbone, ROWS, LENGTH)
    replayed, replay = [], run.replay
    run.replay = lambda *inputs: replayed.append(1) or replay(*inputs)
    fits = by(both, run).pieces(tiny_table, torch.arange(3))[0]
    other = StepLayers(run, both.backbone.device, 400, LENGTH).pieces(tiny_table, torch.arange(9))[0]
    run(fits.ids, fits.position, fits.mask)
    assert len(replayed) == 1
    run(other.ids, other.position, other.mask)
    run(fits.ids, None, fits.ids >= 0)
    with torch.no_grad():
        run(fits.ids, fits.position, fits.mask)
    both.backbone.lm.train()
    run(fits.ids, fits.position, fits.mask)
    both.backbone.lm.eval()
    run.release()
    run(fits.ids, fits.position, fits.mask)
    assert len(replayed) == 1


def test_a_recording_that_fails_is_said_once_and_done_without(monkeypatch, tiny_table):
    class Gpu:
        name, device = "tiny", torch.device("cuda")

    def broken(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(recorded_layers, "RecordedLayers", broken)
    with pytest.warns(UserWarning, match="tiny: its layers cannot be recorded.*stream is capturing\\)$"):
        assert recorded(Gpu, ROWS, LENGTH) is None
    both = adapted()
    assert recorded(both.backbone, ROWS, LENGTH) is None  # no GPU, and nothing to say
    layers = step_layers(both.backbone, tiny_table)
    assert isinstance(layers.run, Layers) and layers.length == 256 and layers.n_rows is None


def test_recording_can_be_switched_off(monkeypatch, tiny_table):
    monkeypatch.setattr(train_layers, "recorded", lambda *_: pytest.fail("recorded"))
    assert isinstance(step_layers(adapted().backbone, tiny_table, record=False).run, Layers)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a GPU")


@needs_gpu
@pytest.mark.parametrize("name", ["tiny", "tiny-llama"])
def test_recorded_is_plain(name, tiny_table):
    one, two = adapted("cuda", name=name), adapted("cuda", name=name)
    run = RecordedLayers(one.backbone, ROWS, LENGTH)
    assert len(by(one, run).pieces(tiny_table, torch.arange(20))) > 3
    found = trained(one, by(one, run), tiny_table, read=True)
    expected = trained(two, by(two, Layers(two.backbone)), tiny_table)
    # 16-bit products, the same kernels: what differs is the order in which gradients are added
    same(found, expected, 1e-2)
    assert len({loss for loss, _ in found}) == 3
    run.release()
    same(
        trained(one, by(one, run), tiny_table, 1),
        trained(two, by(two, Layers(two.backbone)), tiny_table, 1),
        1e-2,
    )


@needs_gpu
def test_dropout_draws_anew_in_every_replay(tiny_table):
    both = adapted("cuda", dropout=0.5)
    both.backbone.body.train()  # PEFT's dropout with the rest
    layers = by(both, RecordedLayers(both.backbone, ROWS, LENGTH))
    piece = layers.pieces(tiny_table, torch.arange(3))[0]
    one, two = (layers.states(piece).detach().clone() for _ in range(2))
    assert torch.isfinite(one).all() and not torch.equal(one, two)


@needs_gpu
def test_training_on_a_gpu_records_its_layers(monkeypatch, tiny_table):
    from chameleon_lite.settings import TrainSettings

    replays, before = [], RecordedLayers._keep_gradients_apart  # what every replay begins with
    monkeypatch.setattr(
        RecordedLayers, "_keep_gradients_apart", lambda self: replays.append(1) or before(self)
    )
    both, table = adapted("cuda"), tiny_table.take(np.arange(40))
    texts = Texts(table, lambda number: Arrangement(torch.arange(40)), 8)
    found = train_layers.fit_layers(both, texts, texts, TrainSettings(epochs=3, patience=9), 1e-2)
    assert found.failure is None and found.best < found.curve[0]["validation_nll"] and len(replays) >= 15
