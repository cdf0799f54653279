"""B17 and B18: what learning from a stream and choosing an adapter take, beside the least that one would run.

texts ─ LearningStream: score, then learn          beside   scoring the same batches, and no more
      ─ fit: all candidates, each validated        beside   one candidate by PEFT and transformers' Trainer
"""

import copy
import os
import tempfile
import warnings
from functools import partial
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from chameleon_lite import Backbone, ScoredStates, TokenTable, load_backbone, token_losses, tokenise
from chameleon_lite.app.fit import fit
from chameleon_lite.app.fit_settings import FitSettings
from chameleon_lite.app.learn import LearningStream
from chameleon_lite.app.parts import corpus_of, parts_of
from chameleon_lite.app.rows import Row, parsed
from chameleon_lite.app.score import document_of
from chameleon_lite.app.stream import windows
from chameleon_lite.states import hidden_rows
from chameleon_lite.text import IGNORED

from .bench import Bench
from .measure import gate
from .workload import texts

SCORED = "scoring the same rows"
ONE_HEAD, WITH_LAYERS = "PEFT and Trainer, LoRA on the head", "PEFT and Trainer, LoRA in the layers too"
BEHIND = 0.05  # nats per token by which an adapter of ours may be worse than the peer's after as many epochs


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
    profile = dict(
        zip(("scoring", "learning by the head", "learning by layers"), medians.diff().fillna(medians))
    )
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
        model = get_peft_model(copy.deepcopy(lm), config)
        own = TrainingArguments(folder, remove_unused_columns=False, **how, **quiet)
        trainer = Trainer(model, own, collate, data["train"])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return float(trainer.evaluate(data["validation"])["eval_loss"])
