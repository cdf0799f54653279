"""An adapter with a static head: saved and loaded, and the same update whatever conditions a prompt."""

import json

import pytest
import torch

from chameleon_lite import engine
from chameleon_lite.app.learn import LearningStream
from chameleon_lite.app.rows import parsed
from chameleon_lite.app.stream import adapt
from chameleon_lite.backbone import copied, load_backbone
from chameleon_lite.chameleon import ChameleonLiteForCausalLM
from chameleon_lite.heads import LoraHead
from chameleon_lite.lora import lora_parameters
from chameleon_lite.streams.memory import LearnSettings

MODES = ("cluster", "centroid", "row")


@pytest.fixture(scope="module", params=[0, 2], ids=["head", "layers"])
def static(request, adapter):
    """A static adapter with the centroids of `adapter`, its factors far from zero."""
    backbone = copied(load_backbone("tiny"))
    settings = {"head": "lora", "rank": 3, "scale": 0.5, "lora_rank": request.param}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = ChameleonLiteForCausalLM.from_backbone(backbone, centroids=adapter.centroids, **settings)
        for factor in (model.head.up, *lora_parameters(backbone).values()):
            factor.data.normal_(std=0.3)
    return model


def test_saved_and_loaded_it_gives_equal_results(static, some_texts, tmp_path):
    static.save_pretrained(tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter" / "config.json").read_text())
    again = ChameleonLiteForCausalLM.from_pretrained(tmp_path / "adapter")
    assert written["head"] == again.config.head == "lora" and isinstance(again.head, LoraHead)
    assert all(torch.equal(x, again.adapter_state()[n]) for n, x in static.adapter_state().items())
    texts = some_texts(7)
    assert adapt(tmp_path / "adapter", texts) == adapt(static, texts)
    assert adapt(tmp_path / "adapter", texts, new_tokens=4) == adapt(static, texts, new_tokens=4)


def test_a_folder_that_does_not_say_which_head_holds_a_hyper_network(adapter, tmp_path):
    adapter.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("head") == "hyper"
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = ChameleonLiteForCausalLM.from_pretrained(tmp_path)
    assert again.config.head == "hyper" and torch.equal(again.head.last.weight, adapter.head.last.weight)


@pytest.mark.parametrize("name", ["plain", "fast"])
def test_no_condition_changes_a_result_and_clusters_are_still_reported(static, some_texts, name):
    texts = some_texts(9)
    with engine.use(name):
        scored = {mode: adapt(static, texts, condition=mode) for mode in MODES}
        written = {mode: adapt(static, texts, condition=mode, new_tokens=5) for mode in MODES}
    assert len({row["cluster"] for row in scored["row"]}) > 1 and all(
        row["distance"] > 0 for row in scored["row"]
    )
    for mode in MODES:
        losses = [(row["loss"], row["loss_frozen"]) for row in scored[mode]]
        assert losses == [pytest.approx((r["loss"], r["loss_frozen"]), rel=1e-6) for r in scored["cluster"]]
        assert all(a != b for a, b in losses)
        new = [row["continuation"] for row in written[mode]]
        assert new == [row["continuation"] for row in written["cluster"]] and any(new)


@pytest.mark.parametrize("name", ["plain", "fast"])
def test_the_merged_model_of_any_cluster_is_the_adapter(static, name):
    ids = torch.arange(40, 80).reshape(4, 10)
    group = torch.tensor([0, 1, 0, 1])
    with engine.use(name), torch.no_grad():
        adapted = static(ids, condition=static.centroids[:2], group=group).logits
        merged = [static.merge_for(place)(ids).logits for place in (0, 1, static.centroids)]
        assert not torch.allclose(adapted, static(ids).logits, atol=1e-2)
    for logits in merged:
        assert torch.equal(logits, merged[0]) and torch.allclose(logits, adapted, atol=1e-4)


def test_generation_takes_groups_that_a_static_head_does_not_read(static):
    ids, group = torch.arange(40, 60).reshape(2, 10), torch.tensor([1, 0])
    how = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 4}
    by_prompt = static.generate(ids, **how)
    given = static.generate(ids, condition=static.centroids[:2], group=group, **how)
    beams = static.generate(ids, condition=static.centroids[:2], group=group, num_beams=2, **how)
    assert torch.equal(by_prompt, given) and len(beams) == 2


def test_learning_goes_on_top_of_it(static, some_texts):
    texts = some_texts(12)
    stream = LearningStream(static, memory="cluster", clusters=3, settings=LearnSettings(batch_rows=4))
    found = [row for first in (0, 4, 8) for row in stream(list(parsed(texts[first : first + 4])))]
    alone = adapt(static, texts)
    assert [r["loss_without"] for r in found] == pytest.approx([r["loss"] for r in alone], rel=2e-3)
