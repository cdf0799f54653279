"""Regimes that cached hidden states cannot serve: the backbone runs anew for them (R14, R16, R17).

in_context  prefixes of up to 15 rows of the same cluster batch are put in front of the row; nothing is trained
layers      LoRA in every layer (PEFT) below the regime's head, trained together: with a LoRA head the baseline
            that the paper describes, with the hyper-network its method
"""

import time
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from chameleon_lite import Arrangement, Member
from chameleon_lite.backbone import copied
from chameleon_lite.backbones.formats import arithmetic
from chameleon_lite.errors import RunFailed
from chameleon_lite.lora import add_lora, lora_parameters
from chameleon_lite.streams.online import step_tokens
from chameleon_lite.text import cumulative
from chameleon_lite.train_layers import LiveStates, WithLayers

from .evaluate import Context, Outcome, new_members, order_of, source_of
from .prepare import Material, SeedClusterings
from .regimes import CLUSTERED, RANK, Choice, Regime

NEIGHBOURS = 15  # other rows whose prefixes are put in front
NEIGHBOUR_TOKENS = 32  # of each prefix at most: a plain text's whole prefix, the start of a long prompt


def in_context(context: Context, seeded: SeedClusterings, r: Regime, choice: None = None) -> Outcome:
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


def in_layers(context: Context, seeded: SeedClusterings, r: Regime, choice: Choice) -> Outcome:
    """R16, R17 and their kin: trained by the given choice, then read on validation and test."""
    started, train, nll = time.perf_counter(), context.settings.train, {}
    member, live = trained_with_layers(context, seeded, r, choice)
    read, order = time.perf_counter(), order_of(context.settings, r)
    how = {"rows": train.rows_per_step, "scale": train.scale, "processes": context.processes}
    for split in ("validation", "test"):
        head = (member.head, source_of(r, seeded, split, choice))
        nll[split] = live.nll([head], split, seeded.epoch(split, order, 0), **how)[0]
    seconds = {"training": read - started, "evaluation": time.perf_counter() - read}
    return Outcome(nll, member=member, seconds=seconds)


def trained_with_layers(context, seeded: SeedClusterings, r: Regime, choice) -> tuple[Member, Material]:
    """The head with LoRA of rank 4 in every layer of a copied backbone, and the corpus as that backbone reads it."""
    settings, material = context.settings, context.material
    (member,) = new_members(context, seeded, [(r, choice)])
    adapted = copied(material.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded.seed)
        add_lora(adapted, rank=RANK)
    member.head = WithLayers(member.head, lora_parameters(adapted).values())
    live = partial(LiveStates, adapted, tokens=step_tokens(material.backbone))
    live = {split: live(material.tables[split]) for split in ("train", "validation", "test")}
    material, orders = replace(material, scored=live), partial(seeded.epoch, order=order_of(settings, r))
    with closing(live["train"]), suppress(RunFailed):  # `failure` holds what went wrong
        material.train([member], orders, settings.train, context.processes, progress=False)
    return member, material


PROCEDURES = {"in_context": in_context, "layers": in_layers}
