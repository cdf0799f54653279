"""An exported adapter is the same model: through PEFT, merged, on every architecture; what cannot be so is refused."""

import json
import os
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chameleon_lite import adapt, export
from chameleon_lite.backbone import load_backbone
from chameleon_lite.chameleon import ChameleonLiteForCausalLM
from chameleon_lite.errors import RunFailed, UserError
from chameleon_lite.heads import Head, HeadUpdate
from chameleon_lite.lora import lora_parameters

IDS = torch.arange(2, 42).reshape(2, 20)
USUAL = "is_gradient_checkpointing|PydanticDeprecated"  # what the libraries say about themselves


def model_on(place, head="hyper", lora_rank=0, scale=1.7, **more):
    """An adapter whose update, layers included, is far from zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        backbone = load_backbone(str(place))
        centroids = torch.nn.functional.normalize(torch.randn(3, backbone.width), dim=1)
        how = {"rank": 2, "dropout": 0.3, "scale": scale, "head": head, "lora_rank": lora_rank}
        model = ChameleonLiteForCausalLM.from_backbone(backbone, centroids=centroids, **how | more)
        for parameter in [*model.head.parameters(), *lora_parameters(model.lm).values()]:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


@torch.no_grad()
def ours(model, condition):
    return model(
        IDS, condition=condition.expand(len(IDS), -1) if model.head.conditioned else condition
    ).logits


@torch.no_grad()
def peft_logits(place, folder):
    """Logits of PEFT's model on the backbone, and what PEFT said while it was loaded."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=False)
    names = {name for name, _ in base.named_modules()}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loaded = PeftModel.from_pretrained(base, folder)
        logits = loaded(IDS).logits
    adapted = {n for n, m in base.named_modules() if hasattr(m, "lora_A") and n in names}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert adapted == set(config["target_modules"])
    said = [str(w.message) for w in said if not re.search(USUAL, str(w.message))]
    return logits, loaded, [line[:45] for line in said]


TIED_SAID = "Model has `tie_word_embeddings=True` and a ti"
TURNED_SAID = "fan_in_fan_out is set to True but the target "


@pytest.mark.parametrize("head", ["hyper", "lora"])
@pytest.mark.parametrize("layers", [0, 3, 1])
def test_peft_gives_our_logits(small_folder, architecture, layers, head, tmp_path):
    place = small_folder(architecture)
    model = model_on(place, head, layers, lora_alpha=5.0 if layers == 3 else None)
    folder = export(model, tmp_path / "out", condition=model.centroids[1] if head == "hyper" else None)
    logits, _, said = peft_logits(place, folder)
    assert (logits - ours(model, model.centroids[1:2])).abs().max() < 1e-5
    with torch.no_grad():
        assert (logits - load_backbone(str(place)).lm(IDS).logits).abs().max() > 0.1
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    expected = [TIED_SAID] * tied + [TURNED_SAID] * (architecture == "gpt2-tied" and layers > 0)
    assert sorted(said) == sorted(expected)
    assert (TIED_SAID in said) == ("the result would be wrong" in (folder / "README.md").read_text())


