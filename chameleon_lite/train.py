"""Heads trained on hidden states, several at once on the same batches.

    epoch order ─▶ rows (B,) ─┬▶ source: condition (G, C), group (B,) ─ by_row ─▶ (B, C) ─ factors ─▶ update ┐
                              └▶ data: h (M, C), target (M,) ────────────────────────────────────────────────┤
    AdamW per head ◀─ backward ◀─ (sum of nats) / (scored tokens of the step) ◀─ nats (H,) ◀─ head_losses ───┘

By default `by_row` makes every row, a document, a group, G = B; a static head makes one update, G = 1. To
read `step`, know heads.py and loss.py; for an epoch also batches.py. Heads that share batches form a cohort:
states are read once for all (and the fast form of the loss computes h Wᵀ once). With stored states nothing
else is shared, so each head ends where it would have ended alone; with live states, whose layers are trained
too, a cohort is one member. Learning rate, early stop and best weights are per head. Each process divides the
nats of its share by the token count of the whole step; adding gradients then equals one process.
"""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from . import engine
from .backbones.formats import sums_on
from .backbones.transfer import sent
from .batches import Arrangement
from .conditions import conditions_of
from .errors import RunFailed
from .heads import Condition, Head, by_row, own_dropout
from .loss import HeadWeight, Updates, head_losses, token_losses
from .processes import Processes
from .settings import TrainSettings

Orders = Callable[[int], Arrangement]  # epoch number ─▶ the order of that epoch's documents
# What a source gives: the condition of G groups, on the head's device, and each row's group (B,) int64, 0 …
# G - 1, on any device. It is None where all rows share one condition, G = 1; without a source both are None.
Conditioned = tuple[Condition | None, Tensor | None]
# source(arrangement, rows (B,) int64 on the host) may depend on nothing of the training but these two, and on
# what it was built with, never on scored tokens. The paper's is conditions.GroupMean: the mean of the vectors
# of all documents of a row's group, arrangement.groups(size), those in neighbouring steps included.
Source = Callable[[Arrangement, Tensor], Conditioned]


