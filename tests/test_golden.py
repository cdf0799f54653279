"""Small experiments whose numbers may not move: what a change of the code's shape must leave as it is.

golden.json holds what they gave when it was written, every float with all its digits. On a machine with the same
processor, libraries and engine the numbers are compared bit for bit, elsewhere within 1e-5 of their size. A change that
is meant to move them writes the file again, in a commit that says why:

    python tests/test_golden.py --write
"""

import contextlib
import json
import os
import platform
import re
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch

from chameleon_lite.app.corpus import Corpus
from chameleon_lite.app.fit import FitSettings, fit
from chameleon_lite.app.own_texts import write_jsonl
from chameleon_lite.app.stream import adapt
from chameleon_lite.text import Document
from chameleon_study.config import experiment_from
from chameleon_study.run import run_experiment

FILE = Path(__file__).with_name("golden.json")
RELATIVE = 1e-5  # of a float, on a machine other than the file's
LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "transformers", "peft")
TOPICS = ("wave salt tide boat gull", "oak fern moss root deer", "tram roof lamp shop queue")
COUNTS = {"train": 96, "validation": 32, "test": 32}
EXACT = {"feature_dtype": "float32", "matmul_dtype": "float32"}

HONEST = {
    "backbone": "tiny",
    "seeds": 1,
    "tokens": {"max_length": 64, "prefix_tokens": 10, "min_scored": 4},
    "data": {"max_train_tokens": 20_000},
    "clusters": {"batch_rows": 8, "routing_clusters": 3},
    "train": {"epochs": 2, "rows_per_step": 16, "validations_per_epoch": 2, "patience": 4, **EXACT},
}
FEW = ["R0", "R1", "R4", "R6", "R11", "R15", "R16", "R17"]
OTHERS = ["R2", "R3", "R5", "R7", "R7b", "R8", "R9", "R10", "R11b", "R12", "R12-oracle", "R13", "R14", "R18"]
OTHERS += ["R19-R1", "R20", "R4-nodrop", "R4-padded", "R4-stream", "R3-clustered", "R4-g4", "R5-g1", "R11-K4"]
PROBES = {
    "seen_documents": 20,
    "position_bins": 3,
    "corpora": ["questions.jsonl"],
    "foreign_shares": [0.5],
    "foreign_regimes": ["R4"],
}
EXPERIMENTS = {
    "honest": {"corpora": ["plain.jsonl"], "regimes": FEW, "probes": PROBES},
    "prompts": {
        "corpora": ["questions.jsonl"],
        "regimes": ["R0", "R4"],
        "probes": {"generate": {"documents": 6, "new_tokens": 8, "regimes": ["R0", "R4"], "rows": 4}},
    },
    "others": {"corpora": ["plain.jsonl"], "regimes": OTHERS},
    "shared": {"corpora": ["plain.jsonl"], "regimes": ["R1", "R4"], "shared_order": True, "seeds": 2},
    "sweep": {
        "corpora": ["plain.jsonl"],
        "regimes": ["R1", "R4"],
        "learning_rates": {},
        "sweep": {"grid": [1e-3, 1e-2], "seeds": 1, "extend": 1},
    },
}
RELEASED = {
    "backbone": "tiny",
    "seeds": 1,
    "regimes": ["R0", "R1", "R4"],
    "learning_rates": {"R1": 1e-2, "R4": 1e-3},
    "tokens": {"max_length": 48, "prefix_tokens": 8, "min_scored": 4},
    "clusters": {"batch_rows": 8, "minimum": 2},
    "train": {"epochs": 2, "patience": 2, "validations_per_epoch": 1, **EXACT},
}
TABLES = {
    "released": {"corpora": ["plain.jsonl"], "protocol": {"preset": "as_released"}},
    "mended": {
        "corpora": ["questions.jsonl"],
        "protocol": {"preset": "as_released", "mend": ["average", "ignored", "attention", "objective"]},
    },
    "described": {"corpora": ["questions.jsonl"], "protocol": {"preset": "as_described"}},
}
FITTED = {
    "head": "hyper",
    "bos": "off",
    "learning_rate": 1e-2,
    "tokens": {"max_length": 96},
    "clusters": {"batch_rows": 16},
    "train": {"epochs": 2, "rows_per_step": 16, **EXACT},
}
# what a record holds besides seconds, memory and provenance
KEPT = ("name", "regime", "learning_rate", "learning_rate_trials", "metrics", "curve", "positions", "status")
KEPT += ("trainable_parameters", "stored_bytes")


def text(generator: np.random.Generator, topic: int, low: int, high: int) -> str:
    """From `low` to `high` - 1 words of one topic."""
    return " ".join(generator.choice(TOPICS[topic].split(), size=generator.integers(low, high)))


def write_corpora() -> None:
    """plain.jsonl and questions.jsonl (with prompts) in the current folder; relative, for a run's name holds them."""
    generator = np.random.default_rng(0)
    for name, prompts in (("plain", False), ("questions", True)):
        splits = {}
        for split, count in COUNTS.items():
            documents = []
            for i, topic in enumerate(generator.integers(len(TOPICS), size=count)):
                asked = text(generator, topic, 3, 6) if prompts else ""
                answer = text(generator, topic, 6, 12)
                documents.append(
                    Document(f"{split}-{i}", answer, f"topic {topic}", asked and f"Q: {asked}\n", asked)
                )
            splits[split] = tuple(documents)
        write_jsonl(Corpus(name, splits, "generated"), Path(f"{name}.jsonl"))