@pytest.mark.parametrize("layers", [0, 3])
def test_a_merged_model_is_a_plain_one_with_our_logits(small_folder, architecture, layers, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = model_on(small_folder(architecture), lora_rank=layers)
    folder = export(model, tmp_path / "out", format="merged", cluster=2)
    plain = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    with torch.no_grad():
        assert (plain(IDS).logits - ours(model, model.centroids[2:3])).abs().max() < 1e-5
    assert type(plain) is type(model.lm) and plain.config.tie_word_embeddings is False
    assert plain.get_output_embeddings().weight is not plain.get_input_embeddings().weight
    assert torch.equal(plain.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert AutoTokenizer.from_pretrained(folder, trust_remote_code=False)("ü x")["input_ids"]
    assert not list(folder.glob("adapter_*"))


def test_pefts_own_merge_is_right_on_an_untied_head_and_wrong_on_a_tied_one(small_folder, tmp_path):
    """What the card says about tied heads: when this fails PEFT has mended it, and the sentence may go."""
    for kind, right in (("llama-untied", True), ("qwen2-tied", False)):
        model = model_on(small_folder(kind))
        _, loaded, _ = peft_logits(small_folder(kind), export(model, tmp_path / kind, cluster=0))
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            error = (loaded.merge_and_unload()(IDS).logits - ours(model, model.centroids[:1])).abs().max()
        assert (error < 1e-5) == right and (error > 0.1) != right


def test_the_size_is_that_of_the_factors(small_folder, tmp_path):
    place, big = small_folder("llama-untied"), load_backbone("random-gpt2")
    for number, model in enumerate(
        [model_on(place), ChameleonLiteForCausalLM.from_backbone(big, head="lora")]
    ):
        folder = export(model, tmp_path / str(number))
        size = sum((folder / name).stat().st_size for name in os.listdir(folder) if name != "README.md")
        factors = (model.config.vocabulary + model.config.width) * model.config.rank * 4
        assert factors < size < factors + 1_000
    layered = model_on(place, lora_rank=3)
    folder, layers = export(layered, tmp_path / "layers"), lora_parameters(layered.lm).values()
    size = (folder / "adapter_model.safetensors").stat().st_size
    factors = (257 + 16) * 2 * 4 + sum(4 * p.numel() for p in layers)
    assert factors < size < factors + 1_000 + 200 * len(layers)


def test_the_two_files_are_the_layout_that_servers_read(small_folder, tmp_path):
    model = model_on(small_folder("llama-untied"))
    folder = export(model, tmp_path / "head", cluster=1)
    tensors, update = load_file(folder / "adapter_model.safetensors"), model.update_for(1)
    assert set(tensors) == {f"base_model.model.lm_head.lora_{x}.weight" for x in "AB"}
    assert torch.equal(tensors["base_model.model.lm_head.lora_A.weight"], update.down[0])
    assert torch.equal(tensors["base_model.model.lm_head.lora_B.weight"], update.up[0])
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["target_modules"], config["bias"]) == (2, ["lm_head"], "none")
    assert config["lora_alpha"] == pytest.approx(2 * 1.7) and "rank_pattern" not in config
    whole = json.loads(
        (
            export(model_on(small_folder("llama-untied"), scale=1.0), tmp_path / "1") / "adapter_config.json"
        ).read_text()
    )
    assert repr(whole["lora_alpha"]) == "2"  # some readers take integers only


def test_a_tool_that_reads_one_scale_for_all_modules_is_right_too(small_folder, tmp_path):
    """vLLM keeps r and lora_alpha of the configuration and no pattern: the scale must not depend on the pattern."""
    model = model_on(small_folder("llama-untied"), lora_rank=3, lora_alpha=5.0)
    config = json.loads((export(model, tmp_path / "out") / "adapter_config.json").read_text())
    assert config["r"] == 3 and config["rank_pattern"] == {"lm_head": 2}
    assert config["lora_alpha"] / 3 == pytest.approx(1.7) == config["alpha_pattern"]["lm_head"] / 2


CHAT = "{% for turn in messages %}<|endoftext|>{{ turn.role }}: {{ turn.content }}{% endfor %}"
CHAT += "{% if add_generation_prompt %}<|endoftext|>assistant:{% endif %}"


@pytest.mark.parametrize("prompts", [{}, {"bos": "<|endoftext|>"}, {"bos": "", "chat": True}])
def test_all_clusters_and_the_cards_own_code_routes_as_adapt_does(
    small_folder, tmp_path, some_texts, prompts
):
    place, texts = Path(shutil.copytree(small_folder("llama-untied"), tmp_path / "model")), some_texts(12)
    (place / "chat_template.jinja").write_text(CHAT)
    model = model_on(place, prompts=prompts)
    vectors = [model.backbone.embedding[model.tokenizer(t)["input_ids"]].mean(0) for t in texts[:3]]
    model.centroids.copy_(torch.nn.functional.normalize(torch.stack(vectors), dim=1))
    folder = export(model, tmp_path / "all", every=True)
    names = json.loads((folder / "routing.json").read_text())["clusters"]
    assert names == {str(k): f"cluster-{k}" for k in range(3)}
    text = (folder / "README.md").read_text()
    code, space = re.search(r"```python\n(.*?)```", text, re.S)[1].replace("FOLDER", str(folder)), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code.replace("BACKBONE", str(place)), "card", "exec"), space)
    ours_too = adapt(model, [{"prompt": t} for t in texts], new_tokens=1, condition="centroid")
    assert [space["route"](t) for t in texts] == [f"cluster-{row['cluster']}" for row in ours_too]
    assert len({row["cluster"] for row in ours_too}) > 1
    assert ("chat template" in text, "begin with the token" in text) == (
        "chat" in prompts,
        bool(prompts.get("bos")),
    )
    for k in range(3):
        space["model"].set_adapter(f"cluster-{k}")
        with torch.no_grad():
            assert (space["model"](IDS).logits - ours(model, model.centroids[k : k + 1])).abs().max() < 1e-5


def test_by_default_the_mean_of_the_centroids(small_folder, tmp_path):
    model = model_on(small_folder("gpt2-tied"))
    logits, _, _ = peft_logits(small_folder("gpt2-tied"), export(model, tmp_path / "out"))
    assert (logits - ours(model, model.centroids.mean(0, keepdim=True))).abs().max() < 1e-5


class Biased(Head):
    conditioned = True

    def factors(self, condition):
        return HeadUpdate(torch.zeros(1, 2, 16), torch.zeros(1, 257, 2), torch.ones(1, 257))


