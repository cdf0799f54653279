"""Tables 1 and 2 under any protocol: the heads of one seed trained side by side, measured, and taken apart.

Every record holds L = f · L_full + (1 − f) · L_pad, with each row weighted as the average weights it.
"""

import math
import time
from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor, nn

from chameleon_lite import Arrangement, Backbone, Head, HyperHead, LoraHead, matched_rank
from chameleon_lite.errors import UserError, known
from chameleon_lite.lora import lora_parameters
from chameleon_lite.train import Member, Source, average
from chameleon_lite.train_layers import WithLayers

from ..config import Experiment
from ..evaluate import Context, Outcome, record_of
from ..provenance import reset_peak
from ..regimes import RANK
from ..sources import batch_mean, constant
from .prepare import ReleasedCorpus, orders_of
from .protocol import Protocol

REGIMES = ("R0", "R1", "R2", "R3", "R4")
Orders = dict[str, Arrangement]  # split to its fixed batches


def make_head(regime: str, width: int, vocab: int, protocol: Protocol, seed: int) -> Head:
    """The head of R1 … R4 as the protocol initialises it; the seed is of this head alone."""
    start, rank = protocol.initialisation, matched_rank(width, vocab, RANK) if regime == "R2" else RANK
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if regime in ("R1", "R2"):
            return LoraHead(width, vocab, rank, released_init=start in ("wikitext", "alpaca"))
        hyper = {"described": "wikitext", "no_op": None}.get(start, start)
        return HyperHead(width, vocab, RANK, released_init=hyper)


def check_released(settings: Experiment) -> None:
    """Refuse what cannot be run before any work is done: unknown regimes, missing learning rates."""
    known(f"regime under protocol {settings.protocol.preset}", settings.regimes, REGIMES)
    missing = [r for r in settings.regimes if r != "R0" and r not in settings.learning_rates]
    if missing:
        sweeps = f"protocol {settings.protocol.preset} sweeps nothing: give learning_rates for"
        released = "released: 5.0e-4 on WikiText-2, 2.0e-4 on Alpaca"
        raise UserError(f"{sweeps} {', '.join(missing)} ({released})")


def measure_released(context: Context, regimes: list[str], seed: int, corpus: str) -> Iterator[tuple]:
    """Train and measure regimes of one seed; yields each run's Record and its losses per held-out row."""
    material = context.material
    reset_peak(material.backbone.device)
    for regime, member, orders, training in train_released(material, regimes, seed, context.processes):
        started = time.perf_counter()
        metrics, rows = measure(material, regime, member, orders)
        seconds = {"training": training, "evaluation": time.perf_counter() - started}
        yield record_of(context, regime, corpus, seed, Outcome(member=member, seconds=seconds), metrics), rows


def train_released(material: ReleasedCorpus, regimes: list[str], seed, processes=None) -> Iterator[tuple]:
    """Train one seed's heads; yields each regime, its head, None for the frozen model, the fixed orders and seconds.

    The layers below a head are in its state until the next one is asked for. Heads share every batch, unless these
    layers train too: then one after the other.
    """
    fixed, orders = orders_of(material, seed)
    layers, trained = material.protocol.layers, [r for r in regimes if r != "R0"]
    if "R0" in regimes:
        if layers:
            _fresh_layers(material.backbone, seed)
        yield "R0", None, fixed, 0.0
    for cohort in [[r] for r in trained] if layers else filter(None, [trained]):
        started = time.perf_counter()
        members = [_member(material, r, seed) for r in cohort]
        how = {"processes": processes, "over": material.protocol.average}
        material.train(members, orders, material.settings.train, **how)
        seconds = (time.perf_counter() - started) / len(cohort)
        for member in members:
            yield member.name, member, fixed, seconds


def _member(material: ReleasedCorpus, regime: str, seed: int) -> Member:
    backbone = material.backbone
    head = make_head(regime, backbone.width, backbone.vocab, material.protocol, seed)
    if material.protocol.layers:
        head = WithLayers(head, _fresh_layers(backbone, seed))
    sources = [source_of(material, regime, split) for split in ("train", "validation")]
    rate = material.settings.learning_rates[regime]
    return Member(regime, head.to(backbone.device), *sources, rate, seed=seed * 1_000_003)


