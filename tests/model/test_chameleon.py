import copy
import json
import subprocess
import sys

import pytest
import torch

from chameleon_lite.errors import DamagedFile, UserError
from chameleon_lite.model.backbones import load_backbone
from chameleon_lite.model.chameleon import ChameleonLiteForCausalLM
from chameleon_lite.model.heads.interface import Condition


def adapted(backbone, clusters=3, **settings):
    """An adapter whose update is far from zero, with centroids."""
    torch.manual_seed(1)
    centroids = torch.nn.functional.normalize(torch.randn(clusters, backbone.width), dim=1)
    model = ChameleonLiteForCausalLM.from_backbone(backbone, rank=2, dropout=0.0, centroids=centroids, **settings)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.normal_(model.head.last.bias, std=0.1)  # so that the condition matters more than the constant
    return model.eval()


def batch(backbone, texts=("a short one", "a second prompt, quite a bit longer", "three")):
    """Left-padded ids and mask, as generation wants them."""
    rows = [backbone.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([[backbone.pad_id] * (longest - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows])
    return ids, mask


def new_tokens(model, ids, mask, **options):
    options = {"max_new_tokens": 8, "do_sample": False} | options
    return model.generate(input_ids=ids, attention_mask=mask, **options)[:, ids.shape[1]:]


def test_starts_as_the_backbone_in_logits_and_in_generation(architecture, small_backbone):
    backbone = small_backbone(architecture)
    model = ChameleonLiteForCausalLM.from_backbone(backbone, rank=2)
    ids, mask = batch(backbone)
    plain = backbone.lm(ids, attention_mask=mask, use_cache=False).logits
    assert torch.equal(model(ids, attention_mask=mask, use_cache=False).logits, plain)
    condition = torch.randn(3, backbone.width)
    assert torch.equal(model(ids, attention_mask=mask, condition=condition, use_cache=False).logits, plain)
    frozen = backbone.lm.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False,
                                  pad_token_id=backbone.pad_id)[:, ids.shape[1]:]
    assert torch.equal(new_tokens(model, ids, mask), frozen)


def test_cache_padding_and_batching_change_no_token(architecture, small_backbone):
    backbone = small_backbone(architecture)
    model = adapted(backbone)
    ids, mask = batch(backbone)
    condition = torch.randn(3, backbone.width)
    together = new_tokens(model, ids, mask, condition=condition)
    assert torch.equal(together, new_tokens(model, ids, mask, condition=condition, use_cache=False))
    assert not torch.equal(together, new_tokens(model, ids, mask, condition=-condition))
    for row in range(3):
        own = ids[row : row + 1, mask[row] == 1]
        alone = new_tokens(model, own, torch.ones_like(own), condition=condition[row : row + 1])
        real = alone.shape[1]
        assert torch.equal(together[row, :real], alone[0])


def test_beams_and_samples_keep_their_prompts_condition(small_backbone):
    backbone = small_backbone("gpt2-tied")
    model = adapted(backbone)
    ids, mask = batch(backbone)
    condition, group = torch.randn(2, backbone.width), torch.tensor([1, 0, 1])  # a layout that is not sorted
    options = {"condition": condition, "num_beams": 2, "num_return_sequences": 2}
    together = new_tokens(model, ids, mask, group=group, **options)
    assert len(together) == 6
    for row in range(3):
        alone = new_tokens(model, ids[row : row + 1], mask[row : row + 1],
                           **options | {"condition": condition[group[row]][None]})
        assert torch.equal(together[2 * row : 2 * row + 2, : alone.shape[1]], alone)


def test_condition_is_the_prompts_and_does_not_move_while_decoding(small_backbone, monkeypatch):
    backbone = small_backbone("llama-untied")
    model = adapted(backbone, condition="row")
    ids, mask = batch(backbone)
    calls, steps, factors = [], [], model.head.factors
    monkeypatch.setattr(model.head, "factors", lambda c: calls.append(c.vector.clone()) or factors(c))
    handle = model.register_forward_pre_hook(lambda m, a, kw: steps.append(kw["head_update"]), with_kwargs=True)
    tokens = new_tokens(model, ids, mask)
    handle.remove()
    assert len(calls) == 1 and len(steps) == tokens.shape[1]
    assert all(step is steps[0] for step in steps)
    words = backbone.embedding[ids[2, mask[2] == 1]].mean(0)
    torch.testing.assert_close(calls[0][2], words / words.norm())
    longer = new_tokens(model, ids, mask, max_new_tokens=12)  # what is generated later changes nothing before
    assert torch.equal(longer[:, :8], tokens) and torch.equal(calls[1], calls[0])


@pytest.mark.parametrize("pad_value", [0, 5, 256])
def test_padding_is_no_part_of_the_condition(small_backbone, pad_value):
    backbone = small_backbone("gpt2-tied")
    model = adapted(backbone, condition="row")
    ids, mask = batch(backbone)
    padded = torch.where(mask.bool(), ids, pad_value)
    found, expected = (model.conditions(x, mask).condition.vector for x in (padded, ids))
    torch.testing.assert_close(found, expected)


def test_modes_of_grouping(small_backbone):
    backbone = small_backbone("gpt2-tied")
    model = adapted(backbone, clusters=2)
    model.centroids.copy_(model.conditions(*batch(backbone, ("aaaa", "zzzz")), mode="row").condition.vector)
    ids, mask = batch(backbone, ("aaab", "zzzy", "aaac"))
    row, cluster, centroid = (model.conditions(ids, mask, mode) for mode in ("row", "cluster", "centroid"))
    assert row.condition.groups == 3 and cluster.cluster.tolist() == [0, 1, 0] == cluster.group.tolist()
    torch.testing.assert_close(cluster.condition.vector[0], row.condition.vector[[0, 2]].mean(0))
    assert torch.equal(centroid.condition.vector, model.centroids)
    with pytest.raises(UserError, match="did you mean 'cluster'"):
        model.conditions(ids, mask, "clutser")
    with pytest.raises(UserError, match="needs stored centroids"):
        ChameleonLiteForCausalLM.from_backbone(backbone).conditions(ids, mask, "centroid")


def test_wrong_keyword_is_refused(small_backbone):
    backbone = small_backbone("gpt2-tied")
    ids, mask = batch(backbone)
    with pytest.raises(ValueError, match="conditon"):
        adapted(backbone).generate(input_ids=ids, attention_mask=mask, conditon=1)


def test_saved_adapter_is_small_and_comes_back_exactly(architecture, small_folder, tmp_path):
    backbone = load_backbone(str(small_folder(architecture)))
    model = adapted(backbone, notes={"held_out": 1.5})
    model.save_pretrained(tmp_path / "adapter")
    names = {p.name for p in (tmp_path / "adapter").iterdir()}
    assert names <= {"config.json", "generation_config.json", "model.safetensors"} and "model.safetensors" in names
    again = ChameleonLiteForCausalLM.from_pretrained(tmp_path / "adapter")
    ids, mask = batch(backbone)
    condition = torch.randn(3, backbone.width)
    assert torch.equal(again(ids, attention_mask=mask, condition=condition).logits,
                       model(ids, attention_mask=mask, condition=condition).logits)
    assert torch.equal(again.centroids, model.centroids) and again.config.notes == {"held_out": 1.5}
    from safetensors.torch import load_file
    assert {n.split(".")[0] for n in load_file(tmp_path / "adapter" / "model.safetensors")} == {"head", "centroids"}


def test_auto_class_loads_it_too(small_backbone, tmp_path):
    from transformers import AutoModelForCausalLM

    model = adapted(small_backbone("gpt2-tied"))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.head.last.weight, model.head.last.weight)


