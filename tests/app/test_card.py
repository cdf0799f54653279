"""The card of a saved adapter: what it says is in the notes, and nothing of the texts or the machine is in it."""

import os
import shutil
from pathlib import Path

import pytest
import yaml

from chameleon_lite.app.export import export
from chameleon_lite.app.fit import FitSettings, fit
from chameleon_lite.backbone import load_backbone
from chameleon_lite.backbones.card import SMOLLM2, card, licence
from chameleon_lite.chameleon import ChameleonLiteForCausalLM
from chameleon_lite.settings import TokenSettings, TrainSettings

UNKNOWN = "see the backbone"


def card_of(folder) -> tuple[dict, str]:
    """The YAML header and the text of the README.md in a folder."""
    _, header, text = Path(folder, "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), text


@pytest.fixture(scope="module")
def fitted(two_kinds, tmp_path_factory):
    """An adapter fitted on secret texts in a file, by somebody, on a backbone in a folder."""
    home = tmp_path_factory.mktemp("somebody")
    backbone = load_backbone("tiny")
    backbone.lm.save_pretrained(home / "models" / "small")
    backbone.tokenizer.save_pretrained(home / "models" / "small")
    (home / "models" / "small" / "README.md").write_text("---\nlicense: mit\n---\n# Small\n")
    (home / "letters.csv").write_text("text\n" + "\n".join(f"confidential {t}" for t in two_kinds(120)))
    settings = FitSettings(head="hyper", tokens=TokenSettings(max_length=96), train=TrainSettings(epochs=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHAMELEON_LITE_HOME", str(home / "cache"))
        how = {"backbone": str(home / "models" / "small"), "settings": settings, "device": "cpu"}
        return fit(str(home / "letters.csv"), out=home / "out", **how), home


def test_it_gives_backbone_data_numbers_settings_limits_and_how_to_load(fitted):
    found, _ = fitted
    header, text = card_of(found.folder)
    assert header["library_name"] == "chameleon-lite" and "lora" in header["tags"]
    assert header["pipeline_tag"] == "text-generation" and "base_model" not in header
    notes = found.model.config.notes
    for part in (
        "a gpt2 model, 18,896 parameters. Licence: mit.",
        f"letters (sha256 {notes['corpus_hash'][:12]}…): {found.trained_on} texts to train on, {found.held_out} others",
        f"{found.before:.4f} for the backbone, {found.after:.4f} with the adapter",
        f"95 % interval {found.low:+.4f} to {found.high:+.4f}",
        "\nrank: 4\n",
        "\nfit.learning_rate: 0.001\n",
        f"weights alone (sha256 {found.model.backbone.hash[:12]}…)",
        "chameleon-lite adapt texts.jsonl --model FOLDER",
        "ChameleonLiteForCausalLM.from_pretrained",
    ):
        assert part in text, part


def test_it_names_no_text_no_person_and_no_place(fitted, tmp_path):
    found, home = fitted
    cards = [
        found.folder,
        export(found.folder, tmp_path / "p"),
        export(found.folder, tmp_path / "a", every=True),
    ]
    cards += [tmp_path / "a" / "cluster-0", export(found.folder, tmp_path / "m", format="merged")]
    for folder in cards:
        text = Path(folder, "README.md").read_text(encoding="utf-8")
        for word in (
            "confidential",
            str(home),
            home.name,
            str(tmp_path),
            os.uname().nodename,
            "/root",
            "/home",
        ):
            assert word not in text, (folder, word)


def test_each_kind_of_export_says_which_update_it_holds_and_what_was_not_measured(fitted, tmp_path):
    folder = fitted[0].folder
    says = {
        "mean": ({}, "peft", "mean of all clusters"),
        "one": ({"cluster": 1}, "peft", "cluster 1, for texts of that kind"),
        "merged": ({"format": "merged"}, "transformers", "As large as"),
    }
    for name, (how, library, sentence) in says.items():
        header, text = card_of(export(folder, tmp_path / name, **how))
        assert header["library_name"] == library
        assert sentence.lower() in text.lower() and "was not measured by itself" in text
    static = ChameleonLiteForCausalLM.from_backbone("tiny", head="lora")
    static.config.notes = fitted[0].model.config.notes
    header, text = card_of(export(static, tmp_path / "static"))
    assert "the same for every text" in text and "not measured" not in text
    assert f"{fitted[0].after:.4f} with the adapter" in text


def test_what_was_chosen_from_is_in_it(fitted):
    model = fitted[0].model
    rows = [{"candidate": "LoRA head, rank 4", "after": 2.5, "parameters": 3_000, "kept": True}]
    rows += [{"candidate": "hyper | network", "after": 2.75, "parameters": 90_000, "kept": False}]
    given = model.config.notes
    model.config.notes = given | {"candidates": rows}
    text = card(model)
    model.config.notes = given
    assert "| LoRA head, rank 4 (kept) | 2.5000 | 3,000 |\n| hyper network | 2.7500 | 90,000 |\n" in text
    assert "Chosen on" not in card(model)


def test_without_notes_and_with_odd_ones_it_says_that_nothing_is_known(tiny):
    model = ChameleonLiteForCausalLM.from_backbone(tiny)
    odd = {"before": "x", "after": None, "corpus": 3, "settings": [], "candidates": 7}
    for notes in (
        {},
        odd,
        {"before": 1.0},
        {"corpus": "`a|b\n# c`", "corpus_hash": None, "trained_on": "many"},
    ):
        model.config.notes = notes
        text = card(model)
        assert text.count("was not made by `fit`") == 2 and "# c" not in text


def test_a_name_cannot_write_into_the_card(tiny):
    model = ChameleonLiteForCausalLM.from_backbone(tiny)
    notes = {"corpus": "x\n# Licence\n[y](http://z) `w` $base", "corpus_hash": "0" * 64}
    model.config.notes = notes | {"trained_on": 3, "held_out": 2}
    line = next(line for line in card(model).splitlines() if line.startswith("x "))
    assert line.startswith("x Licence y http z w base (sha256 000000000000…): 3 texts")


def test_licences_come_from_the_backbones_own_card_only(small_folder, tmp_path):
    assert licence(load_backbone("tiny")) == UNKNOWN
    place = small_folder("llama-untied")
    for content, expected in (
        ("---\nlicense: llama3.2\n---\n", "llama3.2"),
        ("---\nlicense: [a, b]\n---\n", UNKNOWN),
        ("---\nlicense: 'a b\n\n# c'\n---\n", UNKNOWN),
        ("---\n: : :\n---\n", UNKNOWN),
        ("no header", UNKNOWN),
    ):
        (place / "README.md").write_text(content)
        try:
            assert licence(load_backbone(str(place))) == expected
        finally:
            (place / "README.md").unlink()


def test_a_backbone_of_the_hub_is_named_by_its_id_and_revision(small_folder, tmp_path, monkeypatch):
    revision, hub = "a" * 40, tmp_path / "models--them--small"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text(revision)
    (hub / "snapshots").mkdir()
    snapshot = hub / "snapshots" / revision
    shutil.copytree(small_folder("llama-untied"), snapshot)
    (snapshot / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = ChameleonLiteForCausalLM.from_backbone(load_backbone("them/small"), head="lora")
    assert model.backbone.hash == load_backbone("them/small", revision=revision).hash
    model.save_pretrained(tmp_path / "out")
    assert ChameleonLiteForCausalLM.from_pretrained(tmp_path / "out").backbone.revision == revision
    header, text = card_of(tmp_path / "out")
    assert header["base_model"] == "them/small"
    size = f"{model.backbone.parameters:,} parameters"
    assert f"them/small, {size}, revision {revision}. Licence: apache-2.0." in text
    header, text = card_of(export(model, tmp_path / "peft"))
    assert f'from_pretrained("them/small", revision="{revision}")' in text and "BACKBONE" not in text
    assert header["base_model"] == "them/small"


def test_the_packaged_backbone_is_named_with_what_was_done_to_it(tiny):
    from dataclasses import replace

    model = ChameleonLiteForCausalLM.from_backbone(replace(tiny, name="smollm2"))
    text = card(model)
    assert f"base_model: {SMOLLM2}\n" in text and "apache-2.0" in text and "Q4_1" in text
    assert "chameleon-lite fetch smollm2" in card(model, "peft")


def test_a_card_of_somebody_else_stays_and_our_own_is_renewed(tiny, tmp_path):
    model = ChameleonLiteForCausalLM.from_backbone(tiny)
    (tmp_path / "README.md").write_text("# My project\n")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My project\n"
    (tmp_path / "README.md").unlink()
    model.save_pretrained(tmp_path)
    model.config.notes = {"before": 2.0, "after": 1.5, "low": -0.6, "high": -0.4, "held_out": 9}
    model.save_pretrained(tmp_path)
    assert "1.5000 with the adapter (-0.5000" in (tmp_path / "README.md").read_text()
