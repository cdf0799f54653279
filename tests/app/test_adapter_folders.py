"""An adapter from somewhere: whatever its folder says, one line says what is wrong, and nothing large is allocated."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chameleon_lite.backbones.adapters import AdapterSettings, check_tensors, portable, read_settings
from chameleon_lite.chameleon import ChameleonLiteForCausalLM
from chameleon_lite.errors import DamagedFile, UserError

NAN = float("nan")
ODD = [  # changes of a good configuration
    {"rank": 10**9},
    {"rank": 10**30},
    {"rank": -2},
    {"rank": 0},
    {"rank": 3},
    {"rank": 16_384},
    {"rank": "2"},
    {"rank": 2.5},
    {"rank": True},
    {"rank": None},
    {"rank": [2]},
    {"clusters": 10**12},
    {"clusters": 1_048_576},
    {"clusters": 2},
    {"clusters": 0},
    {"clusters": -1},
    {"clusters": {}},
    {"dropout": 2},
    {"dropout": 2.0},
    {"dropout": 1.0},
    {"dropout": -0.1},
    {"dropout": NAN},
    {"dropout": "no"},
    {"scale": NAN},
    {"scale": float("inf")},
    {"scale": 0},
    {"scale": -1.0},
    {"scale": 1e30},
    {"scale": [1.0]},
    {"hidden": 64},
    {"hidden": []},
    {"hidden": [64]},
    {"hidden": [64, 32, 16]},
    {"hidden": [64, -32]},
    {"hidden": [0, 32]},
    {"hidden": [64, 10**9]},
    {"hidden": ["64", "32"]},
    {"hidden": "64,32"},
    {"hidden": [32, 64]},
    {"head": "hypr"},
    {"head": "lora"},
    {"head": ["hyper"]},
    {"condition": "clustre"},
    {"condition": 3},
    {"lora_rank": 10**9},
    {"lora_rank": 4},
    {"lora_rank": -1},
    {"lora_rank": "4"},
    {"lora_alpha": 0},
    {"lora_alpha": NAN},
    {"width": 10**12},
    {"width": 8},
    {"width": -16},
    {"vocabulary": 10**15},
    {"vocabulary": 300},
    {"vocabulary": "257"},
    {"prompts": []},
    {"prompts": "x"},
    {"prompts": {"max_length": -5}},
    {"prompts": {"max_length": "many"}},
    {"prompts": {"prefix_tokens": 0}},
    {"prompts": {"unknown": 1}},
    {"prompts": {"condition_on": "rows"}},
    {"notes": []},
    {"notes": None},
    {"backbone_name": ["tiny"]},
    {"backbone_name": "tin"},
    {"backbone_name": ""},
    {"backbone_name": "x\0y"},
    {"backbone_name": "x" * 5_000},
    {"backbone_name": "../../nowhere"},
    {"backbone_name": "tiny-llama"},
    {"backbone_revision": "; rm"},
    {"backbone_revision": 5},
    {"backbone_dtype": "nn"},
    {"backbone_dtype": "int8"},
    {"backbone_dtype": None},
    {"backbone_dtype": "bfloat16"},
    {"backbone_hash": "0" * 64},
    {"backbone_hash": 0},
    {"vocabulary_hash": "?"},
    {"model_type": "llama"},
    {"model_type": None},
    {"model_type": ["chameleon-lite"]},
]
HARMLESS = [  # fields that the backbone decides, or nobody reads
    {"text_config": []},
    {"text_config": {"hidden_size": -1}},
    {"text_config": {"model_type": "llama", "hidden_size": "x"}},
    {"text_config": None},
    {"attn_implementation": "kernels-community/flash-attn"},
    {"_attn_implementation": "nonsense"},
    {"auto_map": {"AutoConfig": "evil.Config"}},
    {"architectures": 5},
    {"dtype": "nonsense"},
    {"quantization_config": {"quant_method": "none"}},
    {"bos_token_id": "x"},
    {"tie_word_embeddings": True},
    {"transformers_version": -1},
    {"anything": [1, 2]},
]


@pytest.fixture
def folder(adapter_folder, tmp_path):
    """A copy of the saved adapter, and `change(**fields)` of its configuration."""
    path = shutil.copytree(adapter_folder, tmp_path / "adapter")

    def change(**fields) -> Path:
        content = json.loads((adapter_folder / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(content | fields))
        return path

    return change


def named(change: dict) -> str:
    return json.dumps(change)[:40]


@pytest.mark.parametrize("change", ODD, ids=named)
def test_an_odd_configuration_is_refused_before_anything_is_allocated(change, folder, monkeypatch):
    def allocates(self, *_, **__):
        raise AssertionError("built before it was checked")

    monkeypatch.setattr(ChameleonLiteForCausalLM, "__init__", allocates)
    with pytest.raises(UserError) as refused:
        ChameleonLiteForCausalLM.from_pretrained(folder(**change))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("change", HARMLESS, ids=named)
def test_what_the_backbone_decides_is_not_read(change, folder, adapter):
    loaded = ChameleonLiteForCausalLM.from_pretrained(folder(**change))
    assert torch.equal(loaded.head.last.weight, adapter.head.last.weight)
    assert loaded.config.text_config.to_dict() == adapter.config.text_config.to_dict()


def test_a_configuration_that_lacks_fields_is_refused(folder):
    for content in ('{"model_type": "chameleon-lite"}', "{}", "[]", "5", "", "{", "[" * 60_000, "\0" * 100):
        path = folder()
        (path / "config.json").write_text(content)
        with pytest.raises(UserError):
            ChameleonLiteForCausalLM.from_pretrained(path)


def test_a_field_named_twice_is_refused(folder):
    path = folder()
    content = (path / "config.json").read_text()
    for field, other in (("rank", 3), ("model_type", '"llama"'), ("backbone_name", '"x"')):
        (path / "config.json").write_text(content.replace("{", f'{{"{field}": {other},', 1))
        with pytest.raises(DamagedFile, match=f"the key '{field}' stands there twice"):
            ChameleonLiteForCausalLM.from_pretrained(path)


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def pickled(path: Path) -> None:
    torch.save({"head.last.bias": torch.zeros(3)}, path)


def long_header(path: Path) -> None:
    path.write_bytes((10**15).to_bytes(8, "little") + b"{}")


FILES = {  # damage -> what is done, what is said
    "empty": (lambda path: path.write_bytes(b""), "is empty: fetch it again"),
    "cut in half": (lambda path: cut(path, 0.5), "cut short or damaged: fetch it again"),
    "cut in the header": (lambda path: path.write_bytes(path.read_bytes()[:40]), "cut short or damaged"),
    "zeros": (lambda path: path.write_bytes(b"\0" * 9_000), "cut short or damaged"),
    "a header of a petabyte": (long_header, "cut short or damaged"),
    "Git LFS": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid x"),
        "git lfs pull",
    ),
    "PyTorch's zip": (pickled, "could run code"),
    "a pickle": (lambda path: path.write_bytes(b"\x80\x04K\x01."), "could run code"),
    "text": (lambda path: path.write_text("<html>404</html>"), "cut short or damaged"),
    "missing": (lambda path: path.unlink(), "no other format is read"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "no other format is read"),
}


@pytest.mark.parametrize("name", FILES)
def test_weights_that_are_none_are_named_with_what_to_do(name, folder, refused):
    damage, says = FILES[name]
    path = folder()
    damage(path / "model.safetensors")
    Path("in.jsonl").write_text('"a text that is long enough to be scored, and more"')
    code = 2 if "no other format" in says else 1
    line = refused("adapt", "in.jsonl", "--model", path, "--out", "o.jsonl", says=says, code=code)
    assert "model.safetensors" in line and not Path("o.jsonl").exists()


def test_the_rank_of_the_layers_is_the_files(tiny, tmp_path):
    model = ChameleonLiteForCausalLM.from_backbone("tiny", rank=2, lora_rank=2)
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    ChameleonLiteForCausalLM.from_pretrained(tmp_path)
    for rank in (0, 1, 3, 16_384):
        (tmp_path / "config.json").write_text(json.dumps(content | {"lora_rank": rank}))
        with pytest.raises(UserError, match="does not fit its config.json: lora"):
            ChameleonLiteForCausalLM.from_pretrained(tmp_path)


VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers())
)
CHANGES = st.dictionaries(
    st.sampled_from([*AdapterSettings.model_fields, "model_type", "text_config"]), VALUES
)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(CHANGES, st.integers(0, 400), st.binary(max_size=4))
def test_any_configuration_and_any_damage_is_an_adapter_or_one_line(folder, change, place, damage):
    path = folder(**change)
    shutil.copyfile(path / "model.safetensors", path / "whole")
    content = bytearray((path / "whole").read_bytes())
    content[place : place + len(damage)] = damage
    (path / "model.safetensors").write_bytes(content)
    try:
        loaded = ChameleonLiteForCausalLM.from_pretrained(path)
        assert loaded.config.rank == 2
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    finally:
        (path / "whole").replace(path / "model.safetensors")


def test_an_adapter_names_no_person_no_machine_and_no_place(two_kinds, tiny, tmp_path, monkeypatch):
    from chameleon_lite.app.fit import fit
    from chameleon_lite.app.stream import adapt_file

    home = tmp_path / "home" / "somebody"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(tmp_path / "cache"))
    for place in (home / "models" / "small", tmp_path / "shared" / "small"):
        tiny.lm.save_pretrained(place)
        tiny.tokenizer.save_pretrained(place)
        source = home / "texts.jsonl"
        source.write_text("\n".join(map(json.dumps, two_kinds(60))))
        out = tmp_path / "shared" / f"for {place.parent.name}"
        fit(str(source), backbone=str(place), out=out)
        adapt_file(out, source, out / "results.jsonl")
        for path in [*out.glob("*.json*"), out / "README.md", out / ".results.jsonl.made"]:
            for word in ("somebody", re.escape(str(tmp_path)), os.uname().nodename, "/home", "/root"):
                assert not re.search(rf"(?<!\w){word}(?!\w)", path.read_text()), (path, word)
        loaded = ChameleonLiteForCausalLM.from_pretrained(out)
        assert Path(loaded.config.backbone_name).expanduser() == place
        moved = out.rename(out.with_name(f"{out.name}, moved"))
        ChameleonLiteForCausalLM.from_pretrained(moved)


def test_a_backbones_folder_is_found_from_the_adapters(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert portable(str(tmp_path / "me" / "m"), tmp_path / "a") == "~/m"
    assert portable(str(tmp_path / "x" / "m"), tmp_path / "x" / "a") == "./../m"
    assert portable("~/m", tmp_path) == "~/m"


def test_settings_of_a_folder_are_whole(adapter_folder):
    fields = read_settings(adapter_folder)
    assert fields["backbone_name"] == "tiny" and fields["rank"] == 2 and fields["clusters"] == 3
    with pytest.raises(UserError, match="no other format is read"):
        check_tensors(adapter_folder / "nothing", fields, {})
