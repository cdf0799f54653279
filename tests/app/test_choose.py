"""`fit --head auto`: every candidate is trained as if it were alone, and validation texts decide which is kept."""

import io
import re

import numpy as np
import pandas as pd
import pytest
import torch

from chameleon_lite import engine
from chameleon_lite.app.candidates import Cohort, candidates_of, name_of, seconds_of_layers
from chameleon_lite.app.fit import FitSettings, fit
from chameleon_lite.app.fitted import printed
from chameleon_lite.app.parts import corpus_of, parts_of
from chameleon_lite.app.stream import adapt
from chameleon_lite.backbone import load_backbone
from chameleon_lite.errors import RunFailed, UserError
from chameleon_lite.heads import HyperHead, LoraHead, matched_rank
from chameleon_lite.lora import adapted_layers
from chameleon_lite.settings import validated

NUMBERS = ["before", "after", "low", "high", "parameters"]
NAMES = ["LoRA rank 2", "LoRA rank {}", "hyper-network rank 2", "LoRA + layers rank 2"]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHAMELEON_LITE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def small(**changes) -> FitSettings:
    values = {
        "rank": 2,
        "layers": True,
        "learning_rate": 1e-2,
        "tokens": {"max_length": 64},
        "clusters": {"batch_rows": 8},
        "train": {"epochs": 2, "rows_per_step": 16, "patience": 0, "validations_per_epoch": 2},
    }
    return FitSettings(**values | changes)


@pytest.fixture(scope="module")
def fitted(two_kinds, own_cache):
    return fit(two_kinds(90), backbone="tiny", settings=small(), device="cpu")


@pytest.mark.parametrize("backbone", ["tiny", "tiny-llama"])
@pytest.mark.parametrize("name", ["plain", "fast"])
def test_a_candidates_numbers_are_those_of_training_it_alone(two_kinds, name, backbone):
    texts, settings = two_kinds(70), small()
    with engine.use(name):
        together = fit(texts, backbone=backbone, settings=settings, device="cpu")
        candidates = candidates_of(settings, load_backbone(backbone))
        for candidate in candidates:
            alone = fit(texts, backbone=backbone, settings=candidate, device="cpu")
            row = together.table[together.table["candidate"] == name_of(candidate)]
            assert row[NUMBERS].to_dict("records") == alone.table[NUMBERS].to_dict("records")
            if row["kept"].item():
                assert (together.before, together.after) == (alone.before, alone.after)
                assert (
                    together.curve == alone.curve
                    and together.model.config.notes["settings"] == (alone.model.config.notes["settings"])
                )
                mine, its = (x.model.adapter_state() for x in (together, alone))
                assert mine.keys() == its.keys() and all(torch.equal(mine[key], its[key]) for key in its)
    assert len(candidates) == 4 and together.table["kept"].sum() == 1


def test_the_best_on_validation_is_kept(fitted):
    table = fitted.table
    matched = matched_rank(fitted.model.backbone.width, fitted.model.backbone.vocab, 2)
    assert table["candidate"].tolist() == [name.format(matched) for name in NAMES]
    assert table.loc[table["after"].idxmin(), "kept"] and table["kept"].sum() == 1
    assert (table["low"] <= table["after"] - table["before"]).all()
    sizes = table["parameters"].tolist()
    assert sizes[1] == pytest.approx(sizes[2], rel=0.02) and sizes[0] < sizes[3]
    name = table.loc[table["kept"], "candidate"].item()
    assert fitted.why.startswith(f"kept: {name}, with the lowest loss on ") and "95 % interval" in fitted.why
    kept = [row["kept"] for row in fitted.model.config.notes["candidates"]]
    assert kept == table["kept"].tolist()


@pytest.mark.parametrize("head, kind", [("lora", LoraHead), ("hyper", HyperHead), ("layers", LoraHead)])
def test_a_named_head_is_trained_alone_saved_and_adapted(two_kinds, tmp_path, head, kind):
    found = fit(two_kinds(60), backbone="tiny", out=tmp_path / "a", settings=small(head=head), device="cpu")
    assert isinstance(found.model.head, kind) and found.model.config.lora_rank == 2 * (head == "layers")
    assert len(found.table) == 1 and found.why == found.offer == "" and found.report == str(found)
    texts = two_kinds(8, seed=1)
    assert adapt(tmp_path / "a", texts) == adapt(found.model, texts)
    assert found.model.config.notes["settings"]["head"] == head


def test_the_test_part_is_read_for_the_kept_one_alone(two_kinds, monkeypatch):
    read, nats = [], Cohort.nats
    monkeypatch.setattr(Cohort, "nats", lambda self, *given: read.append(given) or nats(self, *given))
    fitted = fit(two_kinds(60), backbone="tiny", settings=small(), device="cpu")
    name = fitted.table.loc[fitted.table["kept"], "candidate"].item()
    tested = [[m.name for m in members] for split, members in read if split == "test"]
    assert tested == [[name]] and sum(len(m) for split, m in read if split == "validation") == 4
    assert not {split for split, _ in read} - {"validation", "test"}


def test_the_callers_backbone_stays_as_it_is(two_kinds):
    backbone = load_backbone("tiny")
    before = {name: p.clone() for name, p in backbone.lm.state_dict().items()}
    for head in ("auto", "layers"):
        fit(two_kinds(60), backbone=backbone, settings=small(head=head), device="cpu")
        assert adapted_layers(backbone) == {}
        assert all(torch.equal(p, before[name]) for name, p in backbone.lm.state_dict().items())


