"""B16 to B20, and what checksums cost: the package as people with texts of their own use it, within limits.

    docstrings ─ fit, small ─▶ adapter ┐
               ─ 24 words each ─▶ JSONL ┴─ chameleon-lite adapt, in a subprocess ─▶ peak, seconds
    texts ─ LearningStream: score, then learn          beside   scoring the same batches, and no more
          ─ fit: all candidates, each validated        beside   one candidate by PEFT and transformers' Trainer

Memory is that of the whole process, libraries included: what a machine must have, not what was added. The
same command on one row shows what starting and loading take.
"""

import copy
import cProfile
import itertools
import json
import os
import pstats
import sys
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from chameleon_lite import Backbone, ScoredStates, TokenTable, load_backbone, token_losses, tokenise
from chameleon_lite.app.corpus import SPLITS, Corpus
from chameleon_lite.app.fit import FitSettings, fit
from chameleon_lite.app.learn import LearningStream
from chameleon_lite.app.parts import corpus_of, parts_of
from chameleon_lite.app.rows import Row, parsed
from chameleon_lite.app.score import document_of
from chameleon_lite.app.stream import windows
from chameleon_lite.states import hidden_rows
from chameleon_lite.text import IGNORED
from chameleon_study.corpora import load_corpus
from chameleon_study.provenance import ROOT, device_minutes, load_spans
from chameleon_study.records import load_records

from .bench import Bench, run
from .measure import gate
from .workload import texts

WORDS = 24  # per text: at least a token each, which are the 16 of a prefix and 8 to be scored
LIMIT = "the limit set"
WAITS = ROOT / "benchmarks" / "waits.json"  # seconds of runs that take minutes, with commit, date and machine
THREADS = 1  # rows per second of one core: other work on the machine changes that least
# A small process between us and the command: the system hands the peak of whoever starts a program on to it.
DIGESTS = ("crc32", "openssl_sha256", "_hashlib.HASH")  # in names of functions
WATCH = """import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(code)"""
SCORED = "scoring the same rows"
ONE_HEAD, WITH_LAYERS = "PEFT and Trainer, LoRA on the head", "PEFT and Trainer, LoRA in the layers too"
BEHIND = 0.05  # nats per token by which an adapter of ours may be worse than the peer's after as many epochs


def short_texts_adapted(bench: Bench, rows, fitted_tokens, most_megabytes, most_seconds: int) -> dict:
    """B16: scoring short texts with an adapter on SmolLM2 (quick: on the tiny model), from file to file."""
    backbone, corpus = "tiny" if bench.quick else "smollm2", load_corpus("docstrings")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # fitted in a minute or two: its quality does not matter here
        sizes = {"max_train_tokens": fitted_tokens, "max_held_out": 100}
        settings = FitSettings(head="hyper", tokens={"max_length": 96}, train={"epochs": 2}, **sizes)
        where = {"out": folder / "adapter", "device": str(bench.device), "progress": False}
        fit(corpus, backbone=backbone, settings=settings, **where)
        texts = list(itertools.islice(itertools.cycle(short_texts(corpus)), rows))
        few, _ = _adapted(bench, folder, texts[:1])
        used, results = _adapted(bench, folder, texts)
    samples = {"memory": _limited(used["peak bytes"], most_megabytes * 1e6)}
    samples["time"] = _limited(used["s"], most_seconds)
    workload = {"distinct rows": len(set(texts)), "words a row": WORDS}
    workload |= {"scored tokens": sum(result.get("tokens", 0) for result in results)}
    workload |= {"backbone": backbone, "threads": THREADS, "rows/s": rows / used["s"]}
    workload |= used | {f"{name}, one row": few[name] for name in ("s", "peak bytes")}
    gates = [gate("rows that were not answered", rows - len(results), 0)]
    failed = sum("error" in result for result in results)
    gates.append(gate("share of rows without a number", failed / rows, 0.0))
    profile = {"start and load": few["s"], "rows": max(0.0, used["s"] - few["s"])}
    return {"samples": samples, "gates": gates, "workload": workload, "profile": profile}


