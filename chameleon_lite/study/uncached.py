"""Regimes that cached hidden states cannot serve: the backbone runs anew for them (R14, R16, R17).

    in_context     prefixes of up to 15 rows of the same cluster batch stand in front of the row; nothing is trained
    layers_static  LoRA in every layer (PEFT) and on the head: the baseline that the paper describes
    layers_hyper   LoRA in every layer, hyper-network on the head: the method that the paper describes

The last two train on the same batches and steps as everything else, at two learning rates of which the better one
on validation counts. Training runs in 16-bit autocast where the machine has it; readings use the study's format.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..model.backbones import Backbone
from ..model.capability import backbone_dtype
from ..model.head_loss import head_losses, token_losses
from ..model.heads import Head, HyperHead, LoraHead
from ..training.features import arithmetic
from ..training.loop import average
from ..training.objectives import next_token
from .cohort import Context
from .conditions import GroupMean, Split
from .material import Material, Seeded, split_view
from .outcome import Outcome
from .regimes import CLUSTERED, GROUP, RANK, Regime

NEIGHBOURS = 15  # other rows whose prefixes are put in front
NEIGHBOUR_TOKENS = 32  # of each prefix at most: a plain text's whole prefix, the start of a long prompt
LEARNING_RATES = (3e-4, 1e-3)
BATCH_TOKENS = {"cpu": 2_048, "cuda": 32_768}


def in_context(context: Context, seeded: Seeded, r: Regime) -> Outcome:
    """R14: the frozen model reads its cluster neighbours' prefixes before the row; the same positions are scored."""
    started, material = time.perf_counter(), context.material
    dtype = getattr(torch, material.feature_dtype)
    nll = {}
    with arithmetic(material.backbone, dtype):
        for split in ("validation", "test"):
            groups = seeded.epoch(split, CLUSTERED, 0).groups(NEIGHBOURS + 1)
            nll[split] = _in_context_nll(material, split, groups)
    return Outcome(nll, seconds={"evaluation": time.perf_counter() - started})


def neighbours_in_front(table, groups: Tensor, separator: list[int]) -> tuple[list[np.ndarray], np.ndarray]:
    """For each document its ids with the neighbours' prefixes in front, and how many tokens those take (N,)."""
    groups = groups.numpy()
    members = [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]
    heads = [table.ids[o : o + min(p, NEIGHBOUR_TOKENS)] for o, p in zip(table.offsets, table.prefix)]
    rows, front = [], np.zeros(len(table), dtype=np.int64)
    for n in range(len(table)):
        pieces = [np.concatenate([heads[m], separator]) for m in members[groups[n]] if m != n]
        own = table.ids[table.offsets[n] : table.offsets[n + 1]]
        front[n] = sum(len(p) for p in pieces)
        rows.append(np.concatenate([*pieces, own]).astype(np.int64))
    return rows, front


@torch.inference_mode()
def _in_context_nll(material: Material, split: str, groups: Tensor) -> Tensor:
    table, backbone, device = material.tables[split], material.backbone, material.scored[split].device
    separator = backbone.tokenizer("\n", add_special_tokens=False)["input_ids"]
    rows, front = neighbours_in_front(table, groups, separator)
    lengths = np.array([len(row) for row in rows])
    order, out = np.argsort(lengths, kind="stable"), torch.zeros(len(table), dtype=torch.float64)
    for part in _by_budget(lengths[order], BATCH_TOKENS.get(device.type, 2_048)):
        chosen = order[part]
        ids = torch.full((len(chosen), int(lengths[chosen].max())), table.pad_id)
        for i, n in enumerate(chosen):
            ids[i, : lengths[n]] = torch.from_numpy(rows[n])
        mask = torch.arange(ids.shape[1]) < torch.from_numpy(lengths[chosen])[:, None]
        prefix = torch.from_numpy(front[chosen] + table.prefix[chosen])
        nll = _row_losses(material, None, None, backbone, ids.to(device), mask.to(device), prefix.to(device))
        out[torch.from_numpy(chosen)] = nll.cpu()
    return out


def layers_static(context: Context, seeded: Seeded, r: Regime) -> Outcome:
    """R16: LoRA of rank 4 in every layer and on the head."""
    backbone = context.material.backbone
    return _layers(context, seeded, r, lambda: LoraHead(backbone.width, backbone.vocab, RANK), lambda view: None)


def layers_hyper(context: Context, seeded: Seeded, r: Regime) -> Outcome:
    """R17: LoRA of rank 4 in every layer, the hyper-network on the head, conditioned as R4."""
    backbone = context.material.backbone
    return _layers(context, seeded, r, lambda: HyperHead(backbone.width, backbone.vocab, RANK),
                   lambda view: GroupMean(view, GROUP))


def _layers(context: Context, seeded: Seeded, r: Regime, make: Callable[[], Head], source: Callable) -> Outcome:
    """Train at every rate, keep the better on validation, read the test split with it."""
    started = time.perf_counter()
    found = [_trained(context, seeded, r, make, source, lr) for lr in LEARNING_RATES]
    best = min(found, key=lambda one: min((p["validation_nll"] for p in one.curve), default=math.inf))
    best.seconds = {"training": (time.perf_counter() - started) / len(found)}
    return best


