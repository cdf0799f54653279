"""`fit` with LoRA in the layers: it learns, it is saved whole, and frozen still means frozen."""

import json

import numpy as np
import pytest
import torch

from chameleon_lite import engine, train_layers
from chameleon_lite.app.fit import FitSettings, fit
from chameleon_lite.app.parts import corpus_of
from chameleon_lite.app.stream import adapt
from chameleon_lite.backbone import copied, load_backbone
from chameleon_lite.batches import Arrangement
from chameleon_lite.chameleon import ChameleonLiteForCausalLM
from chameleon_lite.errors import RunFailed, UserError
from chameleon_lite.fast import layers as fast_layers
from chameleon_lite.heads import LoraHead
from chameleon_lite.lora import adapted_layers, add_lora, lora_parameters
from chameleon_lite.loss import HeadWeight
from chameleon_lite.processes import Processes
from chameleon_lite.settings import ClusterSettings, TokenSettings, TrainSettings
from chameleon_lite.states import hidden_states
from chameleon_lite.text import tokenise
from chameleon_lite.train import Common, Member, evaluate, step
from chameleon_lite.train_layers import LiveStates, WithLayers


def small(**changes) -> FitSettings:
    values = {
        "head": "hyper",
        "learning_rate": 1e-2,
        "dropout": 0.0,
        "tokens": TokenSettings(max_length=96),
        "lora_rank": 2,
        "clusters": ClusterSettings(batch_rows=16),
        "train": TrainSettings(epochs=2, rows_per_step=16),
    }
    return FitSettings(**values | changes)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("cache")
        patch.setenv("CHAMELEON_LITE_HOME", str(home))
        yield home


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, two_kinds):
    out = tmp_path_factory.mktemp("layers") / "adapter"
    return fit(two_kinds(120), backbone="tiny", out=out, settings=small(), device="cpu")


def test_it_lowers_the_held_out_loss_and_keeps_no_states(fitted, own_cache):
    assert fitted.helped and fitted.after < fitted.before - 0.1
    assert not (own_cache / "states").exists()
    assert fitted.model.config.lora_rank == fitted.model.config.notes["settings"]["lora_rank"] == 2
    assert len(fitted.curve) == 3 and fitted.curve[0]["train_nll"] is None
    factors = lora_parameters(fitted.model.backbone)
    assert factors and all(p.abs().sum() > 0 for p in factors.values())  # B starts at zero: it has moved


def test_layers_do_something_that_the_head_alone_does_not(fitted, two_kinds):
    alone = fit(two_kinds(120), backbone="tiny", settings=small(lora_rank=0), device="cpu")
    assert alone.before == pytest.approx(
        fitted.before, abs=2e-3
    )  # one held-out part, one frozen model; 16-bit states
    assert alone.after != pytest.approx(fitted.after, abs=1e-3)


def test_another_process_computes_equal_logits(fitted, machine, tmp_path):
    model = fitted.model
    ids = torch.arange(40).reshape(2, 20)
    code = f"""
import torch
from chameleon_lite.chameleon import ChameleonLiteForCausalLM
torch.set_num_threads({torch.get_num_threads()})
model = ChameleonLiteForCausalLM.from_pretrained({str(fitted.folder)!r})
logits = model(torch.arange(40).reshape(2, 20), condition=model.centroids[:2]).logits
torch.save(logits.detach(), {str(tmp_path / "logits.pt")!r})"""
    machine.whole(code, tmp_path)
    with torch.no_grad():
        here = model(ids, condition=model.centroids[:2]).logits
        assert torch.equal(torch.load(tmp_path / "logits.pt"), here)
        frozen = ChameleonLiteForCausalLM.from_backbone("tiny")
        assert not torch.allclose(frozen(ids).logits, model(ids).logits)


def test_frozen_means_the_layers_too(fitted, two_kinds):
    """`adapt` reports the plain backbone's loss beside the adapted one, and `fit` reported the same two numbers."""
    texts = [d.text for d in corpus_of(two_kinds(120)).splits["test"]]
    rows = adapt(fitted.folder, texts)
    plain = adapt(ChameleonLiteForCausalLM.from_backbone("tiny", prompts=fitted.model.config.prompts), texts)
    assert [r["loss_frozen"] for r in rows] == pytest.approx([r["loss"] for r in plain], rel=1e-5)
    tokens = np.array([r["tokens"] for r in rows])
    frozen, adapted = (
        sum(r[name] * r["tokens"] for r in rows) / tokens.sum() for name in ("loss_frozen", "loss")
    )
    assert fitted.before == pytest.approx(frozen, rel=2e-3) and fitted.after == pytest.approx(
        adapted, rel=2e-2
    )
    assert {len(r["continuation"]) > 0 for r in adapt(fitted.model, texts[:3], new_tokens=3)} == {True}


def test_the_stream_experiment_is_refused_by_name(fitted, two_kinds):
    from chameleon_study.arrivals import on_the_fly

    with pytest.raises(UserError, match="tiny carries LoRA"):
        on_the_fly(fitted.model, corpus_of(two_kinds(60)).splits["test"], batch=2)


