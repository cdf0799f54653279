"""A device that is not there: one line and exit code 2, whatever the command, before anything is computed."""

import pytest
import torch

NAMES = ["nonsense", "meta", "cpu:7", "cuda:99" if torch.cuda.is_available() else "cuda"]
EXPERIMENT = """
name: small
backbone: tiny
corpora: [{corpus}]
regimes: [R0, R1]
learning_rates: {{R1: 0.01}}
tokens: {{max_length: 64, prefix_tokens: 8, min_scored: 4}}
"""


@pytest.mark.parametrize("device", NAMES)
def test_a_device_that_is_not_there_is_refused(refused, texts, adapter_folder, tmp_path, device):
    (tmp_path / "small.yaml").write_text(EXPERIMENT.format(corpus=texts))
    for words in (
        ["fit", texts, "--backbone", "tiny", "--out", "a"],
        ["adapt", texts, "--model", adapter_folder, "--out", "r.jsonl"],
        ["run", tmp_path / "small.yaml", "--out", "runs"],
        ["prove", tmp_path / "small.yaml"],
        ["bench", "--quick", "--out", "b.json"],
    ):
        refused(*words, "--device", device, says=f"device {device!r} is not there")
