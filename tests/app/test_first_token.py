"""The token that every text begins with: where it is measured, stored, used and refused."""

import pytest
import torch

from chameleon_lite import adapt, fit
from chameleon_lite.app.chat import Writer
from chameleon_lite.app.fit_settings import FitSettings
from chameleon_lite.app.parts import corpus_of
from chameleon_lite.app.score import Adapter
from chameleon_lite.app.writing import gains_of
from chameleon_lite.backbones.adapters import Writing
from chameleon_lite.chameleon import ChameleonLiteForCausalLM
from chameleon_lite.errors import DamagedFile, UserError
from chameleon_lite.settings import TokenSettings

END = "<|im_end|>"
QUICK = {"head": "lora", "bos": "off", "train": {"epochs": 1}, "tokens": {"max_length": 128}}


@pytest.fixture
def needy(chatty):
    """A model that predicts worse by far unless its text begins with the end-of-text token."""
    end = torch.tensor(256)
    body = chatty.lm.transformer
    forward = body.forward

    def worse(input_ids=None, **how):
        out = forward(input_ids=input_ids, **how)
        h, missing = out.last_hidden_state, input_ids[:, 0] != end
        out.last_hidden_state = torch.where(missing[:, None, None], -h, h)
        return out

    body.forward = worse
    yield chatty
    del body.forward


def test_a_first_token_that_the_loss_needs_is_measured_used_stored_and_said(needy, two_kinds):
    texts, heard = two_kinds(60), []
    corpus = corpus_of(texts)
    writer = Writer(needy.tokenizer, Writing(special=False, bos=""))
    cuts = TokenSettings(max_length=128)
    gains = gains_of(["<|endoftext|>"], corpus.splits["train"], needy, writer, cuts)
    gain, error = gains["<|endoftext|>"]
    assert abs(gain) > 2 * error
    better = gain > 0
    settings = FitSettings(**QUICK | {"bos": "auto"})
    fitted = fit(texts, backbone=needy, settings=settings, progress=False, say=heard.append)
    mark = "<|endoftext|>" if better else ""
    assert fitted.model.config.prompts["bos"] == mark
    assert any(f"begins with {mark!r}, which saves {gain:.4f} nats" in line for line in heard) == better
    forced = {}
    for bos in ("on", "off"):
        found = fit(texts, backbone=needy, settings=FitSettings(**QUICK | {"bos": bos}), progress=False)
        forced[bos] = found.before
        rows = adapt(found.model, texts, progress=False)
        assert found.model.config.prompts["bos"] == {"on": "<|endoftext|>", "off": ""}[bos]
        assert len(rows) == 60 and all("loss" in row for row in rows)
    # what the token saves lies in both numbers of a fit, so that it is no gain of the adapter
    assert (forced["off"] - forced["on"] > 0.002) == better
    assert fitted.before == pytest.approx(forced["on" if better else "off"], abs=1e-6)


def test_the_first_token_of_an_adapter_is_there_again_when_texts_are_scored_and_continued(chatty, two_kinds):
    texts = two_kinds(2)
    model = ChameleonLiteForCausalLM.from_backbone(chatty, prompts={"bos": END})
    plain = ChameleonLiteForCausalLM.from_backbone(chatty, prompts={"bos": ""})
    a, b = (adapt(m, texts, progress=False) for m in (model, plain))
    assert all(x["loss_frozen"] != y["loss_frozen"] and x["tokens"] == y["tokens"] for x, y in zip(a, b))
    ids = [258, *texts[0].encode()]
    logits = chatty.lm(torch.tensor([ids])).logits[0, 16:-1]  # the first token, and 16 of the prefix
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[17:]))
    assert a[0]["loss_frozen"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("how, says", [({"bos": "<s>"}, "first token '<s>' is none"), ({"bos": 3}, "bos")])
def test_a_first_token_that_the_tokenizer_lacks_is_refused(how, says, chatty):
    with pytest.raises((DamagedFile, UserError), match=says):
        Adapter(ChameleonLiteForCausalLM.from_backbone(chatty, prompts=how)).writer  # noqa: B018


@pytest.mark.parametrize("word", ["chat", "bos"])
def test_a_choice_that_is_none_is_one_line(word, refused, texts):
    refused(
        "fit",
        texts,
        "--backbone",
        "tiny",
        f"--{word}",
        "maybe",
        "--out",
        "a",
        says=f"{word}: Input should be",
    )