def test_rank_zero_is_the_head_alone_as_ever(two_kinds):
    one, two = (
        fit(two_kinds(90), backbone="tiny", settings=s)
        for s in (small(lora_rank=0), FitSettings(head="hyper", **small().model_dump(exclude={"lora_rank"})))
    )
    assert one.after == two.after and torch.equal(one.model.head.last.weight, two.model.head.last.weight)
    assert not adapted_layers(one.model.backbone) and not [
        n for n in one.model.adapter_state() if n.startswith("lora.")
    ]


def test_the_callers_backbone_stays_as_it_is_and_the_seed_decides(two_kinds):
    backbone = load_backbone("tiny")
    one, two = (fit(two_kinds(60), backbone=backbone, settings=small(dropout=0.5)) for _ in range(2))
    assert adapted_layers(backbone) == {} and one.after == two.after != one.before
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.model.adapter_state().values(), two.model.adapter_state().values())
    )


def test_states_under_lora_are_never_kept(two_kinds):
    backbone = load_backbone("tiny")
    table = tokenise(corpus_of(two_kinds(60)).splits["train"], backbone.tokenizer)
    add_lora(backbone, rank=1)
    with pytest.raises(UserError, match="carries LoRA"):
        hidden_states(backbone, table, torch.float32)


@pytest.mark.parametrize("name", ["plain", "fast"])
def test_pieces_change_neither_gradients_nor_readings(monkeypatch, two_kinds, name):
    backbone = copied(load_backbone("tiny"))
    torch.manual_seed(0)
    add_lora(backbone, rank=2)
    both = WithLayers(LoraHead(backbone.width, backbone.vocab, 2), lora_parameters(backbone).values())
    weight = HeadWeight(backbone.head.weight, backbone.head.bias, dtype=torch.float32)
    for parameter in both.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    table = tokenise(corpus_of(two_kinds(60)).splits["train"], backbone.tokenizer, max_length=96)
    order, found = Arrangement(torch.arange(len(table))), []
    budgets = []
    for budget in (10**6, 100):  # a whole step at once; few documents at a time
        for module in (train_layers, fast_layers):
            monkeypatch.setattr(module, "STEP_TOKENS", {"cpu": budget})
        monkeypatch.setattr(train_layers, "READ_TOKENS", {"cpu": budget})
        optimiser = torch.optim.SGD(both.parameters(), lr=0.0)
        gradients = []
        optimiser.register_step_pre_hook(
            lambda *_: gradients.append(torch.cat([p.grad.flatten() for p in both.parameters()]))
        )
        with engine.use(name):
            live, member = LiveStates(backbone, table), Member("both", both, None, None, 0.0)
            settings, rows = TrainSettings(scale=0.7), torch.arange(20)
            common = Common(live, weight, settings, Processes(), {"both": optimiser})
            step([member], [(None, None)], rows, 1, common)
            nll = evaluate([(both, None)], live, order, weight, rows=20, scale=0.7)
            budgets.append(len(live.pieces(rows)))
        found.append((gradients[0], nll))
    assert budgets[0] == 1 < budgets[1]
    assert found[0][0].abs().sum() > 0 and torch.allclose(found[0][0], found[1][0], rtol=1e-4, atol=1e-7)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-3)


def test_both_engines_fit_the_same_adapter(two_kinds):
    curves = []
    for name in ("plain", "auto"):  # of so few documents both cluster plainly
        with engine.use(name):
            curves.append(fit(two_kinds(60), backbone="tiny", settings=small(dropout=0.5)).curve)
    for one, two in zip(*curves, strict=True):
        assert one["validation_nll"] == pytest.approx(two["validation_nll"], abs=2e-3)


@pytest.mark.parametrize("record", [True, False])
def test_whether_the_layers_are_recorded_is_a_setting(monkeypatch, two_kinds, record):
    shapes = []
    monkeypatch.setattr(fast_layers, "recorded", lambda _, *shape: shapes.append(shape))
    with engine.use("auto"):
        settings = small(record_layers=record, train=TrainSettings(epochs=1))
        fit(two_kinds(60), backbone="tiny", settings=settings, device="cpu")
    assert shapes == ([(1, 256)] if record else [])


def test_a_loss_that_is_not_finite_is_a_failed_run_that_names_the_learning_rate(monkeypatch, two_kinds):
    def infinite(self, rows):
        h, target, row = batch(self, rows)
        return h * torch.inf, target, row

    batch = LiveStates.batch
    monkeypatch.setattr(LiveStates, "batch", infinite)
    with pytest.raises(RunFailed, match="learning rate"):
        fit(two_kinds(60), backbone="tiny", settings=small())


def test_command_line_and_two_processes(command, machine, two_kinds, tmp_path):
    source = tmp_path / "texts.jsonl"
    source.write_text("\n".join(json.dumps({"text": t}) for t in two_kinds(120)))
    words = ["fit", source, "--backbone", "tiny", "--epochs", 1, "--device", "cpu", "--lora-rank", 2, "--out"]
    code, said, errors = command(*words, tmp_path / "one")
    assert code == 0 and "held-out texts" in said, errors
    assert "held-out texts" in machine.together(machine.command(*words, "two"), tmp_path)
    notes = [json.loads((tmp_path / n / "config.json").read_text())["notes"] for n in ("one", "two")]
    assert (
        notes[0]["after"] == pytest.approx(notes[1]["after"], abs=1e-3)
        and notes[0]["after"] < notes[0]["before"]
    )