def measured(raw: dict) -> list[dict]:
    """An experiment's records, each with its documents' losses, in the current folder."""
    settings = experiment_from({"name": "golden", **raw}, "paper")
    out = []
    for record in run_experiment(settings, runs=Path("runs"), resume=False, command="golden"):
        row = {name: value for name, value in record.model_dump(mode="json").items() if name in KEPT}
        frame = pd.read_parquet(Path("runs") / record.name / "documents.parquet")
        row["documents"] = {
            str(split): part["nll"].tolist() for split, part in frame.groupby("split", sort=True)
        }
        row["data"] = {n: record.data[n] for n in ("hash", "documents", "tokens")}
        out.append(row)
    return out


def fitted(given: tuple[str, int]) -> dict:
    """`fit` on made-up texts and what `adapt` gives for others, scored and continued."""
    backbone, lora_rank = given
    generator = np.random.default_rng(1)
    learned, others = ([text(generator, i % 3, 9, 14) for i in range(n)] for n in (120, 9))
    found = fit(
        learned,
        backbone=backbone,
        settings=FitSettings(**FITTED, lora_rank=lora_rank),
        device="cpu",
        progress=False,
    )
    return {
        **{
            name: getattr(found, name)
            for name in ("before", "after", "low", "high", "held_out", "trained_on")
        },
        "curve": found.curve,
        "notes": {name: found.model.config.notes[name] for name in ("best_epoch", "corpus_hash")},
        "rows": {
            how: adapt(found.model, others, condition=how, progress=False)
            for how in ("cluster", "centroid", "row")
        },
        "continued": adapt(found.model, others[:4], new_tokens=6, progress=False),
    }


PARTS = {
    name: (measured, HONEST | {"learning_rates": {r: 1e-2 for r in raw["regimes"]}} | raw)
    for name, raw in EXPERIMENTS.items()
}
PARTS |= {name: (measured, RELEASED | raw) for name, raw in TABLES.items()}
PARTS |= {"fit": (fitted, ("tiny", 0)), "fit with LoRA in the layers": (fitted, ("tiny", 2))}
PARTS |= {"fit on Llama's architecture": (fitted, ("tiny-llama", 2))}


def computed(part: str) -> list | dict:
    """What a part gives now, as JSON would hold it; on one thread, with caches and runs in a folder of its own."""
    make, given = PARTS[part]
    threads = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(mock.patch.dict(os.environ, {"CHAMELEON_LITE_HOME": str(Path(folder) / "home")}))
        stack.callback(torch.set_num_threads, threads)
        torch.set_num_threads(1)
        write_corpora()
        return json.loads(json.dumps(make(given), allow_nan=False))


def fingerprint() -> dict[str, str]:
    """What decides the last digits of a float: the processor, the libraries that compute on it, the engine."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return {
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "engine": os.environ.get("CHAMELEON_LITE_ENGINE") or "auto",
        **{name: version(name) for name in LIBRARIES},
    }


def differences(now, then, relative: float, where: str = "") -> list[str]:
    """Every place at which two JSON values differ; floats by more than `relative` of the larger one."""
    if isinstance(now, dict) and isinstance(then, dict) and now.keys() == then.keys():
        return [d for k in then for d in differences(now[k], then[k], relative, f"{where} / {k}")]
    if isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        return [
            d
            for i, (a, b) in enumerate(zip(now, then))
            for d in differences(a, b, relative, f"{where} / {i}")
        ]
    if isinstance(now, float) and isinstance(then, float):
        same = now == then or abs(now - then) <= relative * max(abs(now), abs(then))
    else:
        same = type(now) is type(then) and now == then
    return [] if same else [f"{where}: {now!r}, was {then!r}"]


@pytest.mark.parametrize("part", PARTS)
def test_numbers_are_those_of_the_file(part):
    stored = json.loads(FILE.read_text())
    here, there = fingerprint(), stored["fingerprint"]
    other = {name: (here[name], there.get(name)) for name in here if here[name] != there.get(name)}
    found = differences(computed(part), stored["parts"][part], RELATIVE if other else 0.0, part)
    how = f"within {RELATIVE:g} of their size, since {other} differ (here, file)" if other else "bit for bit"
    assert not found, f"{len(found)} differences, compared {how}:\n" + "\n".join(found[:20])


def test_the_comparison_sees_a_last_digit_and_allows_it_elsewhere():
    then = {"curve": [{"nll": 3.25, "epoch": 1}], "name": "R1"}
    now = {"curve": [{"nll": float(np.nextafter(3.25, 4)), "epoch": 1}], "name": "R1"}
    assert differences(then, then, 0.0) == differences(now, then, RELATIVE) == []
    assert differences(now, then, 0.0) == [" / curve / 0 / nll: 3.2500000000000004, was 3.25"]
    assert len(differences({**then, "name": "R2"}, then, RELATIVE)) == 1
    assert len(differences({"name": "R1"}, then, RELATIVE)) == 1


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(
            "python tests/test_golden.py --write: write golden.json again, with the numbers of today's code"
        )
    parts = ",\n".join(f"{json.dumps(part)}: {json.dumps(computed(part))}" for part in PARTS)
    FILE.write_text(f'{{"fingerprint": {json.dumps(fingerprint(), indent=1)},\n"parts": {{\n{parts}\n}}}}\n')