def source_of(material: ReleasedCorpus, regime: str, split: str) -> Source | None:
    """A regime's condition source in a split: a constant, the mean of the batch's rows, or none."""
    if regime == "R3":
        return constant(material.condition_vectors["train"].mean(0))
    return batch_mean(material.condition_vectors[split]) if regime == "R4" else None


def row_losses(material: ReleasedCorpus, regime: str, member: Member | None, split: str, order) -> Tensor:
    """nll sums (N,) of a split's rows under a trained regime, float64 on the host."""
    pair = (member and member.head, source_of(material, regime, split))
    return material.nll([pair], split, order, scale=material.settings.train.scale)[0]


def row_weights(counts: Tensor, batches: list[Tensor], over: str) -> Tensor:
    """What each row's nll sum (N,) is multiplied by in the average: rows in no batch get 0."""
    weight = torch.zeros(len(counts), dtype=torch.float64)
    batches = [torch.cat(batches)] if over == "token" else batches
    for batch in batches:
        weight[batch] = 1 / (len(batches) * float(counts[batch].sum()))
    return weight


def decomposition(nll: Tensor, counts: Tensor, full: Tensor, weight: Tensor) -> dict[str, float]:
    """f, L_full and L_pad of L = f · L_full + (1 − f) · L_pad; nll, counts, full and weight are (N,).

    f and both means weight each row as the average does; `full_row_nll` and `padded_row_nll` are the plain
    means over tokens, no numbers for a kind without rows.
    """
    out = {"rows": float(len(nll)), "full_rows": float(full.sum()), "full_share": float(full.double().mean())}
    out["full_share_weighted"] = float((weight * counts)[full].sum())
    for name, kind in (("full", full), ("padded", ~full)):
        if share := float((weight * counts)[kind].sum()):
            out[f"{name}_nll"] = float((weight * nll)[kind].sum()) / share
            out[f"{name}_row_nll"] = float(nll[kind].sum() / counts[kind].sum())
    return out


def measure(material: ReleasedCorpus, regime: str, member: Member | None, orders: Orders) -> tuple:
    """Metrics of one trained regime; scored tokens, nll and weight in the average of each held-out row."""
    over, metrics, frames = material.protocol.average, {}, []
    for split, order in orders.items():
        batches, counts, full = order.steps(), material.scored[split].counts, material.full(split)
        nll = row_losses(material, regime, member, split, order)
        key = "train_eval" if split == "train" else split
        metrics[f"{key}_nll"] = float(average(nll, counts, over, batches))
        metrics[f"{key}_token_nll"] = float(average(nll, counts))
        if split != "train":
            table, weight = material.tables[split], row_weights(counts, batches, over)
            columns = {"split": split, "document": table.names, "group": table.groups}
            numbers = {"tokens": counts, "nll": nll, "full": full, "weight": weight}
            frames.append(pd.DataFrame(columns | {name: x.numpy() for name, x in numbers.items()}))
            metrics |= decomposition(nll, counts, full, weight) if split == "validation" else {}
    if member is not None:  # the curve's first point is before training
        best = min(member.curve[1:], key=lambda point: point["validation_nll"])
        metrics |= {"train_nll": best["train_nll"], "best_epoch": float(best["epoch"])}
        metrics["validation_last_epoch_nll"] = member.curve[-1]["validation_nll"]
    reported = "test" if material.protocol.reported == "test" else "validation"
    metrics["reported_nll"] = metrics[f"{reported}_nll"]
    metrics["reported_ppl"] = math.exp(min(metrics["reported_nll"], 700.0))
    return metrics, pd.concat(frames)


def _fresh_layers(backbone: Backbone, seed: int) -> list[nn.Parameter]:
    """The LoRA factors of a backbone's layers, as at the start of training; the seed is of these alone."""
    factors = lora_parameters(backbone)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in factors.items():
            start = torch.zeros(parameter.shape)
            if ".lora_A." in name:
                nn.init.kaiming_uniform_(start, a=math.sqrt(5))
            parameter.copy_(start)
    return list(factors.values())