def test_another_process_computes_the_same_bits(small_folder, tmp_path):
    backbone = load_backbone(str(small_folder("llama-untied")))
    model = adapted(backbone)
    model.save_pretrained(tmp_path / "adapter")
    ids, mask = batch(backbone)
    torch.save({"ids": ids, "mask": mask}, tmp_path / "batch.pt")
    code = f"""
import torch
from chameleon_lite.model.chameleon import ChameleonLiteForCausalLM
torch.set_num_threads({torch.get_num_threads()})
model = ChameleonLiteForCausalLM.from_pretrained({str(tmp_path / 'adapter')!r})
b = torch.load({str(tmp_path / 'batch.pt')!r})
found = model.conditions(b["ids"], b["mask"])
out = model(b["ids"], attention_mask=b["mask"], condition=found.condition, group=found.group)
torch.save(out.logits.detach(), {str(tmp_path / 'logits.pt')!r})"""
    subprocess.run([sys.executable, "-c", code], check=True)
    found = model.conditions(ids, mask)
    here = model(ids, attention_mask=mask, condition=found.condition, group=found.group).logits
    assert torch.equal(torch.load(tmp_path / "logits.pt"), here)


def test_another_backbone_is_refused_with_both_names(small_folder, small_backbone, tmp_path):
    adapted(small_backbone("gpt2-tied")).save_pretrained(tmp_path)
    other = str(small_folder("gpt2-tied", seed=1))
    with pytest.raises(UserError) as refused:
        ChameleonLiteForCausalLM.from_pretrained(tmp_path, backbone=other)
    assert other in str(refused.value) and str(small_folder("gpt2-tied")) in str(refused.value)
    assert "weights" in str(refused.value)