def test_what_no_other_tool_can_hold_is_refused_with_what_can(small_folder, tmp_path):
    model, static = model_on(small_folder("llama-untied")), model_on(small_folder("llama-untied"), "lora")
    none = ChameleonLiteForCausalLM.from_backbone(model.backbone)
    wrong = [
        (model, {"format": "onnx"}, "valid: merged, peft"),
        (model, {"cluster": 3}, "no cluster 3: this adapter has 3"),
        (model, {"cluster": 1, "every": True}, "exclude each other"),
        (model, {"format": "merged", "every": True}, "use peft, or one cluster at a time"),
        (model, {"condition": torch.zeros(2, 16)}, "more than one low-rank update"),
        (static, {"cluster": 1}, "the same for every text"),
        (static, {"every": True}, "leave out --all"),
        (none, {}, "no stored centroids"),
        (none, {"every": True}, "leave out --all"),
    ]
    for one, how, says in wrong:
        with pytest.raises(UserError, match=says):
            export(one, tmp_path / "out", **how)
    model.head = Biased()
    for format in ("peft", "merged"):
        with pytest.raises(UserError, match="use adapt"):
            export(model, tmp_path / "out", cluster=0, format=format)
    assert not (tmp_path / "out").exists()


def test_a_module_whose_name_ends_alike_is_refused(small_folder, tmp_path):
    model = model_on(small_folder("llama-untied"))
    model.lm.model.lm_head = torch.nn.Linear(16, 16)
    with pytest.raises(UserError, match="model.lm_head too.*format merged"):
        export(model, tmp_path / "out")


def test_in_training_mode_the_update_is_without_dropout(small_folder, tmp_path):
    model = model_on(small_folder("llama-untied"))
    one, two = (load_file(export(model.train(), tmp_path / n) / "adapter_model.safetensors") for n in "12")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_merged_model_in_16_bits_says_that_it_is_rounded(small_folder, tmp_path):
    for dtype, says in ((torch.bfloat16, True), (torch.float32, False)):
        backbone = load_backbone(str(small_folder("llama-untied")), dtype=dtype)
        model = ChameleonLiteForCausalLM.from_backbone(backbone, head="lora")
        folder = export(model, tmp_path / str(dtype), format="merged")
        assert ("rounded to bfloat16" in (folder / "README.md").read_text()) == says
        assert load_backbone(str(folder), dtype=dtype).head.weight.dtype == dtype


def test_a_checkpoints_odd_generation_settings_do_not_stop_it(small_folder, tmp_path):
    model = model_on(small_folder("llama-untied"))
    model.lm.generation_config.temperature = 0.6  # without do_sample, as some well-known ones have it
    folder = export(model, tmp_path / "out", format="merged")
    saved = json.loads((folder / "generation_config.json").read_text())
    assert saved["eos_token_id"] == 256 and saved.get("temperature") is None


def test_an_output_that_may_not_be_replaced_is_refused(refused, command, adapter_folder, tmp_path):
    before = {path.name: path.read_bytes() for path in adapter_folder.iterdir()}
    refused("export", adapter_folder, "--out", adapter_folder, "--overwrite", says="is the input itself")
    code, out, err = command("export", adapter_folder, "--out", "one", "--cluster", "1")
    assert code == 0 and out == "written to one\n" and "embedding matrix" in err
    refused("export", adapter_folder, "--out", "one", says="--overwrite would replace")
    assert command("export", adapter_folder, "--out", "one", "--format", "merged", "--overwrite")[0] == 0
    assert Path("one/config.json").is_file() and not list(Path("one").glob("adapter_*"))
    assert command("export", adapter_folder, "--out", "one", "--all", "--overwrite")[0] == 0
    assert not Path("one/config.json").exists() and not Path("one/model.safetensors").exists()
    assert command("export", adapter_folder, "--out", "one", "--overwrite")[0] == 0
    assert not list(Path("one").rglob("cluster-*/adapter*")) and not Path("one/routing.json").exists()
    Path("file").touch()
    refused("export", adapter_folder, "--out", "file", says="is a file")
    refused("export", "nowhere", "--out", "x", says="no saved adapter")
    assert {path.name: path.read_bytes() for path in adapter_folder.iterdir()} == before
    assert not [p for p in Path().rglob(".part-*")]


def test_a_backbones_folder_and_other_files_stay(small_folder, tmp_path):
    model = model_on(small_folder("llama-untied"))
    model.save_pretrained(tmp_path / "adapter")
    for given in (model, tmp_path / "adapter"):
        with pytest.raises(UserError, match="is the input itself"):
            export(given, small_folder("llama-untied"), overwrite=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("# mine")
    (tmp_path / "notes" / "thesis.txt").touch()
    folder = export(model, tmp_path / "notes")
    assert (folder / "README.md").read_text() == "# mine" and (folder / "thesis.txt").is_file()


def test_no_export_names_a_place_on_this_machine(small_folder, tmp_path):
    model = model_on(small_folder("qwen2-tied"), lora_rank=1)
    for number, how in enumerate([{}, {"every": True}, {"format": "merged"}]):
        folder = export(model, tmp_path / f"out{number}", **how)
        for path in (p for p in folder.rglob("*") if p.is_file()):
            content = path.read_bytes()
            for word in (str(tmp_path), str(small_folder("qwen2-tied")), os.uname().nodename):
                assert word.encode() not in content, (path.name, word)


def test_what_the_system_refuses_is_one_line(small_folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cluster-0").write_text("a file where a folder is needed")
    with pytest.raises(RunFailed, match="cannot write"):
        export(model_on(small_folder("llama-untied")), tmp_path / "out", every=True)