def short_texts(corpus: Corpus) -> Iterator[str]:
    """A corpus's texts cut to pieces of WORDS words, remainders left out, in the order of the splits."""
    for document in (d for split in SPLITS for d in corpus.splits[split]):
        words = document.text.split()
        for start in range(0, len(words) - WORDS + 1, WORDS):
            yield " ".join(words[start : start + WORDS])


def _adapted(bench: Bench, folder: Path, texts: list[str]) -> tuple[dict, list[dict]]:
    """What the command used, {s, processor s, peak bytes}, on THREADS threads, and its results."""
    source, out = folder / "texts.jsonl", folder / "results.jsonl"
    pd.DataFrame({"text": texts}).to_json(source, orient="records", lines=True)
    command = [sys.executable, "-m", "chameleon_lite", "adapt", source, "--model", folder / "adapter"]
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(THREADS))
    words = ["-c", WATCH, *command, "--out", out, "--device", bench.device]
    seconds, printed = bench.timed(partial(run, *words, **limits))
    processor, peak = printed.split()[-2:]
    used = {"s": seconds, "processor s": float(processor), "peak bytes": int(peak)}
    return used, [json.loads(line) for line in out.read_text().splitlines()]


def _limited(ours: float, limit: float) -> pd.DataFrame:
    return pd.DataFrame([{"ours": ours, LIMIT: limit}])


def study_bill(bench: Bench, most_minutes: int) -> dict:
    """B19: minutes in which a GPU had work of the honest study on its five corpora, from the stored spans."""
    results = ROOT / "results"
    names = [path.stem for path in results.glob("honest-*.jsonl") if path.stem != "honest-layers"]
    spans = [span for span in load_spans(results) if span.experiment in names]
    bill = device_minutes(spans).set_index("experiment")["device minutes"]
    records = [record for name in names for record in load_records(results / f"{name}.jsonl")]
    seconds = pd.DataFrame([record.seconds for record in records])
    # what a process prepared once stands in each of its records
    once = {name: seconds[name].drop_duplicates() for name in ("tokens", "features")}
    workload = bill.add_prefix("minutes, ").to_dict() | {"runs": len(records)}
    workload |= {"cards": ", ".join(sorted({span.device_name for span in spans}))}
    samples = {"GPU time": _limited(60 * bill["all of them"], 60 * most_minutes)}
    return {"samples": samples, "workload": workload, "profile": seconds.assign(**once).sum().to_dict()}


def waiting(bench: Bench, limits: dict[str, float]) -> dict:
    """B20: commands in processes of their own; what takes minutes as WAITS has it, of runs by hand."""
    samples, noted = {}, {} if bench.quick else json.loads(WAITS.read_text(encoding="utf-8"))
    words = {"--help": ["--help"], "claims": ["claims", "--results", ROOT / "results"]}
    for name, limit in limits.items():
        if name in words:
            command = partial(run, "-m", "chameleon_lite", *words[name])
            samples[name] = bench.race({"ours": command}, warm_up=False).assign(**{LIMIT: limit})
        elif name in noted:
            samples[name] = _limited(noted[name]["seconds"], limit)
    profile = {name: float(times["ours"].median()) for name, times in samples.items()}
    return {"samples": samples, "workload": {"by hand": noted}, "profile": profile}


