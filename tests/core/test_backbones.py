"""A backbone is exactly transformers' model, cut between body and head; everything that cannot be cut is refused."""

import socket
import threading
import time

import pytest
import torch

from chameleon_lite import errors
from chameleon_lite.app import doctor
from chameleon_lite.backbone import BUILT_IN, head_access, load_backbone
from chameleon_lite.backbones import hub
from chameleon_study.corpora import hub as corpora_hub


@pytest.mark.parametrize("name", ["tiny", "tiny-llama"])
def test_hidden_states_and_logits_equal_transformers(name):
    backbone = load_backbone(name)
    ids = torch.randint(0, 256, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(11) < torch.tensor([[11], [7], [4]])).long()
    h = backbone.hidden(ids, mask)
    reference = backbone.lm(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
    assert torch.equal(h, reference.hidden_states[-1])
    assert torch.equal(backbone.head(h), reference.logits)


@pytest.mark.parametrize("name", ["tiny", "tiny-llama"])
def test_padding_never_changes_the_hidden_states_of_real_tokens(name):
    backbone = load_backbone(name)
    ids = torch.randint(0, 256, (1, 6), generator=torch.Generator().manual_seed(2))
    padded = torch.cat([ids, torch.full((1, 3), backbone.pad_id)], dim=1)
    mask = torch.tensor([[1] * 6 + [0] * 3])
    torch.testing.assert_close(
        backbone.hidden(padded, mask)[:, :6], backbone.hidden(ids, torch.ones_like(ids))
    )


def test_everything_is_frozen_and_in_evaluation_mode():
    backbone = load_backbone("tiny")
    assert not any(p.requires_grad for p in backbone.lm.parameters())
    assert not any(module.training for module in backbone.lm.modules())


def test_random_weights_repeat_and_leave_the_callers_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = load_backbone("tiny")
    assert torch.equal(torch.rand(1), expected)
    assert first.hash == load_backbone("tiny").hash != load_backbone("tiny-llama").hash
    assert first.hash != load_backbone("tiny", dtype=torch.bfloat16).hash


def test_the_byte_tokenizer_is_lossless_and_one_token_a_character():
    tokenizer = load_backbone("tiny").tokenizer
    text = "Naïve text, 1 < 2;\n\tend."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == list(text.encode()) and tokenizer.decode(ids) == text


def test_a_saved_model_loads_from_its_folder(tmp_path):
    original = load_backbone("tiny")
    original.lm.save_pretrained(tmp_path)
    original.tokenizer.save_pretrained(tmp_path)
    loaded = load_backbone(str(tmp_path))
    ids = torch.arange(5)[None]
    assert torch.equal(loaded.hidden(ids), original.hidden(ids))
    assert (loaded.parameters, loaded.pad_id) == (original.parameters, 256)
    assert loaded.hash == load_backbone(str(tmp_path)).hash
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + "\n")
    assert loaded.hash != load_backbone(str(tmp_path)).hash


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    original = load_backbone("tiny")
    state = {
        k: v for k, v in original.lm.state_dict().items() if "h.1.mlp.c_fc" not in k and k != "lm_head.weight"
    }
    original.lm.save_pretrained(tmp_path, state_dict=state)
    original.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(errors.DamagedFile, match="lacks weights"):
        load_backbone(str(tmp_path))


def test_a_folder_without_a_model_is_said_so(tmp_path):
    with pytest.raises(errors.UserError, match="holds no model"):
        load_backbone(str(tmp_path))


def test_an_unknown_name_comes_with_the_nearest():
    with pytest.raises(errors.UserError, match="did you mean 'tiny-llama'"):
        load_backbone("tinny-lama")
    assert "smollm2" in BUILT_IN


def test_no_network_and_no_cache_fails_at_once(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(proxy, raising=False)
    start = time.monotonic()
    with pytest.raises(errors.Unreachable, match="smollm2"):
        load_backbone("nobody/such-a-model")
    assert time.monotonic() - start < 1.0


@pytest.mark.parametrize("value", ["1", "ON", "yes", "True"])
def test_offline_mode_makes_no_connection(monkeypatch, value):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    monkeypatch.setattr(hub.socket, "create_connection", lambda *a, **k: pytest.fail("connected"))
    assert not hub.reachable() and "switched off" in doctor.report()


def test_a_name_look_up_that_hangs_is_not_waited_for(monkeypatch):
    released = threading.Event()
    asked = []

    def hangs(host, *args, **options):
        asked.append(host)
        released.wait(30)
        raise OSError("no such name")

    for name in ("https_proxy", "HTTPS_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    try:
        assert not hub.reachable(0.1)
        assert "not reachable" in doctor.report(0.1)
        with pytest.raises(errors.Unreachable, match="cannot reach the hub"):
            corpora_hub.fetch("owner/not-cached")
        assert not released.is_set() and asked == ["hub.invalid"] * 3  # all three answered while it hung
    finally:
        released.set()


def test_models_that_change_logits_after_the_head_are_refused_by_name():
    from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    sizes = dict(
        vocab_size=40,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    capped, scaled = Gemma2Config(**sizes), GraniteConfig(logits_scaling=2.0, **sizes)
    for lm in (Gemma2ForCausalLM(capped), GraniteForCausalLM(scaled)):
        with pytest.raises(errors.UserError, match=type(lm).__name__):
            head_access(lm.eval())


def test_width_is_the_heads_not_the_configurations():
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=40,
        hidden_size=16,
        word_embed_proj_dim=8,
        ffn_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        pad_token_id=1,
    )
    _, embedding, head = head_access(OPTForCausalLM(config).eval())
    assert head.weight.shape == (40, 8) and embedding.shape == (40, 8)