class States(Protocol):
    """What a step reads of N documents: stored states (states.py), or live ones (train_layers.py)."""

    device: torch.device
    counts: Tensor  # (N,) scored tokens per document, on the host

    def tokens(self, rows: Tensor) -> int:
        """Scored tokens of documents rows (B,), int64 on the host."""

    def pieces(self, rows: Tensor) -> list[Tensor]:
        """Indices into rows (B,), on the host, of the documents read at one time: each in one piece."""

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States (M, C), targets (M,); on the host indices into rows (M,), ascending without gradients."""


@dataclass
class Member:
    """One head in a cohort, and the course of its training; a head without a condition has no sources."""

    name: str  # its own within the cohort
    head: Head
    source: Source | None  # gives the conditions in training
    validation_source: Source | None
    learning_rate: float
    seed: int = 0  # of the head's dropout, so that it does not depend on the rest of the cohort
    cosine: int = 0  # epochs in which the learning rate falls to zero, which ends training; 0: it is constant
    active: bool = True  # false once it was stopped
    best: float = math.inf  # nats per token on validation
    best_epoch: float = 0.0
    misses: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)  # the head's state_dict at `best`
    curve: list[dict] = field(default_factory=list)  # one entry per validation
    failure: str | None = None


class Common(NamedTuple):
    """What all steps of one training have in common."""

    data: States
    weight: HeadWeight
    settings: TrainSettings
    processes: Processes
    optimisers: dict[str, torch.optim.Optimizer]  # by member's name


def step(active: list[Member], given: list[Conditioned], rows: Tensor, number: int, common: Common) -> Tensor:
    """One optimiser step of the active members on documents rows (B,).

    given: for each member the rows' condition and groups. `number` counts steps and seeds dropout. Returns
    nats (H,) summed over this process's tokens.
    """
    data, weight, settings, processes, optimisers = common
    if settings.masks == "row":  # the default: from here on each row of a conditioned head is a group, G = B
        given = by_row(given, len(rows))
    updates = []
    for member, (condition, _) in zip(active, given):
        # Member seed s at step t + 1 draws the masks of seed s + 1 at step t: use seeds far apart.
        with own_dropout(member.head, member.seed + number, data.device):
            updates.append(member.head.factors(condition))  # down (G, R, C), up (G, V, R)
    tokens, nats = data.tokens(rows), torch.zeros(len(active), device=data.device)  # tokens: all processes'
    own_places = torch.arange(len(rows))[processes.index :: processes.count]  # own share: indices into rows
    pieces = data.pieces(rows[own_places])
    for piece in pieces:
        piece_places = own_places[piece]  # (b,) indices into rows; a piece has b documents
        h, target, owner = data.batch(rows[piece_places])  # (M, C), (M,), (M,) indices into the piece
        groups = groups_of(given, updates, piece_places[owner])  # (M,) each
        nll = head_losses(h, target, weight, updates, groups, settings.scale)  # (H,)
        # A head's nats depend on it alone: summing is safe. The updates' graph is kept until the last piece.
        (nll / tokens).sum().backward(retain_graph=piece is not pieces[-1])
        nats = nats + nll.detach()
        del h, nll  # and with them a piece's activations, before the next piece makes its own
    processes.sum_gradients([p for m in active for p in m.head.parameters() if p.requires_grad])
    for member in active:
        optimisers[member.name].step()
        optimisers[member.name].zero_grad(set_to_none=True)
    return nats


def groups_of(given: list[Conditioned], updates: Updates, places: Tensor) -> list[Tensor | None]:
    """For each head the group (M,) of states, by their indices `places` (M,) into rows; None: one update.

    They stay on the host, where they make no step wait for a GPU; heads with one source share one tensor.
    """
    spread = {id(group): group.cpu()[places] for _, group in given if group is not None}
    several = [update is not None and update.groups > 1 for update in updates]
    return [spread.get(id(group)) if many else None for (_, group), many in zip(given, several)]


def train_heads(
    members: Sequence[Member],
    train: States,
    orders: Orders,
    validation: States,
    validation_order: Arrangement,
    weight: HeadWeight,
    settings: TrainSettings,
    processes: Processes | None = None,
    progress: bool = True,
    over: str = "token",
) -> None:
    """Train every member in place, leave each with its best validation weights; curves hold nats per token.

    settings: settings.TrainSettings; a conditioned member's source: such as conditions.GroupMean. Steps and
    batches of validation have rows_per_step documents. A member whose loss is not finite stops at the next
    validation, `failure` says when; RunFailed where none has usable weights. `over` (the study's): how
    losses are averaged, so which are best. ValueError as in `average`, and for shared names or parameters.
    """
    common = Common(train, weight, settings, processes or Processes(), _optimisers(members, settings))
    for member in members:
        member.head.train()  # evaluation puts a head back into the mode it was in
    check = (common._replace(data=validation), validation_order, over)
    _validate(members, *check, 0.0, [None] * len(members))
    mute = None if progress and not common.processes.index else True  # None: if no terminal
    recorded = engine.fast("replayed", worth=train.device.type == "cuda") or nullcontext
    number, times = 0, settings.validations_per_epoch
    with recorded(step) as take_step:  # without a recorder take_step is step itself
        for epoch in range(settings.epochs):
            arrangement = orders(epoch)
            batches = arrangement.steps(settings.rows_per_step)
            stops = {max(1, round(len(batches) * (i + 1) / times)) for i in range(times)}  # validations
            total, tokens = 0.0, 0  # since the last validation, on the device: no step waits for it
            whole = {"initial": epoch * len(batches), "total": settings.epochs * len(batches)}
            bar = tqdm(batches, f"epoch {epoch + 1}/{settings.epochs}", leave=False, disable=mute, **whole)
            for done, rows in enumerate(bar, start=1):
                if not (active := [m for m in members if m.active]):
                    break
                number += 1
                given = conditions_of([m.source for m in active], arrangement, rows)
                _fall(active, common.optimisers, epoch + (done - 1) / len(batches))
                nats, count = take_step(active, given, rows, number, common), train.tokens(rows)
                if over == "batch":  # a batch counts once, as its mean
                    nats, count = nats / count, 1
                total, tokens = total + nats, tokens + count
                if done in stops:
                    means = [nats / tokens for nats in common.processes.sum(total).tolist()]
                    _validate(active, *check, epoch + done / len(batches), means)
                    total, tokens = 0.0, 0
    _restore(members)


def _optimisers(members: Sequence[Member], settings: TrainSettings) -> dict[str, torch.optim.Optimizer]:
    optimisers, owners = {}, {}  # owners: the name of the member that trains a parameter, by its id
    for member in members:
        if member.name in optimisers:
            raise ValueError(f"two members are called {member.name!r}: give each a name of its own")
        parameters = [p for p in member.head.parameters() if p.requires_grad]
        for p in parameters:
            if (owner := owners.setdefault(id(p), member.name)) != member.name:
                raise ValueError(f"{owner!r} and {member.name!r} share parameters: train each on its own")
            p.grad = None
        gpu, rate = all(p.is_cuda for p in parameters), member.learning_rate
        how = {"weight_decay": settings.weight_decay, "fused": gpu, "capturable": gpu}
        if member.cosine:  # a tensor, which a recorded step reads where it lies
            rate = torch.tensor(rate, device=parameters[0].device)
        optimisers[member.name] = torch.optim.AdamW(parameters, lr=rate, **how)
    return optimisers


def _fall(active: list[Member], optimisers: dict[str, torch.optim.Optimizer], at: float) -> None:
    """Set the learning rates that fall along a cosine to their value at time `at` (in epochs)."""
    for member in (m for m in active if m.cosine):
        rate = member.learning_rate * (1 + math.cos(math.pi * at / member.cosine)) / 2
        optimisers[member.name].param_groups[0]["lr"].fill_(rate)


def _validate(members, common: Common, arrangement: Arrangement, over: str, epoch: float, train_nll) -> None:
    """Evaluate every member and keep its best weights; stop it out of patience, or with a loss not finite."""
    data, weight, settings, processes, _ = common
    heads, size = [(m.head, m.validation_source) for m in members], settings.rows_per_step
    nll = evaluate(heads, data, arrangement, weight, rows=size, scale=settings.scale, processes=processes)
    means = average(nll, data.counts, over, arrangement.steps(size)).tolist()
    for member, training, value in zip(members, train_nll, means):
        member.curve.append({"epoch": epoch, "train_nll": training, "validation_nll": value})
        if not math.isfinite(value) or (training is not None and not math.isfinite(training)):
            member.active, member.failure = False, f"the loss was not finite at epoch {epoch:.2f}"
        elif value < member.best:
            member.best, member.best_epoch, member.misses = value, epoch, 0
            member.best_weights = copy.deepcopy(member.head.state_dict())
        else:
            member.misses += 1
            member.active = member.misses <= settings.patience
        member.active &= not member.cosine or epoch < member.cosine


def _restore(members: Sequence[Member]) -> None:
    for member in members:
        if member.best_weights:
            member.head.load_state_dict(member.best_weights)
    failed = [m for m in members if m.failure and not m.best_weights]
    if failed and len(failed) == len(members):
        raise RunFailed(f"{failed[0].name}: {failed[0].failure}; lower its learning rate")


def evaluate(
    heads: Sequence[tuple[Head | None, Source | None]],
    data: States,
    arrangement: Arrangement,
    weight: HeadWeight,
    *,
    rows: int | None = None,
    scale: float = 1.0,
    processes: Processes | None = None,
    watch: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Per-document nll sums (H, N) in float64 nats; a head of None is the frozen model.

    rows: how many documents each batch has, unless the arrangement was given as batches. Heads are read in
    eval mode and left in the mode they were in. A head that ignores its condition gets the same numbers from
    any batches; documents in no batch stay 0. The study's `watch` gets losses (H, M) and documents (M,).
    """
    processes = processes or Processes()
    out = torch.zeros(len(heads), len(data.counts), dtype=torch.float64, device=sums_on(data.device))
    with torch.no_grad(), ExitStack() as modes:
        for head in (head for head, _ in heads if head is not None):
            modes.callback(head.train, head.training)  # afterwards, whatever happens
            head.eval()
        for batch in arrangement.steps(rows)[processes.index :: processes.count]:
            given = conditions_of([source for _, source in heads], arrangement, batch)
            updates = [head and head.factors(condition) for (head, _), (condition, _) in zip(heads, given)]
            for piece in data.pieces(batch):
                documents = batch[piece]  # (b,) documents of a piece
                h, target, owner = data.batch(documents)  # (M, C), (M,), (M,) indices, ascending
                groups = groups_of(given, updates, piece[owner])  # (M,) each
                nll = token_losses(h, target, weight, updates, groups, scale)  # (H, M)
                if watch is not None:
                    watch(nll, documents[owner].to(nll.device))
                # By segment, not by scattered additions: a GPU repeats itself. unsafe: a check would wait.
                sums = {"lengths": sent(data.counts[documents], out.device), "axis": 0, "unsafe": True}
                nll = nll.to(out.device).double().T.contiguous()  # (M, H)
                nll = torch.segment_reduce(nll, "sum", **sums)  # (b, H)
                out[:, sent(documents, out.device)] = nll.T
    return processes.sum(out)


def average(
    nll: Tensor, counts: Tensor, over: str = "token", batches: Sequence[Tensor] | None = None
) -> Tensor:
    """nll sums (…, N) and token counts (N,) to nats per token (…).

    over="token" divides the sums once; over="batch", which only the study uses, is the released scripts'
    unweighted mean of batches' means, which depends on how documents were batched. ValueError for any other
    `over`, and for "batch" without batches.
    """
    counts = counts.to(nll)
    if over == "token":
        return nll.sum(-1) / counts.sum()
    if over != "batch" or batches is None:
        raise ValueError('average: over is "token", or "batch" together with the batches')
    means = [nll[..., b].sum(-1) / counts[b].sum() for b in batches]
    return torch.stack(means, -1).mean(-1)