def checksums(bench: Bench, fitted_tokens: int) -> dict:
    """Seconds that a warm `fit` (its states are stored) spends on checksums, beside 3 % of all its seconds.

    Counted are the reading and digesting of whole files, and every other digest and CRC.
    """
    backbone, corpus = "tiny" if bench.quick else "smollm2", load_corpus("docstrings")
    sizes = {"max_train_tokens": fitted_tokens, "max_held_out": 100}
    settings = FitSettings(head="hyper", train={"epochs": 2}, **sizes)
    watched = cProfile.Profile()
    with tempfile.TemporaryDirectory() as name:
        for number, call in enumerate((fit, partial(watched.runcall, fit))):
            where = {"out": Path(name, str(number)), "device": str(bench.device), "progress": False}
            seconds, _ = bench.timed(partial(call, corpus, backbone=backbone, settings=settings, **where))
    spent = 0.0
    for (_, _, function), (_, _, own, whole, callers) in pstats.Stats(watched).stats.items():
        if function == "file_digest":
            spent += whole
        elif any(part in function for part in DIGESTS):  # but for what file_digest has counted
            spent += own - sum(s[2] for (*_, caller), s in callers.items() if caller == "file_digest")
    samples = {"time": pd.DataFrame([{"ours": spent, "3 % of a fit": 0.03 * seconds}])}
    gates = [gate("digests that were not seen", float(not spent), 0)]
    workload = {"backbone": backbone, "fit, s": seconds, "share": spent / seconds}
    return {"samples": samples, "gates": gates, "workload": workload}


def small(bench: Bench) -> Backbone:
    """The benchmark's backbone; in a quick run the tiny one, since every pass runs through all layers."""
    return load_backbone("tiny", device=bench.device) if bench.quick else bench.backbone


def short_rows(rows: int) -> list[str]:
    """Texts of 8 to 40 words, up to 256 of the byte tokenizer's tokens."""
    return texts(rows, np.random.default_rng(1).integers(8, 41, rows))


def learning(bench: Bench, rows: int, layers: int) -> dict:
    """B17: `adapt --learn` without its files, head alone and layers too, in float32 as the command's default is."""
    backbone, streams = small(bench), {}
    for name in ("", ", layers")[: 1 + layers]:
        streams[name] = LearningStream(backbone, layers=bool(name))
    batches = list(windows(parsed(short_rows(rows)), streams[""].settings.batch_rows))

    def scored() -> float:
        return sum(float(score(streams[""], batch).sum()) for batch in batches)

    def learned(name: str) -> list[dict]:
        return [result for batch in batches for result in streams[name](batch)]

    gates, expected = [], scored()
    for name in streams:
        frame = pd.DataFrame(learned(name))
        tokens, first = frame["tokens"], frame[: len(batches[0])]
        apart = abs((frame["loss_without"] * tokens).sum() - expected) / tokens.sum()
        early = abs((first["loss"] - first["loss_without"]).mean())  # states that are kept have 16 bits
        gates.append(gate(f"loss without learning against scoring, nats{name}", apart, 1e-4))
        gates.append(gate(f"a first batch's loss, before anything is learned, nats{name}", early, 2e-3))
    contenders = {name: partial(learned, name) for name in streams} | {SCORED: scored}
    times = bench.race(contenders, 5 if bench.gpu else 3, warm_up=False)  # the gates have run everything once
    samples = {f"time{name}": times[[name, SCORED]].rename(columns={name: "ours"}) for name in streams}
    workload = {"batches": len(batches), "scored tokens": int(tokens.sum())}
    workload |= {"arithmetic": str(backbone.head.weight.dtype)}
    medians = times[[SCORED, *streams]].median().sort_values()  # each does what those before it do, and more
    stages = ("scoring", "learning by the head", "learning by layers")
    profile = dict(zip(stages, medians.diff().fillna(medians)))
    return {"samples": samples, "gates": gates, "workload": workload, "profile": profile}


@torch.no_grad()
def score(stream: LearningStream, rows: list[Row]) -> Tensor:
    """Nats (M,) of a batch's scored tokens under the frozen head, as short as the package's parts allow."""
    documents = [stream.writer.document(document_of(row, str(row.number))) for row in rows]
    table = tokenise(documents, stream.writer, **stream.prompts)
    table, backbone = table.take(np.argsort(table.lengths, kind="stable")), stream.backbone
    data = ScoredStates(table, hidden_rows(backbone, table, np.arange(len(table))), backbone.device)
    h, target, _ = data.batch(torch.arange(len(table)))
    return token_losses(h, target, stream.weight, [None])[0]


