"""Regimes that cached hidden states cannot serve: the backbone runs anew for them (R14, R16, R17).

in_context     prefixes of up to 15 rows of the same cluster batch are put in front of the row; nothing is trained
layers_static  LoRA in every layer (PEFT) and on the head: the baseline that the paper describes
layers_hyper   LoRA in every layer, hyper-network on the head: the method that the paper describes
"""

import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from chameleon_lite.backbone import copied
from chameleon_lite.backbones.formats import arithmetic
from chameleon_lite.batches import Arrangement
from chameleon_lite.conditions import GroupMean
from chameleon_lite.errors import RunFailed
from chameleon_lite.heads import Head, HyperHead, LoraHead
from chameleon_lite.lora import add_lora, lora_parameters
from chameleon_lite.text import cumulative
from chameleon_lite.train import Member
from chameleon_lite.train_layers import LiveStates, WithLayers

from .evaluate import Context, Outcome
from .prepare import SeedClusterings
from .regimes import CLUSTERED, GROUP, RANK, Regime

NEIGHBOURS = 15  # other rows whose prefixes are put in front
NEIGHBOUR_TOKENS = 32  # of each prefix at most: a plain text's whole prefix, the start of a long prompt
LEARNING_RATES = (3e-4, 1e-3)


def in_context(context: Context, seeded: SeedClusterings, r: Regime) -> Outcome:
    """R14: the frozen model reads its cluster neighbours' prefixes before the row; the same positions are scored."""
    started, material, nll = time.perf_counter(), context.material, {}
    backbone = material.backbone
    separator = backbone.tokenizer("\n", add_special_tokens=False)["input_ids"]
    with arithmetic(backbone, material.feature_dtype):
        for split in ("validation", "test"):
            table = material.tables[split]
            groups = seeded.epoch(split, CLUSTERED, 0).groups(NEIGHBOURS + 1).of
            rows, front = neighbours_in_front(table, groups, separator)
            offsets = cumulative(np.array([len(row) for row in rows]))
            longer = replace(table, ids=np.concatenate(rows), offsets=offsets, prefix=front + table.prefix)
            together = Arrangement(torch.arange(len(table)))
            live = replace(material, scored={split: LiveStates(backbone, longer)})
            nll[split] = live.nll([(None, None)], split, together, rows=len(table))[0]
    return Outcome(nll, seconds={"evaluation": time.perf_counter() - started})


def neighbours_in_front(table, groups: Tensor, separator: list[int]) -> tuple[list[np.ndarray], np.ndarray]:
    """For each document its ids with the neighbours' prefixes in front, and how many tokens those take (N,)."""
    groups = groups.numpy()
    members = [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]
    heads = [table.ids[o : o + min(p, NEIGHBOUR_TOKENS)] for o, p in zip(table.offsets, table.prefix)]
    rows, front = [], np.zeros(len(table), dtype=np.int64)
    for n in range(len(table)):
        pieces = [np.concatenate([heads[m], separator]) for m in members[groups[n]] if m != n]
        row = table.ids[table.offsets[n] : table.offsets[n + 1]]
        front[n] = sum(len(p) for p in pieces)
        rows.append(np.concatenate([*pieces, row]).astype(np.int64))
    return rows, front


def in_layers(head: type[Head], context: Context, seeded: SeedClusterings, r: Regime) -> Outcome:
    """R16, R17: LoRA of rank 4 in every layer, trained at every rate with a head; the better on validation counts."""
    started = time.perf_counter()
    outcomes = [_trained(head, context, seeded, r, rate) for rate in LEARNING_RATES]
    best = min(outcomes, key=lambda outcome: outcome.member.best)
    best.seconds = {"training": (time.perf_counter() - started) / len(outcomes)}
    return best


def _trained(head: type[Head], context: Context, seeded, r: Regime, rate: float) -> Outcome:
    material, settings = context.material, context.settings.train
    settings = settings.model_copy(update={"validations_per_epoch": 1})
    adapted, live, sources = copied(material.backbone), {}, {}
    for split in ("train", "validation", "test"):
        live[split] = LiveStates(adapted, material.tables[split])
        sources[split] = GroupMean(seeded.splits[split].vectors, GROUP) if head is HyperHead else None
    material, orders = replace(material, scored=live), partial(seeded.epoch, order=r.order)
    with torch.random.fork_rng():
        torch.manual_seed(seeded.seed)
        add_lora(adapted, rank=RANK)
        trained = head(adapted.width, adapted.vocab, RANK).to(adapted.device)
        both = WithLayers(trained, lora_parameters(adapted).values())
    member = Member(r.name, both, sources["train"], sources["validation"], rate, seed=seeded.seed * 1_000_003)
    with closing(live["train"]), suppress(RunFailed):  # `failure` holds what went wrong
        material.train([member], orders, settings, progress=False)
    nll, options = {}, {"rows": settings.rows_per_step, "scale": settings.scale}
    for split in ("validation", "test"):
        nll[split] = material.nll([(both, sources[split])], split, orders(split, number=0), **options)[0]
    return Outcome(nll, member=member)


PROCEDURES: dict[str, Callable[[Context, SeedClusterings, Regime], Outcome]] = {
    "in_context": in_context,
    "layers_static": partial(in_layers, LoraHead),
    "layers_hyper": partial(in_layers, HyperHead),
}
