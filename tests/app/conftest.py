"""A saved adapter and texts for every test of own texts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from chameleon_lite.backbone import load_backbone
from chameleon_lite.backbones.tiny import byte_tokenizer

from .templates import TEMPLATE


@pytest.fixture(scope="session")
def adapter_folder(adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    adapter.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def apart():
    """Calls rows_of(rows) for the rows of one group after the other; the results are in the rows' order."""

    def call(rows_of, group: torch.Tensor) -> list:
        results: list = [None] * len(group)
        for g in torch.unique(group):
            rows = torch.nonzero(group == g).flatten()
            for i, value in zip(rows.tolist(), rows_of(rows)):
                results[i] = value
        return results

    return call


WORDS = {
    "prose": "the mean of a batch tells what kind of text it holds and little else".split(),
    "code": "return x if x is None else max(axis=0) def f(self): import numpy as np".split(),
}


@pytest.fixture(scope="session")
def two_kinds():
    """n made-up texts, prose and code by turns: what a cluster tells is worth something."""

    def make(n: int, seed: int = 0) -> list[str]:
        generator = np.random.default_rng(seed)
        return [" ".join(generator.choice(WORDS[("prose", "code")[i % 2]], size=12)) for i in range(n)]

    return make


@pytest.fixture
def model_folder(small_folder, tmp_path):
    """A folder of a small model, to be changed by the test."""
    return Path(shutil.copytree(small_folder("gpt2-tied"), tmp_path / "model"))


@pytest.fixture
def texts(two_kinds, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in two_kinds(60)))
    return path


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """command("fit", …) → (exit code, stdout, stderr), in an empty folder with an own cache."""
    from chameleon_lite.app import cli

    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*words):
        try:
            cli.main([str(word) for word in words])
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def refused(command):
    """refused("fit", …, says="…", code=2): the command fails with one line that says it, and no traceback."""

    def call(*words, says: str, code: int = 2):
        found, out, err = command(*words)
        lines = [line for line in err.splitlines() if line.startswith("chameleon-lite: ")]
        assert found == code and len(lines) == 1 and says in lines[0], (found, out, err)
        assert "Traceback" not in err and "not foreseen" not in err
        return lines[0]

    return call


@pytest.fixture
def source(command, two_kinds):
    """in.jsonl in the current folder, 60 texts."""
    path = Path("in.jsonl")
    path.write_text("\n".join(json.dumps({"text": text}) for text in two_kinds(60)) + "\n")
    return path


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory):
    """A small model of the byte tokenizer's 257 tokens and two of a chat, which its template writes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("chat")
    sizes = {"vocab_size": 259, "n_positions": 256, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = GPT2Config(**sizes, initializer_range=0.2)
    config.bos_token_id = config.eos_token_id = 256
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer = byte_tokenizer(256)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def chatty(chat_folder):
    return load_backbone(str(chat_folder))