def choosing(bench: Bench, rows: int, epochs: int) -> dict:
    """B18: `fit --head auto`, its states, validations and held-out texts included, against training alone."""
    corpus, backbone, found = corpus_of(short_rows(rows)), small(bench), {}
    settings = FitSettings(train={"epochs": epochs, "patience": epochs}, max_train_tokens=None)
    tables = parts_of(corpus, backbone, settings)[0].tables

    def ours(name: str, **changes) -> None:
        own = settings.model_copy(update=changes)
        with tempfile.TemporaryDirectory() as home, patch.dict(os.environ, CHAMELEON_LITE_HOME=home):
            found[name] = fit(corpus, backbone=backbone, settings=own, progress=False).table

    def theirs(name: str, modules: list[str]) -> None:
        found[name] = by_trainer(backbone.lm, tables, settings, modules)

    contenders = {"ours": partial(ours, "ours"), ONE_HEAD: partial(theirs, ONE_HEAD, ["lm_head"])}
    if bench.gpu:
        names = ["c_attn", "c_proj", "c_fc", "lm_head"]  # all linear layers of GPT-2
        contenders["heads alone"] = partial(ours, "heads alone", layers=False)
        contenders[WITH_LAYERS] = partial(theirs, WITH_LAYERS, names)
    times = bench.race(contenders, 1 if bench.quick else 3, warm_up=False)
    table = found["ours"].set_index("candidate")
    behind = float(table.loc["LoRA rank 4", "after"]) - found[ONE_HEAD]
    gates = [gate("validation loss beyond the peer's, nats", behind, BEHIND)]
    workload = {"candidates": ", ".join(table.index), "training tokens": int(tables["train"].lengths.sum())}
    workload |= {"nats, ours": float(table.loc["LoRA rank 4", "after"]), "nats, peer": found[ONE_HEAD]}
    stages = {f"training {name}": float(s) for name, s in table["seconds"].drop_duplicates().items()}
    profile = stages | {"texts, states and held-out texts": times["ours"].median() - sum(stages.values())}
    return {"samples": {"time": times}, "gates": gates, "workload": workload, "profile": profile}


def by_trainer(lm, tables: dict[str, TokenTable], settings: FitSettings, modules: list[str]) -> float:
    """LoRA on these modules trained as PEFT and transformers document it; mean nats of the validation part."""
    from peft import LoraConfig, get_peft_model
    from transformers import PrinterCallback, Trainer, TrainingArguments

    def collate(picked: list[tuple[TokenTable, int]]) -> dict[str, Tensor]:
        table, rows = picked[0][0], [row for _, row in picked]
        ids, mask = table.padded(rows)
        scored = mask & (torch.arange(ids.shape[1]) >= torch.from_numpy(table.prefix[rows]).long()[:, None])
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(scored, ids, IGNORED)}

    data, train = {split: [(t, i) for i in range(len(t))] for split, t in tables.items()}, settings.train
    config = LoraConfig(r=settings.rank, lora_alpha=settings.rank, target_modules=modules)
    how = {"num_train_epochs": train.epochs, "per_device_train_batch_size": train.rows_per_step}
    how |= {"learning_rate": settings.learning_rate, "weight_decay": train.weight_decay}
    how |= {"lr_scheduler_type": "constant", "bf16": lm.device.type == "cuda"}
    how |= {"use_cpu": lm.device.type == "cpu"}
    quiet = {"report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the head is tied, and data loaders pin no memory on a CPU
        own = TrainingArguments(folder, remove_unused_columns=False, **how, **quiet)
        trainer = Trainer(get_peft_model(copy.deepcopy(lm), config), own, collate, data["train"])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return float(trainer.evaluate(data["validation"])["eval_loss"])
