"""The files of a model's folder: what is wrong with them is one line, and no setting of theirs changes a result."""

import json
from pathlib import Path

import pytest
import torch

from chameleon_lite import adapt
from chameleon_lite.app.export import export
from chameleon_lite.backbone import load_backbone
from chameleon_lite.chameleon import ChameleonLiteForCausalLM
from chameleon_lite.errors import UserError


def changed(path: Path, **changes) -> None:
    """A JSON file with some of its keys changed."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.ones(2)}, folder / "pytorch_model.bin")


def no_room(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("wpe.weight"))
    save_file(weights | {name: weights[name][:3].clone()}, folder / "model.safetensors", {"format": "pt"})
    changed(folder / "config.json", n_positions=3)


def of_a_newer_library(folder: Path) -> None:
    changed(folder / "tokenizer.json", model={"type": "Nope", "vocab": {}})


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
DAMAGES = {
    "weights cut": lambda f: cut(f / "model.safetensors", 0.5),
    "header cut": lambda f: cut(f / "model.safetensors", 0.001),
    "weights empty": lambda f: (f / "model.safetensors").write_bytes(b""),
    "weights of zeros": lambda f: (f / "model.safetensors").write_bytes(bytes(5_000)),
    "header of 2^60 bytes": lambda f: (f / "model.safetensors").write_bytes(
        (1 << 60).to_bytes(8, "little") + b"{}"
    ),
    "header no JSON": lambda f: (f / "model.safetensors").write_bytes(
        (4).to_bytes(8, "little") + b"nope" + bytes(90)
    ),
    "a pointer": lambda f: (f / "model.safetensors").write_bytes(LFS),
    "weights a folder": lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "only a pickle": only_a_pickle,
    "a list": lambda f: (f / "config.json").write_text("[1, 2]"),
    "a number": lambda f: (f / "config.json").write_text("5"),
    "no JSON": lambda f: (f / "config.json").write_text("{'a': "),
    "not UTF-8": lambda f: (f / "config.json").write_bytes(b"\xff\xfe{\0}\0"),
    "deep": lambda f: (f / "config.json").write_text("[" * 100_000),
    "no type": lambda f: changed(f / "config.json", model_type=None),
    "unknown type": lambda f: changed(f / "config.json", model_type="evil"),
    "a type that is a list": lambda f: changed(f / "config.json", model_type=["gpt2"]),
    "another architecture": lambda f: changed(f / "config.json", model_type="bert"),
    "sizes that are text": lambda f: changed(f / "config.json", n_embd="wide"),
    "negative sizes": lambda f: changed(f / "config.json", n_layer=-3, n_embd=-16),
    "sizes of another model": lambda f: changed(f / "config.json", n_embd=32),
    "room for three tokens": no_room,
    "a vocabulary of 10^12": lambda f: changed(f / "config.json", vocab_size=10**12),
    "foreign kernels": lambda f: changed(f / "config.json", attn_implementation="somebody/kernels"),
    "foreign kernels, inner name": lambda f: changed(
        f / "config.json", _attn_implementation="somebody/kernels:run"
    ),
    "a PEFT adapter": lambda f: (f / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}'),
    "tokenizer of a newer library": of_a_newer_library,
    "tokenizer cut": lambda f: cut(f / "tokenizer.json", 0.5),
    "tokenizer a list": lambda f: (f / "tokenizer.json").write_text("[]"),
    "tokenizer settings a list": lambda f: (f / "tokenizer_config.json").write_text("[]"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_line(model_folder, damage):
    folder = model_folder
    DAMAGES[damage](folder)
    with pytest.raises(UserError) as error:
        load_backbone(str(folder))
    assert len(str(error.value).splitlines()) == 1 and str(folder) in str(error.value)
    assert len(str(error.value)) < 1_000


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", ["a list", "no JSON", "unknown type", "deep", "no type"])
def test_counting_the_parameters_of_a_damaged_folder_is_one_line(refused, model_folder, damage):
    folder = model_folder
    DAMAGES[damage](folder)
    refused("params", "--backbone", folder, says=str(folder))


def test_a_pad_token_beyond_the_embedding_is_left_out(model_folder, texts, command):
    folder = model_folder
    whole = load_backbone(str(folder))
    tokenizer = load_backbone(str(folder)).tokenizer
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    backbone = load_backbone(str(folder))
    assert backbone.pad_id == whole.tokenizer.eos_token_id and len(backbone.tokenizer) == 257
    text = "a [PAD] in the text"
    assert backbone.tokenizer(text)["input_ids"] == whole.tokenizer(text)["input_ids"]
    texts.write_text(
        texts.read_text() + json.dumps({"text": f"{text} that is long enough to be scored"}) + "\n"
    )
    code, _, err = command("fit", texts, "--backbone", folder, "--out", "a", "--epochs", 1)
    assert code == 0, err


def test_a_vocabulary_beyond_the_embedding_is_refused(model_folder):
    folder = model_folder
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] |= {f"word{i}": 257 + i for i in range(9)}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="266 tokens and the model 257"):
        load_backbone(str(folder))


def test_the_folders_settings_of_generation_change_nothing(model_folder):
    folder = model_folder
    prompts = ["return x if x", "the mean of a batch tells", "1.25 0.75"]

    def continued(folder, **how):
        torch.manual_seed(0)
        model = ChameleonLiteForCausalLM.from_backbone(load_backbone(str(folder)))
        return [r["continuation"] for r in adapt(model, prompts, new_tokens=12, **how)]

    plain = continued(folder)
    settings = {
        "repetition_penalty": 1.8,
        "no_repeat_ngram_size": 2,
        "num_beams": 3,
        "num_return_sequences": 2,
    }
    settings |= {
        "max_length": 20,
        "do_sample": True,
        "temperature": 5.0,
        "min_new_tokens": 3,
        "bad_words_ids": [[5]],
    }
    path = folder / "generation_config.json"
    path.write_text(json.dumps(settings | {"eos_token_id": 256, "pad_token_id": 256}))
    assert continued(folder) == plain == continued(folder, batch=1)


def small_gguf(path: Path) -> None:
    """A Llama of one layer with random weights and a byte tokenizer, as llama.cpp writes it."""
    import numpy as np
    from gguf import GGUFWriter, TokenType

    tokens = [
        t for t, _ in sorted(load_backbone("tiny").tokenizer.get_vocab().items(), key=lambda item: item[1])
    ]
    tokens[200] = "ab"  # there has to be a merge
    width, inner, random = 32, 64, np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(width // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * 256 + [TokenType.CONTROL])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)
    shapes = {f"blk.0.attn_{name}.weight": (width, width) for name in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{name}.weight": (inner, width) for name in ("gate", "up")}
    shapes |= {"blk.0.ffn_down.weight": (width, inner), "token_embd.weight": (len(tokens), width)}
    shapes |= {
        name: (width,) for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight")
    }
    shapes["output.weight"] = (len(tokens), width)
    for name, shape in shapes.items():
        writer.add_tensor(name, random.normal(0, 0.2, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_a_gguf_file_can_be_saved_merged(tmp_path):
    (tmp_path / "gguf").mkdir()
    small_gguf(tmp_path / "gguf" / "small.gguf")
    backbone = load_backbone(str(tmp_path / "gguf"))
    model = ChameleonLiteForCausalLM.from_backbone(backbone, rank=2)
    torch.nn.init.normal_(model.head.last.bias, std=0.3)
    condition = torch.ones(1, backbone.width)
    merged = model.merge_for(condition)
    merged.save_pretrained(tmp_path / "merged")
    backbone.tokenizer.save_pretrained(tmp_path / "merged")
    ids = torch.arange(40, 60)[None]
    logits = load_backbone(str(tmp_path / "merged")).lm(ids).logits
    assert torch.equal(logits, merged(ids).logits) and not torch.allclose(logits, backbone.lm(ids).logits)
    export(model, tmp_path / "exported", format="merged", condition=condition)
    assert torch.equal(load_backbone(str(tmp_path / "exported")).lm(ids).logits, logits)
