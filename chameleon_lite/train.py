"""Heads trained on hidden states, several at once on the same batches.

    arrangement of an epoch ─▶ rows of a step ─▶ h, targets ─ each head's own update ─▶ nats ─ AdamW per head

Heads that share batches form a cohort: states are read once per step for all of them (and the fast form of
the loss computes h Wᵀ once). Nothing else is shared, so each head ends where it would have ended alone.
Learning rate, early stop and best state are per head. Of several processes each takes a share of every
step's documents; summed gradients are divided by the global token count: the result is that of one process.
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
from .batches import Arrangement
from .errors import RunFailed
from .heads import Condition, Head, HeadUpdate, own_dropout
from .loss import HeadWeight, head_losses, token_losses
from .processes import Processes
from .settings import TrainSettings

Orders = Callable[[int], Arrangement]  # epoch number ─▶ the order of that epoch's documents
Given = tuple[
    Condition | None, Tensor | None
]  # G groups' condition, each row's group (B,); None: all rows share one
Source = Callable[
    [Arrangement, Tensor], Given
]  # documents rows (B,) of an arrangement ─▶ theirs; see conditions.py


class States(Protocol):
    """What a step reads of N documents: stored states (states.py), or computed anew (train_layers.py)."""

    device: torch.device
    counts: Tensor  # (N,) scored tokens per document, on the host

    def tokens(self, rows: Tensor) -> int:
        """Scored tokens of documents rows (B,)."""

    def pieces(self, rows: Tensor) -> list[Tensor]:
        """Places in rows (B,) of the documents that are read at one time: each place in one piece."""

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States (M, C) and targets (M,) of the rows' M scored tokens, and each one's row (M,)."""


@dataclass
class Member:
    """One head in a cohort, and the course of its training; a head without a condition has no sources."""

    name: str
    head: Head
    source: Source | None  # of the conditions it is trained on
    validation_source: Source | None
    learning_rate: float
    seed: int = 0  # of the head's dropout, so that it does not depend on the rest of the cohort
    live: bool = True
    best: float = math.inf  # nats per token on validation
    best_epoch: float = 0.0
    misses: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    curve: list[dict] = field(default_factory=list)  # one entry per validation
    failure: str | None = None


class Common(NamedTuple):
    """What all steps of one training have in common."""

    data: States
    weight: HeadWeight
    settings: TrainSettings
    processes: Processes
    optimisers: dict[str, torch.optim.Optimizer]  # by member's name


def step(live: Sequence[Member], given: Sequence[Given], rows: Tensor, number: int, common: Common) -> Tensor:
    """One optimiser step of the live members on documents rows (B,).

    given: for each member the rows' condition and groups. `number` counts steps and seeds dropout. Returns
    nats (H,) summed over this process's tokens.
    """
    data, weight, settings, processes, optimisers = common
    updates = []
    for member, (condition, _) in zip(live, given):
        with own_dropout(member.head, member.seed + number, data.device):
            updates.append(member.head.factors(condition))  # down (G, R, C), up (G, V, R)
    tokens, nats = data.tokens(rows), torch.zeros(len(live), device=data.device)
    share = torch.arange(len(rows))[processes.index :: processes.count]
    pieces = data.pieces(rows[share])
    for places in pieces:
        at, more = share[places], places is not pieces[-1]  # (b,) places in `rows`
        h, target, row = data.batch(rows[at])  # (M, C), (M,), (M,)
        groups = groups_of(given, updates, at[row])  # (M,) each
        nll = head_losses(h, target, weight, updates, groups, settings.scale)  # (H,)
        (nll / tokens).sum().backward(retain_graph=more)  # heads share nothing; pieces share the updates
        nats = nats + nll.detach()
        del h, nll  # and with them a piece's activations, before the next piece makes its own
    processes.sum_gradients([p for m in live for p in m.head.parameters() if p.requires_grad])
    for member in live:
        optimisers[member.name].step()
        optimisers[member.name].zero_grad(set_to_none=True)
    return nats


def conditions_of(sources: Sequence[Source | None], arrangement: Arrangement, rows: Tensor) -> list[Given]:
    """What each source gives for documents rows (B,); a source that heads share is called once."""
    given = {id(source): source and source(arrangement, rows) for source in sources}
    return [given[id(source)] or (None, None) for source in sources]