def test_the_printed_table_is_the_frame_within_80_columns(fitted):
    lines = printed(fitted.table).splitlines()
    assert fitted.report.startswith(printed(fitted.table)) and str(fitted) in fitted.report.splitlines()
    assert max(map(len, lines)) <= 80
    for line, row in zip(lines[1:], fitted.table.itertuples()):
        assert line.startswith("* " if row.kept else "  ") and line[2:].startswith(row.candidate)
        shown = line[2 + len(row.candidate) :].replace(",", "").split()
        exact = [row.before, row.after, row.low, row.high, row.parameters, row.seconds]
        assert np.allclose(list(map(float, shown)), exact, atol=[5.1e-5] * 4 + [0, 0.51])
    large = fitted.table.assign(
        candidate="hyper-network rank 16", before=10.5, parameters=20_615_000, seconds=99_999.0
    )
    assert max(map(len, printed(large).splitlines())) <= 80


def test_on_a_cpu_layers_are_offered_with_an_estimate(two_kinds, tiny):
    quick = small(layers=None)
    found = fit(two_kinds(60), backbone="tiny", settings=quick, device="cpu")
    assert len(found.table) == 3 and re.search(
        r"--layers tries it too, an estimated \d+ (s|min) more", found.offer
    )
    assert found.offer in found.report.splitlines()
    parts, _ = parts_of(corpus_of(two_kinds(60)), tiny, quick)
    assert seconds_of_layers(tiny, parts, quick) > 0
    more = quick.model_copy(update={"train": quick.train.model_copy(update={"epochs": 5_000})})
    assert seconds_of_layers(tiny, parts, more) > 50 * seconds_of_layers(tiny, parts, quick)
    assert not any(p.requires_grad for p in tiny.lm.parameters())
    assert tiny.lm.get_input_embeddings()(torch.arange(3)).requires_grad is False
    ruled_out = fit(two_kinds(60), backbone="tiny", settings=small(layers=False), device="cpu")
    assert len(ruled_out.table) == 3 and ruled_out.offer == ""


def test_ranks_of_the_candidates(tiny):
    ranks = [
        (c.head, c.rank, c.lora_rank) for c in candidates_of(small(rank=4, lora_rank=8, layers=None), tiny)
    ]
    matched = matched_rank(tiny.width, tiny.vocab, 4)
    assert ranks == [("lora", 4, 0), ("lora", matched, 0), ("hyper", 4, 0), ("layers", 4, 8)]
    assert [name_of(c) for c in candidates_of(small(head="layers", lora_rank=8), tiny)] == [
        "LoRA + layers rank 2/8"
    ]
    assert [name_of(c) for c in candidates_of(small(head="hyper", lora_rank=2), tiny)] == [
        "hyper-network + layers rank 2"
    ]


def test_a_candidate_that_fails_is_left_out_and_named(two_kinds, monkeypatch):
    said, train = [], Cohort.train

    def fails(self):
        if self.settings.lora_rank:
            raise torch.OutOfMemoryError("no memory\nfor this")
        train(self)

    monkeypatch.setattr(Cohort, "train", fails)
    found = fit(two_kinds(60), backbone="tiny", settings=small(), device="cpu", say=said.append)
    assert len(found.table) == 3 and "LoRA + layers rank 2: no memory" in said
    with pytest.raises(torch.OutOfMemoryError):
        fit(two_kinds(60), backbone="tiny", settings=small(head="layers"), device="cpu")
    monkeypatch.setattr(Cohort, "train", lambda self: (_ for _ in ()).throw(RunFailed("nothing is finite")))
    with pytest.raises(RunFailed, match="nothing is finite"):
        fit(two_kinds(60), backbone="tiny", settings=small(), device="cpu")


def test_the_command_prints_table_reason_and_verdict_and_no_bar(tmp_path, two_kinds, capfd, monkeypatch):
    from chameleon_lite.app.cli import main

    source, out = tmp_path / "texts.txt.jsonl", tmp_path / "adapter"
    pd.DataFrame({"text": two_kinds(110)}).to_json(source, orient="records", lines=True)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    main(["fit", str(source), "--backbone", "tiny", "--out", str(out), "--epochs", "1", "--device", "cpu"])
    shown = capfd.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].split()[:4] == ["validation", "texts", "before", "after"]
    assert sum(line.startswith("* ") for line in lines) == 1 and any(x.startswith("kept: ") for x in lines)
    assert any("held-out texts" in line for line in lines) and any("--layers" in line for line in lines)
    assert "epoch" not in shown.err and "training LoRA rank 4, " in shown.err


def test_a_head_that_does_not_exist_is_refused_in_one_line(capfd):
    from chameleon_lite.app.cli import main

    with pytest.raises(SystemExit) as stopped:
        main(["fit", "texts.jsonl", "--out", "adapter", "--head", "hypr"])
    lines = capfd.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(lines) == 1 and "did you mean 'hyper'" in lines[0]
    with pytest.raises(UserError, match="^head: "):
        validated(FitSettings, {"head": "hypr"})


def test_a_terminal_sees_bars_with_the_time_left(two_kinds, monkeypatch, tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(tmp_path))  # where no states are kept yet
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr("sys.stderr", screen)
    fit(two_kinds(60), backbone="tiny", settings=small(), device="cpu")
    text = screen.getvalue()
    for part in (
        "hidden states: ",
        "epoch 1/2: ",
        "epoch 2/2:  50%",
        "reading validation: ",
        "reading test: ",
    ):
        assert part in text, part
    assert re.search(r"\[\d\d:\d\d<", text)