def _trained(context: Context, seeded: Seeded, r: Regime, make, source, lr: float) -> Outcome:
    from ..model.lora import add_lora, load_lora_state, lora_parameters, lora_state

    material, settings = context.material, context.settings.train
    adapted = _copy(material.backbone)
    with torch.random.fork_rng():
        torch.manual_seed(seeded.seed)
        add_lora(adapted, rank=RANK)
        head = make().to(material.scored["train"].device)
        parameters = [*lora_parameters(adapted).values(), *head.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=settings.weight_decay)
        views = {s: split_view(material, seeded, s) for s in ("train", "validation", "test")}
        sources = {s: source(view) for s, view in views.items()}
        curve, best, state, misses = [], math.inf, None, 0
        for epoch in range(settings.epochs + 1):  # the first round only reads
            train_nll = _epoch(context, seeded, r, adapted, head, views["train"], sources, optimiser, epoch)
            held_out = _read(context, seeded, r, adapted, head, views, sources, "validation")
            value = float(average(held_out, material.scored["validation"].counts))
            curve.append({"epoch": float(epoch), "train_nll": train_nll, "validation_nll": value})
            if value < best:
                best, misses, state = value, 0, (lora_state(adapted), copy.deepcopy(head.state_dict()))
            else:
                misses += 1
            if misses > settings.patience or not math.isfinite(value):
                break
    failure = None if state else f"the loss was not finite at learning rate {lr:g}"
    if state:
        load_lora_state(adapted, state[0])
        head.load_state_dict(state[1])
    nll = {s: _read(context, seeded, r, adapted, head, views, sources, s) for s in ("validation", "test")}
    count = sum(p.numel() for p in parameters)
    return Outcome(nll, [], lr, curve, count, 4 * count, failure, kept=failure is None)


def _epoch(context, seeded, r: Regime, adapted: Backbone, head: Head, view: Split, sources, optimiser,
           epoch: int) -> float | None:
    """One pass over the training documents; None for the round before the first."""
    if epoch == 0:
        return None
    material, settings = context.material, context.settings.train
    view.arrangement = seeded.epoch("train", r.order, epoch - 1)
    head.train()
    total, tokens = 0.0, 0
    for rows in view.arrangement.steps(settings.rows_per_step):
        nll, count = _step_losses(material, "train", adapted, head, sources["train"], rows)
        optimiser.zero_grad(set_to_none=True)
        (nll.sum() / count).backward()
        optimiser.step()
        total, tokens = total + nll.detach().sum(), tokens + count
    head.eval()
    return float(total) / tokens


def _step_losses(material: Material, split: str, adapted: Backbone, head: Head, source, rows: Tensor):
    """(nll sum, tokens) of a step, differentiable through the layers."""
    table, device = material.tables[split], material.scored[split].device
    ids, mask = (x.to(device) for x in table.padded(rows))
    prefix = torch.from_numpy(table.prefix[rows.numpy()].astype(np.int64)).to(device)
    dtype = backbone_dtype(device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32 and device.type == "cuda"):
        hidden = adapted.hidden(ids, mask).float()
    condition, group = source(rows) if source else (None, None)
    update = head.factors(condition)

    def losses(h, target, row):
        of = [group.to(device)[row] if group is not None and update.groups > 1 else None]
        return head_losses(h, target, material.weight, [update], groups=of)

    return next_token(hidden, ids, mask, prefix, losses)


@torch.no_grad()
def _read(context, seeded, r: Regime, adapted: Backbone, head: Head, views, sources, split: str) -> Tensor:
    """Per-document nll (N,) of one split under the adapted model, in the study's number format."""
    material, view = context.material, views[split]
    table, device = material.tables[split], material.scored[split].device
    view.arrangement = seeded.epoch(split, r.order, 0)
    out = torch.zeros(len(table), dtype=torch.float64)
    head.eval()
    for rows in view.arrangement.steps(context.settings.train.rows_per_step):
        ids, mask = (x.to(device) for x in table.padded(rows))
        prefix = torch.from_numpy(table.prefix[rows.numpy()].astype(np.int64)).to(device)
        told = sources[split](rows) if sources[split] else (None, None)
        out[rows] = _row_losses(material, head, told, adapted, ids, mask, prefix).cpu()
    return out


def _row_losses(material: Material, head: Head | None, told, backbone: Backbone, ids, mask, prefix) -> Tensor:
    """Nats of each row (B,), float64; states pass through fp16 as the cached ones do."""
    hidden = backbone.hidden(ids, mask).half()
    update = head.factors(told[0]) if head is not None else None
    rows_nll = torch.zeros(len(ids), dtype=torch.float64, device=ids.device)

    def losses(h, target, row):
        group = told[1].to(row.device)[row] if told and told[1] is not None and update.groups > 1 else None
        nll = token_losses(h, target, material.weight, [update], groups=[group])[0].double()
        lengths = torch.bincount(row, minlength=len(ids))
        rows_nll.copy_(torch.segment_reduce(nll, "sum", lengths=lengths, axis=0, unsafe=True))
        return nll

    next_token(hidden, ids, mask, prefix, losses)
    return rows_nll


def _copy(backbone: Backbone) -> Backbone:
    """A backbone of its own to put LoRA into: the shared one stays as it is."""
    lm = copy.deepcopy(backbone.lm)
    return replace(backbone, lm=lm, body=lm.base_model, embedding=lm.get_input_embeddings().weight,
                   head=lm.get_output_embeddings())


def _by_budget(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Runs of ascending lengths whose padded size stays within `budget` tokens."""
    low = 0
    for high in range(1, len(lengths) + 1):
        if high == len(lengths) or lengths[high] * (high + 1 - low) > budget:
            yield np.arange(low, high)
            low = high
