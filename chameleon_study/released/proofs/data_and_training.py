"""Proofs about data and training: validation rows that were trained on, live dropout, the choice of the epoch."""

import torch

from chameleon_lite.backbone import copied
from chameleon_lite.batches import Arrangement
from chameleon_lite.train import average, evaluate

from ..prepare import documents_by_split, scoring_of
from ..protocol import preset
from ..states import LivePaddedStates, live_dropout
from .subject import Shown, Subject

ROWS = {"cuda": 512, "cpu": 64}  # training rows read again with the backbone's dropout on


def alpaca_overlap(subject: Subject) -> Shown | None:
    """Share of validation rows that are training rows, as released and disjoint; None without instructions."""
    if not subject.prompts:
        return None
    numbers = {}
    for name in ("as_released", "honest"):
        splits = documents_by_split(subject.settings, preset(name), subject.material.corpus)
        numbers[f"{name}_validation_rows"] = float(len(splits["validation"]))
        for what, key in (("rows", lambda d: (d.prompt, d.text)), ("prompts", lambda d: d.prompt)):
            train, validation = (set(map(key, splits[split])) for split in ("train", "validation"))
            numbers[f"{name}_{what}_also_trained_on"] = len(train & validation) / len(validation)
    return numbers, {}


def dropout_and_selection(subject: Subject) -> Shown:
    """Running training loss against the same heads re-read; last epoch against the lowest; live against cached."""
    numbers: dict[str, float] = {}
    for regime in ("R1", "R4"):
        m = subject.trained[regime][2]
        numbers |= {
            f"{regime}_running_training_loss": m["train_nll"],
            f"{regime}_training_loss_re_read": m["train_eval_nll"],
            f"{regime}_validation_loss": m["validation_nll"],
            f"{regime}_lowest_minus_last_epoch": m["validation_nll"] - m["validation_last_epoch_nll"],
        }
    numbers |= _backbone_dropout(subject)
    dropout = "this backbone has no dropout to switch on"
    if numbers["backbone_dropout_applies"]:
        change = numbers["R1_dropout_on"] - numbers["R1_dropout_off"]
        dropout = f"the backbone's dropout changes the LoRA loss by {change:+.4f}"
    running = numbers["R4_running_training_loss"] - numbers["R4_training_loss_re_read"]
    return numbers, {"running": running, "dropout": dropout}


def _backbone_dropout(subject: Subject) -> dict[str, float]:
    """The LoRA head on some training rows, states computed anew: without and with the backbone's dropout."""
    material, backbone = subject.material, copied(subject.backbone)
    switched = live_dropout(backbone.lm)
    out = {
        "backbone_dropout_applies": float(switched["applies"]),
        "backbone_dropout_configured": switched["configured"],
        "backbone_dropout_set": float(switched["set"] or switched["configured"]),
    }
    table = material.tables["train"]
    rows = torch.randperm(len(table), generator=torch.Generator().manual_seed(subject.seed))
    table = table.take(rows[: ROWS.get(backbone.device.type, ROWS["cpu"])].sort().values)
    head, order = [(subject.trained["R1"][0].head, None)], Arrangement(torch.arange(len(table)))
    scoring = scoring_of(material.settings, material.protocol)
    for name, train_mode in (("R1_dropout_off", False), ("R1_dropout_on", True)):
        states = LivePaddedStates(
            backbone, table, scoring, dtype=material.feature_dtype, train_mode=train_mode
        )
        with torch.random.fork_rng():
            torch.manual_seed(subject.seed)
            nll = evaluate(head, states, order, material.weight, rows=32)[0].cpu()
        out[name] = float(average(nll, states.counts))
    return out