@pytest.mark.parametrize("change, says", [
    ({"vocabulary": 300}, "vocabulary"), ({"vocabulary_hash": "0" * 64}, "vocabulary"),
    ({"backbone_hash": "0" * 64}, "weights"), ({"width": 8}, "width")])
def test_changed_identity_is_refused(small_backbone, tmp_path, change, says):
    adapted(small_backbone("gpt2-tied")).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=f"differ in {says}"):
        ChameleonLiteForCausalLM.from_pretrained(tmp_path)


def test_another_revision_is_refused_whatever_the_format(small_backbone, tmp_path):
    import dataclasses

    backbone = dataclasses.replace(small_backbone("gpt2-tied"), revision="aaa")
    adapted(backbone).save_pretrained(tmp_path)
    other = dataclasses.replace(backbone, revision="bbb", hash="1" * 64)
    with pytest.raises(UserError, match="revision aaa.*revision bbb"):
        ChameleonLiteForCausalLM.from_pretrained(tmp_path, backbone=other)
    other.lm.to(torch.bfloat16)
    with pytest.raises(UserError, match="differ in revision"):
        ChameleonLiteForCausalLM.from_pretrained(tmp_path, backbone=other)


def test_only_safetensors_and_no_foreign_code(small_backbone, tmp_path):
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


def test_missing_tensor_is_no_silent_random_value(small_backbone, tmp_path):
    from safetensors.torch import load_file, save_file

    adapted(small_backbone("gpt2-tied")).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("head.last.bias")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(DamagedFile, match="head.last.bias"):
        ChameleonLiteForCausalLM.from_pretrained(tmp_path)


def test_merged_model_is_plain_and_survives_saving(architecture, small_backbone, tmp_path):
    from transformers import AutoModelForCausalLM

    backbone = small_backbone(architecture)
    model = adapted(backbone)
    ids, mask = batch(backbone)
    plain = model.merge_for(1)
    assert type(plain) is type(backbone.lm)
    expected = model(ids, attention_mask=mask, condition=model.centroids[1:2]).logits
    found = plain(ids, attention_mask=mask).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, backbone.lm(ids, attention_mask=mask).logits, atol=0.1)
    before = backbone.head.weight.clone()
    plain.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(ids, attention_mask=mask).logits, found)
    assert torch.equal(backbone.head.weight, before)


def test_merging_needs_one_known_condition(small_backbone):
    model = adapted(small_backbone("gpt2-tied"))
    with pytest.raises(UserError, match="one condition, not 2"):
        model.merge_for(torch.randn(2, 16))
    with pytest.raises(UserError, match="no cluster 7"):
        model.merge_for(7)


def test_loss_is_the_mean_over_labels_and_trains_the_head_alone(small_backbone):
    backbone = small_backbone("llama-untied")
    model = adapted(backbone)
    ids, mask = batch(backbone)
    labels = ids.masked_fill(mask == 0, -100)
    model.train()
    out = model(ids, attention_mask=mask, labels=labels, condition=Condition(torch.randn(1, 16)))
    logp = out.logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(out.loss, -(logp * mask[:, 1:]).sum() / mask[:, 1:].sum())
    out.loss.backward()
    assert all(p.grad is not None for p in model.head.parameters())
    assert all(p.grad is None for p in model.lm.parameters())


def test_backbone_is_needed_and_is_not_copied(small_backbone):
    backbone = small_backbone("gpt2-tied")
    model = adapted(backbone)
    assert model.lm is backbone.lm
    with pytest.raises(UserError, match="from_backbone"):
        ChameleonLiteForCausalLM(copy.deepcopy(model.config))
