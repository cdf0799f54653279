"""The paper's parameter column, derived."""

import pytest

from chameleon_lite import errors
from chameleon_lite.backbone import load_backbone
from chameleon_study.tables import parameter_table


def test_gpt2_small():
    table = parameter_table("random-gpt2")
    assert (table["total"], table["lora_head"], table["hyper_head"]) == (124_439_808, 204_100, 6_786_596)
    assert table["adapted_layers"] == 48 and table["lora_layers"] == 589_824
    assert table["lora_everywhere"] == 589_824 + 204_100 == 793_924
    assert table["matched_rank"] == 133


def test_smollm2():
    table = parameter_table("smollm2")
    assert (table["total"], table["lora_head"], table["hyper_head"]) == (134_515_008, 198_912, 6_603_104)
    assert table["matched_rank"] == 133


@pytest.mark.parametrize("name", ["tiny", "tiny-llama"])
def test_agrees_with_the_loaded_model(name, tmp_path):
    backbone = load_backbone(name)
    table = parameter_table(name)
    assert (table["total"], table["width"], table["vocab"]) == (
        backbone.parameters,
        backbone.width,
        backbone.vocab,
    )
    backbone.lm.save_pretrained(tmp_path)
    assert parameter_table(str(tmp_path)) == table


def test_unknown_names(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(errors.UserError, match="did you mean 'smollm2'"):
        parameter_table("smolm2")
    with pytest.raises(errors.Unreachable):
        parameter_table("nobody/such-a-model")