def groups_of(
    given: Sequence[Given], updates: Sequence[HeadUpdate | None], at: Tensor
) -> list[Tensor | None]:
    """For each head the group (M,) of states of rows `at` (M,) of the batch; None where it has one update.

    They stay on the host, where they make no step wait for a GPU; heads with one source share one tensor.
    """
    spread = {id(group): group.cpu()[at] for _, group in given if group is not None}
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
    """Train every member in place and leave each with its best validation state; curves hold nats per token.

    Each epoch's order is cut into steps of settings.rows_per_step documents, as the validation order is into
    batches. A member whose loss becomes NaN or infinite is stopped, and its `failure` says at which epoch;
    RunFailed where that leaves no member with a usable state. `over`, which only the study sets, is how
    reported losses are averaged (ValueError as in `average`), so which state is best; no gradient changes.
    """
    optimisers = {m.name: _optimiser(m, settings) for m in members}
    common = Common(train, weight, settings, processes or Processes(), optimisers)
    for member in members:
        member.head.train()  # evaluation puts a head back into the mode it was in
    check = (common._replace(data=validation), validation_order, over)
    _validate(members, *check, 0.0, [None] * len(members))
    show = progress and not common.processes.index
    look = {"unit": "step", "leave": False, "disable": None if show else True}  # None: if no terminal
    recorded, number = engine.fast("replayed", worth=train.device.type == "cuda") or nullcontext, 0
    with recorded(step) as take_step:
        for epoch in range(settings.epochs):
            arrangement = orders(epoch)
            batches = arrangement.steps(settings.rows_per_step)
            stops = _validation_steps(len(batches), settings.validations_per_epoch)
            total, tokens = 0.0, 0  # since the last validation, on the device: no step waits for it
            bar = tqdm(batches, f"epoch {epoch + 1}/{settings.epochs}", **look)
            for done, rows in enumerate(bar, start=1):
                if not (live := [m for m in members if m.live]):
                    break
                number += 1
                given = conditions_of([m.source for m in live], arrangement, rows)
                nats, count = take_step(live, given, rows, number, common), train.tokens(rows)
                if over == "batch":  # a batch counts once, as its mean
                    nats, count = nats / count, 1
                total, tokens = total + nats, tokens + count
                if done in stops:
                    means = [nats / tokens for nats in common.processes.sum(total).tolist()]
                    _validate(live, *check, epoch + done / len(batches), means)
                    total, tokens = 0.0, 0
    _restore(members)


def _optimiser(member: Member, settings: TrainSettings) -> torch.optim.Optimizer:
    parameters = [p for p in member.head.parameters() if p.requires_grad]
    for p in parameters:
        p.grad = None
    gpu = all(p.is_cuda for p in parameters)
    return torch.optim.AdamW(
        parameters, lr=member.learning_rate, weight_decay=settings.weight_decay, fused=gpu, capturable=gpu
    )


def _validation_steps(steps: int, times: int) -> set[int]:
    return {max(1, round(steps * (i + 1) / times)) for i in range(times)}


def _validate(members, common: Common, arrangement: Arrangement, over: str, epoch: float, train_nll) -> None:
    """Evaluate every member and keep its best state; stop it out of patience, or with a loss not finite."""
    data, weight, settings, processes, _ = common
    heads, rows = [(m.head, m.validation_source) for m in members], settings.rows_per_step
    nll = evaluate(heads, data, arrangement, weight, rows=rows, scale=settings.scale, processes=processes)
    means = average(nll, data.counts, over, arrangement.steps(rows)).tolist()
    for member, training, value in zip(members, train_nll, means):
        member.curve.append({"epoch": epoch, "train_nll": training, "validation_nll": value})
        if not math.isfinite(value) or (training is not None and not math.isfinite(training)):
            member.live, member.failure = False, f"the loss was not finite at epoch {epoch:.2f}"
        elif value < member.best:
            member.best, member.best_epoch, member.misses = value, epoch, 0
            member.state = copy.deepcopy(member.head.state_dict())
        else:
            member.misses += 1
            member.live = member.misses <= settings.patience


def _restore(members: Sequence[Member]) -> None:
    for member in members:
        if member.state:
            member.head.load_state_dict(member.state)
    failed = [m for m in members if m.failure and not m.state]
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

    The arrangement is cut into batches of `rows` documents, unless it was given as batches. Heads are read in
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
            for places in data.pieces(batch):
                documents = batch[places]
                h, target, row = data.batch(documents)
                nll = token_losses(h, target, weight, updates, groups_of(given, updates, places[row]), scale)
                if watch is not None:
                    watch(nll, documents[row].to(nll.device))
                # By segment, not by scattered additions: a GPU repeats itself. unsafe: a check would wait.
                sums = {"lengths": data.counts[documents].to(out.device), "axis": 0, "unsafe": True}
                nll = nll.to(out.device).double().T.contiguous()  # (M, H)
                nll = torch.segment_reduce(nll, "sum", **sums)  # (b, H)
                out[:, documents.to(out.device)] = nll.T
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
