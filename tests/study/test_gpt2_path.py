"""Tables 1 and 2 for GPT-2, end to end against a folder and rows that look like the hub's.

A checkpoint of GPT-2's architecture and vocabulary at a small width, a byte-level BPE trained here with end-of-text
at id 50256, WikiText rows in `text` and Alpaca's in `instruction`, `input`, `output`: only the hub itself is missing.
"""

from pathlib import Path

import pytest
import torch

from chameleon_lite.backbone import load_backbone
from chameleon_study.config import load_experiment
from chameleon_study.corpora import hub
from chameleon_study.released.proofs import prove_all
from chameleon_study.released.proofs.subject import Subject
from chameleon_study.released.tables import released_frame
from chameleon_study.run import run_experiment

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
VOCAB, END = 50_257, 50_256
WORDS = "the tower of the old town was built by hand! and its bell rings at noon".split()


@pytest.fixture(scope="module")
def texts():
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 700, (60,), generator=generator).tolist()
    drawn = [torch.randint(len(WORDS), (n,), generator=generator).tolist() for n in lengths]
    return [" " + " ".join(WORDS[i] for i in row) for row in drawn]


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory):
    """A transformers folder: small GPT-2 with the real vocabulary size and a tokenizer trained on the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    )
    core.add_tokens([f"<unused{i}>" for i in range(END - core.get_vocab_size())])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|endoftext|>", model_max_length=1024
    )
    assert (
        tokenizer.eos_token_id == END
        and len(tokenizer) == VOCAB
        and tokenizer.convert_tokens_to_ids("!") == 0
    )
    path = tmp_path_factory.mktemp("hub") / "gpt2"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, initializer_range=0.3))
    lm.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def hub_rows(texts, monkeypatch, tmp_path):
    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(tmp_path / "home"))

    def fetch(repository, config=None, *, instead=""):
        if repository == "Salesforce/wikitext":
            rows = [{"text": text + " \n"} for text in texts]
            return {"train": rows[:32] + [{"text": ""}], "validation": rows[32:52], "test": rows[52:]}
        assert repository == "yahma/alpaca-cleaned"
        rows = [
            {"instruction": f"Count to {i}.", "input": "slowly" if i % 2 else "", "output": text.strip()}
            for i, text in enumerate(texts)
        ]
        return {"train": rows}

    monkeypatch.setattr(hub, "fetch", fetch)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "length"), [("table1-released", 256), ("table2-released", 512)])
def test_a_table_of_the_papers_own_backbone(folder, hub_rows, name, length, tmp_path):
    backbone = load_backbone(str(folder))
    assert (backbone.vocab, backbone.pad_id) == (VOCAB, END)
    settings = load_experiment(EXPERIMENTS / f"{name}.yaml", "colab")
    assert settings.backbone == "gpt2" and settings.tokens.max_length == length
    settings = settings.model_copy(
        update={
            "seeds": 1,
            "regimes": ("R0", "R1", "R4"),
            "train": settings.train.model_copy(update={"epochs": 1}),
            "clusters": settings.clusters.model_copy(update={"batch_rows": 4}),
        }
    )
    records = run_experiment(settings, runs=tmp_path / "runs", backbone=backbone, command="test")
    frame = released_frame(records).set_index("regime")
    assert frame.loc["R0", "published loss"] == (13.7876 if name == "table1-released" else 13.3881)
    assert frame.loc["R0", "backbone"] == "gpt2" and 0 < frame.loc["R0", "full rows"] < 20
    subject = Subject(settings, backbone, settings.corpora[0])
    (padding, spread) = prove_all(subject, "test", ["padding_share", "clustering_spread"])
    # what the run with GPT-2's own weights reads: is the published frozen loss inside the spread of 20 clusterings?
    assert spread.numbers["published_frozen"] == frame.loc["R0", "published loss"]
    assert spread.numbers["published_frozen_inside_spread"] == 0.0  # these weights are random
    assert padding.numbers["train_tokens_of_ignored_id"] > 0  # the exclamation mark, GPT-2's id 0
