"""Continuations end with whole characters, and the settings of generation that they do without are shown."""

import json
from pathlib import Path

from chameleon_lite.app.chat import unused_settings, whole_characters
from chameleon_lite.backbone import load_backbone
from chameleon_lite.chameleon import ChameleonLiteForCausalLM


def test_a_continuation_never_ends_inside_a_character(tiny):
    tokenizer = tiny.tokenizer
    ids = tokenizer("ab 😀é")["input_ids"]
    found = [whole_characters(tokenizer, ids[:n]) for n in range(2, len(ids) + 1)]
    assert found == ["ab", "ab ", "ab ", "ab ", "ab ", "ab 😀", "ab 😀", "ab 😀é"]
    assert whole_characters(tokenizer, [97, 0x80]) == "a\ufffd"  # no character is begun there
    assert whole_characters(tokenizer, tokenizer("\ufffd")["input_ids"]) == "\ufffd"
    assert whole_characters(tokenizer, []) == ""


def test_spelled_out_bytes_of_a_character_are_whole_or_cut():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocab = {f"<0x{b:02X}>": b for b in range(256)} | {"a": 256}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    ids = [256, *"😀".encode()]
    assert [whole_characters(tokenizer, ids[:n]) for n in (1, 2, 3, 4, 5)] == ["a", "a", "a", "a", "a😀"]


def test_settings_of_generation_that_are_not_used_are_shown(command, model_folder, adapter, tmp_path):
    settings = {"repetition_penalty": 1.3, "num_beams": 3, "num_return_sequences": 2, "bad_words_ids": [[5]]}
    path = model_folder / "generation_config.json"
    path.write_text(json.dumps(settings | {"eos_token_id": 256}))
    model = ChameleonLiteForCausalLM.from_backbone(load_backbone(str(model_folder)))
    assert unused_settings(adapter.lm) == ""
    shown = unused_settings(model.lm)
    assert shown == "num_beams 3, num_return_sequences 2, repetition_penalty 1.3, bad_words_ids [[5]]"
    model.save_pretrained(tmp_path / "a")
    Path("in.jsonl").write_text('"a prompt to continue, and long enough to be scored"')
    words = ("adapt", "in.jsonl", "--model", tmp_path / "a", "--out", "o.jsonl")
    _, _, err = command(*words, "--continue", "3")
    assert f"continuations are greedy: {shown}" in err
    assert "greedy" not in command(*words)[2]
