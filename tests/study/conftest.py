"""Small corpora as files; settings of a released table and of an honest experiment on the tiny backbone."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch

from chameleon_lite.app import cli
from chameleon_lite.app.corpus import Corpus
from chameleon_lite.app.own_texts import write_jsonl
from chameleon_lite.backbone import load_backbone
from chameleon_lite.text import Document
from chameleon_study.config import experiment_from
from chameleon_study.records import Record
from chameleon_study.regimes import REGIMES

WORDS = "a model of short texts reads some words and then it writes others of the same kind".split()
RELEASED = dict(
    name="released-test",
    regimes=["R0", "R1", "R4"],
    learning_rates={"R1": 1e-2, "R4": 1e-3},
    seeds=1,
    tokens={"max_length": 48, "prefix_tokens": 8, "min_scored": 4},
    clusters={"batch_rows": 8, "minimum": 2},
    data={"max_train_tokens": None, "max_validation_documents": None, "max_test_documents": None},
    train={
        "epochs": 2,
        "patience": 2,
        "validations_per_epoch": 1,
        "feature_dtype": "float32",
        "matmul_dtype": "float32",
    },
)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """command("run", …) → (exit code, stdout, stderr), in an own cache, offline."""
    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["chameleon-lite", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        found = capsys.readouterr()
        return code, found.out, found.err

    return call


@pytest.fixture(scope="session")
def tiny_backbone():
    return load_backbone("tiny")


@pytest.fixture(scope="session")
def small_corpora(tmp_path_factory):
    """Paths of a plain corpus and of one of instructions, 40 + 24 + 16 documents each."""
    generator = torch.Generator().manual_seed(0)

    def text(low, high):
        n = int(torch.randint(low, high, (1,), generator=generator))
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator))

    folder, made = tmp_path_factory.mktemp("corpora"), {}
    for name, prompts in (("plain", False), ("alpaca-like", True)):
        splits = {}
        for split, size in (("train", 40), ("validation", 24), ("test", 16)):
            asked = [text(1, 4) for _ in range(size)]
            splits[split] = tuple(
                Document(
                    f"{split}-{i}",
                    text(3, 14),
                    f"g{i % 4}",
                    f"Q: {a}\n" if prompts else "",
                    a if prompts else "",
                )
                for i, a in enumerate(asked)
            )
        made[name] = str(folder / f"{name}.jsonl")
        write_jsonl(Corpus(name, splits, "made in the test"), folder / f"{name}.jsonl")
    return made


@pytest.fixture
def released_settings(small_corpora, tmp_path, monkeypatch):
    """released_settings(corpus, protocol, **settings): an experiment on the tiny backbone, one seed, own cache."""
    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(tmp_path / "home"))

    def make(corpus, protocol, **settings):
        raw = {**RELEASED, **settings, "corpora": [small_corpora[corpus]], "protocol": protocol}
        return experiment_from(raw, "paper", backbone="tiny").model_copy(update={"seeds": 1})

    return make


TOPICS = {
    "sea": "wave salt tide boat gull",
    "wood": "oak fern moss root deer",
    "city": "tram roof lamp shop queue",
}
COUNTS = {"train": 160, "validation": 40, "test": 48}


@pytest.fixture(scope="session")
def made_up(tmp_path_factory):
    """Path of an exported corpus of three topics."""
    generator = np.random.default_rng(0)
    splits = {}
    for split, count in COUNTS.items():
        topics = generator.choice(list(TOPICS), size=count)
        texts = [
            " ".join(generator.choice(TOPICS[t].split(), size=generator.integers(6, 12))) for t in topics
        ]
        splits[split] = tuple(
            Document(f"{split}-{i}", x, group=t) for i, (t, x) in enumerate(zip(topics, texts))
        )
    path = tmp_path_factory.mktemp("corpus") / "made-up.jsonl"
    write_jsonl(Corpus("made-up", splits, "made for tests"), path)
    return str(path)


@pytest.fixture(scope="session")
def swept():
    """The settings of a small experiment on `tiny` that tunes its learning rate, without a corpus."""
    return {
        "name": "small",
        "backbone": "tiny",
        "regimes": ["R0", "R1"],
        "seeds": 1,
        "tokens": {"max_length": 64, "prefix_tokens": 10, "min_scored": 4},
        "clusters": {"batch_rows": 8, "routing_clusters": 3},
        "train": {"epochs": 1, "feature_dtype": "float32", "matmul_dtype": "float32"},
        "sweep": {"grid": [1e-3, 1e-2], "seeds": 1, "extend": 0},
    }


@pytest.fixture
def small(made_up, monkeypatch, tmp_path):
    """Makes an experiment on `tiny`: small(regimes=[…], seeds=…, **settings)."""
    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(tmp_path / "home"))

    def make(regimes, seeds=1, **more):
        raw = {
            "name": "honest-small",
            "backbone": "tiny",
            "corpora": [made_up],
            "regimes": regimes,
            "seeds": seeds,
            "tokens": {"max_length": 64, "prefix_tokens": 10, "min_scored": 4},
            "data": {"max_train_tokens": 20_000},
            "clusters": {"batch_rows": 8, "routing_clusters": 3},
            "train": {
                "epochs": 1,
                "rows_per_step": 16,
                "feature_dtype": "float32",
                "matmul_dtype": "float32",
            },
            "learning_rates": {r: 1e-2 for r in regimes},
        }
        return experiment_from(raw | more, "paper")

    return make


LOSS = {name: 3.5 for name in REGIMES} | {
    "R0": 3.7,
    "R1": 3.5,
    "R19-R1": 3.5,
    "R2": 3.40,
    "R19-R2": 3.40,
    "R3": 3.451,
    "R3-clustered": 3.451,
    "R4": 3.45,
    "R5": 3.45,
    "R6": 3.50,
    "R8": 3.49,
    "R9": 3.35,
    "R4-g2": 3.49,
    "R4-g4": 3.48,
    "R4-g8": 3.47,
    "R4-g16": 3.46,
    "R11": 3.42,
    "R12-oracle": 3.30,
    "R4-stream": 3.46,
}
DOCUMENTS, SEEDS = 60, 5
MADE_UP = {"command": "made up", "device_name": "none", "commit": "none", "source": "none"}


def one_record(name, regime, corpus, backbone, seed, loss):
    """The record of a run with a loss of so many nats per token."""
    epochs = (0.0, 1.0, 2.0)
    curve = [{"epoch": e, "train_nll": loss, "validation_nll": loss + 0.5 / (1 + e)} for e in epochs]
    sizes = {"min": 1, "median": 20.0, "max": 90}
    clusters = {"adjusted_mutual_information": 0.4, "length_variance_explained": 0.1, "sizes": sizes}
    clusters |= {"homogeneity": 0.5, "homogeneity_by_chance": 0.1, "homogeneity_attainable": 0.9}
    clusters |= {"homogeneity_p": 0.005, "share_below_4": 0.002, "share_below_8": 0.08}
    return Record(
        name=name,
        experiment=f"honest-{corpus}",
        regime=regime,
        backbone=backbone,
        corpus=corpus,
        seed=seed,
        profile="paper",
        settings={"train": {"epochs": 2}},
        learning_rate=1e-3,
        metrics={"test_nll": loss, "seen_nll": loss - 0.05, "validation_nll": loss},
        curve=curve,
        positions=[{"position": 16 * i, "nll": loss * 90, "tokens": 90} for i in range(3)],
        trainable_parameters={"R1": 200_000}.get(regime, 6_600_000),
        stored_bytes=4,
        seconds={},
        peak_memory_bytes={},
        data={"clusters": clusters},
        provenance=MADE_UP,
    )


FOREIGN = {"foreign-50": {"R4": 0.02, "": 0.2}, "clean-50": {"": 0.0}}  # regime, "" for the others: more loss


def write_study(
    folder,
    corpus="mixed",
    regimes=LOSS,
    backbone="smollm2",
    *,
    wide=(),
    readings=FOREIGN,
    change=lambda record: None,
    experiment="honest",
):
    """Records and losses of one corpus in which regime r has about regimes[r] nats per token.

    wide: regimes whose seeds lie far apart, around the same mean. change: of each record, in place.
    """
    generator = np.random.default_rng(0)
    tokens = generator.integers(20, 60, DOCUMENTS)
    hard = generator.normal(0, 0.3, DOCUMENTS)
    records, rows = [], []  # of a run and reading: its names and losses
    for regime, loss in regimes.items():
        for seed in range(SEEDS):
            name = f"{regime}--{backbone}--{corpus}--00000000--seed{seed}"
            spread = 0.05 * (seed - SEEDS // 2) if regime in wide else 0.0
            own = spread + generator.normal(0, 0.001) + generator.normal(0, 0.004, DOCUMENTS)
            for reading, more in {"test": {"": 0.0}, **readings}.items():
                rows.append((reading, name, (loss + more.get(regime, more[""]) + hard + own) * tokens))
            records.append(one_record(name, regime, corpus, backbone, seed, loss + spread))
            change(records[-1])
    lines = "".join(r.model_dump_json() + "\n" for r in records)
    (folder / f"{experiment}-{corpus}-{backbone}.jsonl").write_text(lines)
    reading, run, nll = zip(*rows)
    of_all = {"document": [f"d{i:03d}" for i in range(DOCUMENTS)] * len(rows), "group": "g"}
    of_all |= {
        "tokens": np.tile(tokens, len(rows)),
        "nll": np.concatenate(nll),
        "run": np.repeat(run, DOCUMENTS),
    }
    frame = pd.DataFrame({"split": np.repeat(reading, DOCUMENTS), **of_all})
    frame.to_parquet(folder / f"{experiment}-{corpus}-{backbone}.parquet", index=False)


@pytest.fixture(scope="session")
def made_up_results(tmp_path_factory):
    """A results folder of two corpora with known losses."""
    folder = tmp_path_factory.mktemp("results")
    write_study(folder)
    write_study(folder, "docstrings", {k: v for k, v in LOSS.items() if k != "R12-oracle"})
    return folder


@pytest.fixture
def study_of():
    """write_study, for tests that make a results folder of their own."""
    return write_study
