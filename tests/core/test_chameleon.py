import copy

import pytest
import torch

from chameleon_lite.chameleon import ChameleonLiteForCausalLM
from chameleon_lite.errors import UserError
from chameleon_lite.heads import Condition


def test_starts_as_the_backbone_in_logits_and_in_generation(architecture, small_backbone, batch, new_tokens):
    backbone = small_backbone(architecture)
    model = ChameleonLiteForCausalLM.from_backbone(backbone, rank=2)
    ids, mask = batch(backbone)
    plain = backbone.lm(ids, attention_mask=mask, use_cache=False).logits
    assert torch.equal(model(ids, attention_mask=mask, use_cache=False).logits, plain)
    condition = torch.randn(3, backbone.width)
    assert torch.equal(model(ids, attention_mask=mask, condition=condition, use_cache=False).logits, plain)
    frozen = backbone.lm.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=backbone.pad_id
    )[:, ids.shape[1] :]
    assert torch.equal(new_tokens(model, ids, mask), frozen)


def test_cache_padding_and_batching_change_no_token(architecture, small_backbone, adapted, batch, new_tokens):
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


def test_beams_and_samples_keep_their_prompts_condition(small_backbone, adapted, batch, new_tokens):
    backbone = small_backbone("gpt2-tied")
    model = adapted(backbone)
    ids, mask = batch(backbone)
    condition, group = torch.randn(2, backbone.width), torch.tensor([1, 0, 1])  # a layout that is not sorted
    options = {"condition": condition, "num_beams": 2, "num_return_sequences": 2}
    together = new_tokens(model, ids, mask, group=group, **options)
    assert len(together) == 6
    for row in range(3):
        alone = new_tokens(
            model,
            ids[row : row + 1],
            mask[row : row + 1],
            **options | {"condition": condition[group[row]][None]},
        )
        assert torch.equal(together[2 * row : 2 * row + 2, : alone.shape[1]], alone)


def test_condition_is_the_prompts_and_does_not_move(small_backbone, monkeypatch, adapted, batch, new_tokens):
    backbone = small_backbone("llama-untied")
    model = adapted(backbone, condition="row")
    ids, mask = batch(backbone)
    calls, steps, factors = [], [], model.head.factors
    monkeypatch.setattr(model.head, "factors", lambda c: calls.append(c.vector.clone()) or factors(c))
    handle = model.register_forward_pre_hook(
        lambda m, a, kw: steps.append(kw["head_update"]), with_kwargs=True
    )
    tokens = new_tokens(model, ids, mask)
    handle.remove()
    assert len(calls) == 1 and len(steps) == tokens.shape[1]
    assert all(step is steps[0] for step in steps)
    words = backbone.embedding[ids[2, mask[2] == 1]].mean(0)
    torch.testing.assert_close(calls[0][2], words / words.norm())
    longer = new_tokens(model, ids, mask, max_new_tokens=12)  # what is generated later changes nothing before
    assert torch.equal(longer[:, :8], tokens) and torch.equal(calls[1], calls[0])


@pytest.mark.parametrize("pad_value", [0, 5, 256])
def test_padding_is_no_part_of_the_condition(small_backbone, pad_value, adapted, batch):
    backbone = small_backbone("gpt2-tied")
    model = adapted(backbone, condition="row")
    ids, mask = batch(backbone)
    padded = torch.where(mask.bool(), ids, pad_value)
    found, expected = (model.conditions(x, mask).condition.vector for x in (padded, ids))
    torch.testing.assert_close(found, expected)


def test_modes_of_grouping(small_backbone, adapted, batch):
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


def test_wrong_keyword_is_refused(small_backbone, adapted, batch):
    backbone = small_backbone("gpt2-tied")
    ids, mask = batch(backbone)
    with pytest.raises(ValueError, match="conditon"):
        adapted(backbone).generate(input_ids=ids, attention_mask=mask, conditon=1)


@pytest.mark.parametrize("kind", ["gpt2-tied", "llama-untied"])
def test_with_lora_in_the_layers(kind, small_backbone, tmp_path, adapted, batch):
    backbone = small_backbone(kind)
    ids, mask = batch(backbone)
    frozen = backbone.lm(ids, attention_mask=mask).logits
    model = adapted(backbone, lora_rank=2)
    assert torch.equal(model(ids, attention_mask=mask).logits, frozen)  # LoRA starts as nothing
    from chameleon_lite.lora import lora_parameters

    with torch.no_grad():
        for parameter in lora_parameters(model.lm).values():
            parameter.normal_(std=0.1)
    condition = model.centroids[:1]
    found = model(ids, attention_mask=mask, condition=condition).logits
    assert not torch.allclose(model(ids, attention_mask=mask).logits, frozen, atol=1e-2)
    model.save_pretrained(tmp_path)
    again = ChameleonLiteForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids, attention_mask=mask, condition=condition).logits, found)
    plain = model.merge_for(0)
    assert not [name for name, _ in plain.named_parameters() if "lora" in name]
    torch.testing.assert_close(plain(ids, attention_mask=mask).logits, found, rtol=1e-3, atol=1e-3)


def test_merged_model_is_plain_and_survives_saving(architecture, small_backbone, tmp_path, adapted, batch):
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
    again = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False).eval()
    assert torch.equal(again(ids, attention_mask=mask).logits, found)
    assert torch.equal(backbone.head.weight, before)


def test_merging_needs_one_known_condition(small_backbone, adapted):
    model = adapted(small_backbone("gpt2-tied"))
    with pytest.raises(UserError, match="one condition, not 2"):
        model.merge_for(torch.randn(2, 16))
    with pytest.raises(UserError, match="no cluster 7"):
        model.merge_for(7)


def test_loss_is_the_mean_over_labels_and_trains_the_head_alone(small_backbone, adapted, batch):
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


def test_backbone_is_needed_and_is_not_copied(small_backbone, adapted):
    backbone = small_backbone("gpt2-tied")
    model = adapted(backbone)
    assert model.lm is backbone.lm
    with pytest.raises(UserError, match="from_backbone"):
        ChameleonLiteForCausalLM(copy.deepcopy(model.config))


def test_generation_fuses_gpt2s_activations_and_gives_them_back(tiny):
    model = ChameleonLiteForCausalLM.from_backbone(tiny, rank=2)
    kinds = []

    def activations():
        return {type(block.mlp.act).__name__ for block in model.lm.transformer.h}

    def update(head, h, scale):
        kinds.append(activations())
        return head(h)

    before, ids = activations(), torch.tensor([[5, 6, 7]])
    model.generate(input_ids=ids, head_update=update, max_new_tokens=2)
    assert before == {"NewGELUActivation"} == activations() and kinds == [{"GELU"}] * 2
