import json
import shutil

import pytest
import torch

from chameleon_lite.backbone import load_backbone
from chameleon_lite.chameleon import ChameleonLiteForCausalLM
from chameleon_lite.errors import DamagedFile, UserError


def test_saved_adapter_is_small_and_comes_back_exactly(architecture, small_folder, tmp_path, adapted, batch):
    backbone = load_backbone(str(small_folder(architecture)))
    model = adapted(backbone, notes={"held_out": 1.5})
    model.save_pretrained(tmp_path / "adapter")
    names = {p.name for p in (tmp_path / "adapter").iterdir()}
    assert names == {"README.md", "config.json", "generation_config.json", "model.safetensors"}
    again = ChameleonLiteForCausalLM.from_pretrained(tmp_path / "adapter")
    ids, mask = batch(backbone)
    condition = torch.randn(3, backbone.width)
    assert torch.equal(
        again(ids, attention_mask=mask, condition=condition).logits,
        model(ids, attention_mask=mask, condition=condition).logits,
    )
    assert torch.equal(again.centroids, model.centroids) and again.config.notes == {"held_out": 1.5}
    from safetensors.torch import load_file

    assert {n.split(".")[0] for n in load_file(tmp_path / "adapter" / "model.safetensors")} == {
        "head",
        "centroids",
    }


def test_auto_class_loads_it_too(small_backbone, tmp_path, adapted):
    from transformers import AutoModelForCausalLM

    model = adapted(small_backbone("gpt2-tied"))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)
    assert torch.equal(again.head.last.weight, model.head.last.weight)


def test_another_process_computes_the_same_bits(small_folder, machine, tmp_path, adapted, batch):
    backbone = load_backbone(str(small_folder("llama-untied")))
    model = adapted(backbone)
    model.save_pretrained(tmp_path / "adapter")
    ids, mask = batch(backbone)
    torch.save({"ids": ids, "mask": mask}, tmp_path / "batch.pt")
    code = f"""
import torch
from chameleon_lite.chameleon import ChameleonLiteForCausalLM
torch.set_num_threads({torch.get_num_threads()})
model = ChameleonLiteForCausalLM.from_pretrained({str(tmp_path / "adapter")!r})
b = torch.load({str(tmp_path / "batch.pt")!r})
found = model.conditions(b["ids"], b["mask"])
out = model(b["ids"], attention_mask=b["mask"], condition=found.condition, group=found.group)
torch.save(out.logits.detach(), {str(tmp_path / "logits.pt")!r})"""
    machine.whole(code, tmp_path)
    found = model.conditions(ids, mask)
    here = model(ids, attention_mask=mask, condition=found.condition, group=found.group).logits
    assert torch.equal(torch.load(tmp_path / "logits.pt"), here)


def test_another_backbone_is_refused_with_both_names(small_folder, small_backbone, tmp_path, adapted):
    adapted(small_backbone("gpt2-tied")).save_pretrained(tmp_path)
    other = str(small_folder("gpt2-tied", seed=1))
    with pytest.raises(UserError) as refused:
        ChameleonLiteForCausalLM.from_pretrained(tmp_path, backbone=other)
    assert other in str(refused.value) and str(small_folder("gpt2-tied")) in str(refused.value)
    assert "weights" in str(refused.value)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"vocabulary": 300}, "does not fit its config.json"),
        ({"vocabulary_hash": "0" * 64}, "differ in vocabulary"),
        ({"backbone_hash": "0" * 64}, "differ in weights"),
        ({"width": 8}, "does not fit its config.json"),
    ],
)
def test_changed_identity_is_refused(small_backbone, tmp_path, change, says, adapted):
    adapted(small_backbone("gpt2-tied")).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=says):
        ChameleonLiteForCausalLM.from_pretrained(tmp_path)


def test_another_revision_is_refused_whatever_the_format(small_backbone, tmp_path, adapted):
    import dataclasses

    backbone = dataclasses.replace(small_backbone("gpt2-tied"), revision="aaa")
    adapted(backbone).save_pretrained(tmp_path)
    other = dataclasses.replace(backbone, revision="bbb", hash="1" * 64)
    with pytest.raises(UserError, match="revision aaa.*revision bbb"):
        ChameleonLiteForCausalLM.from_pretrained(tmp_path, backbone=other)
    other.lm.to(torch.bfloat16)
    with pytest.raises(UserError, match="differ in revision"):
        ChameleonLiteForCausalLM.from_pretrained(tmp_path, backbone=other)


def test_only_safetensors_and_no_foreign_code(small_backbone, tmp_path, adapted):
    model = adapted(small_backbone("gpt2-tied"))
    model.save_pretrained(tmp_path)
    torch.save(model.adapter_state(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no other format is read"):
        ChameleonLiteForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="trust_remote_code"):
        ChameleonLiteForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    with pytest.raises(UserError, match="no saved adapter"):
        ChameleonLiteForCausalLM.from_pretrained(tmp_path / "nowhere")


def test_backbones_are_read_from_safetensors_only(small_folder, tmp_path):
    import shutil

    from safetensors.torch import load_file

    folder = shutil.copytree(small_folder("gpt2-tied"), tmp_path / "backbone")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        load_backbone(str(folder))


def test_missing_tensor_is_no_silent_random_value(small_backbone, tmp_path, adapted):
    from safetensors.torch import load_file, save_file

    adapted(small_backbone("gpt2-tied")).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("head.last.bias")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(DamagedFile, match="head.last.bias"):
        ChameleonLiteForCausalLM.from_pretrained(tmp_path)


def test_a_backbone_outside_home_is_found_from_every_working_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for place in (tmp_path / "models" / "m", tmp_path / "else" / "models" / "m"):
        tiny.lm.save_pretrained(place)
        tiny.tokenizer.save_pretrained(place)
    monkeypatch.chdir(tmp_path)
    model = ChameleonLiteForCausalLM.from_backbone("models/m")
    monkeypatch.chdir(tmp_path / "else")  # where that path means another folder
    model.save_pretrained(tmp_path / "a")
    for folder in (tmp_path / "a", "../a"):
        loaded = ChameleonLiteForCausalLM.from_pretrained(folder)
        assert loaded.backbone.name == str(tmp_path / "models" / "m")
    shutil.copytree(tmp_path / "a", tmp_path / "far" / "below" / "a")
    with pytest.raises(UserError, match="unknown backbone '/.*/far/below/models/m'.*a local folder"):
        ChameleonLiteForCausalLM.from_pretrained(tmp_path / "far" / "below" / "a")
    with_it = ChameleonLiteForCausalLM.from_pretrained(tmp_path / "far" / "below" / "a", backbone="models/m")
    assert with_it.backbone.hash == model.backbone.hash
