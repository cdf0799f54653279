"""Heads trained on hidden states, several at once on the same batches.

    arrangement of an epoch ─▶ rows ─▶ h, targets ─ each head's logits with its own update ─▶ nats ─ AdamW per head

Heads that share batches form a cohort: states are read once per step for all of them (and the fast form of the loss
computes h Wᵀ once). Nothing else is shared, so each head ends where it would have ended alone. Learning rate, early
stop and best state are per head. With several processes each takes a share of the documents of every step; gradients
are summed over processes and divided by the global token count, so the result is that of one process.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from . import engine
from .batches import Arrangement
from .conditions import Source, conditions_of, groups_of
from .errors import RunFailed
from .heads import Head
from .loss import HeadWeight, head_losses, token_losses
from .processes import Processes
from .settings import TrainSettings
from .states import ScoredStates

Orders = Callable[[int], Arrangement]  # epoch number ─▶ the order of that epoch's documents


@dataclass
class Member:
    """One head in a cohort, and the course of its training."""

    name: str
    head: Head
    condition: Source | None
    validation_condition: Source | None
    learning_rate: float
    seed: int = 0  # of the head's dropout, so that it does not depend on the rest of the cohort
    live: bool = True
    best: float = math.inf  # nats per token on validation
    best_epoch: float = 0.0
    misses: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    curve: list[dict] = field(default_factory=list)  # one entry per validation
    failure: str | None = None


def step(live, arrangement, rows, number, data, weight, settings, optimisers, processes) -> Tensor:
    """One optimiser step of the live members on documents rows (B,): nats (H,), summed over this process's tokens.

    `number` counts steps and seeds dropout; `data` gives the states of the rows, at once or in pieces.
    """
    updates, conditions = [], conditions_of([m.condition for m in live], arrangement, rows)
    for member, (condition, _) in zip(live, conditions):
        with own_dropout(member.head, member.seed + number, data.device):
            updates.append(member.head.factors(condition))  # down (G, R, C), up (G, V, R)
    tokens, nats = data.tokens(rows), torch.zeros(len(live), device=data.device)
    share = torch.arange(len(rows))[processes.index :: processes.count]
    pieces = data.pieces(rows[share])
    for places in pieces:
        at, more = share[places], places is not pieces[-1]  # (b,) places in `rows`
        h, target, row = data.batch(rows[at])  # (M, C), (M,), (M,)
        groups = groups_of(conditions, updates, at[row])  # (M,) each
        nll = head_losses(h, target, weight, updates, groups, settings.scale)  # (H,)
        (nll / tokens).sum().backward(retain_graph=more)  # heads share nothing; pieces share the updates
        nats = nats + nll.detach()
        del h, nll  # and with them a piece's activations, before the next piece makes its own
    processes.sum_gradients([p for m in live for p in m.head.parameters() if p.requires_grad])
    for member in live:
        optimisers[member.name].step()
        optimisers[member.name].zero_grad(set_to_none=True)
    return nats


@contextmanager
def own_dropout(head: Head, seed: int, device: torch.device) -> Iterator[None]:
    """Seed what the head drops inside the block; the device's generator is left as it was."""
    if not any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in head.modules()):
        yield
        return
    # Not torch.manual_seed: without a GPU that keeps a stack trace of every call for a later start of CUDA.
    generator = torch.default_generator
    if device.type == "cuda":
        generator = torch.cuda.default_generators[device.index or 0]
    before = generator.get_state()
    try:
        generator.manual_seed(seed)
        yield
    finally:
        generator.set_state(before)


def train_heads(
    members: Sequence[Member],
    train: ScoredStates,
    orders: Orders,
    validation: ScoredStates,
    validation_order: Arrangement,
    weight: HeadWeight,
    settings: TrainSettings,
    processes: Processes | None = None,
    progress: bool = True,
    over: str = "token",
) -> None:
    """Train every member in place and leave each with its best validation state; curves hold nats per token.

    Each epoch's order is cut into steps of settings.rows_per_step documents, as the validation order is into batches.
    `over` ("token" or "batch", see `average`) is how reported losses are averaged, and so which state is best; every
    gradient is that of the mean over its step's tokens.
    A member whose loss becomes NaN or infinite is stopped, and its `failure` says at which epoch; RunFailed where
    that leaves no member with a usable state. ValueError as in `average`.
    """
    processes, number = processes or Processes(), 0
    optimisers = {m.name: _optimiser(m, settings) for m in members}
    for member in members:
        member.head.train()  # evaluation puts a head back into the mode it was in
    check = (validation, validation_order, weight, settings, processes, over)
    _validate(members, *check, 0.0, [None] * len(members))
    recorded = engine.fast("replayed", worth=train.device.type == "cuda") or nullcontext
    with recorded(step) as take_step:
        for epoch in range(settings.epochs):
            arrangement = orders(epoch)
            batches = arrangement.steps(settings.rows_per_step)
            stops = _validation_steps(len(batches), settings.validations_per_epoch)
            total, tokens = 0.0, 0  # since the last validation, on the device: no step waits for it
            bar = _bar(batches, f"epoch {epoch + 1}/{settings.epochs}", progress and not processes.index)
            for done, rows in enumerate(bar, start=1):
                if not (live := [m for m in members if m.live]):
                    break
                number += 1
                state = (train, weight, settings, optimisers, processes)
                nats, count = take_step(live, arrangement, rows, number, *state), train.tokens(rows)
                if over == "batch":  # a batch counts once, as its mean
                    nats, count = nats / count, 1
                total, tokens = total + nats, tokens + count
                if done in stops:
                    means = [nats / tokens for nats in processes.sum(total).tolist()]
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


def _bar(batches: Sequence[Tensor], text: str, show: bool) -> Iterable[Tensor]:
    """The batches behind a progress bar, silent where the output is not a terminal."""
    from tqdm import tqdm

    return tqdm(batches, desc=text, unit="step", leave=False, disable=None if show else True)


def _validate(members, data, arrangement, weight, settings, processes, over, epoch, train_nll) -> None:
    """Evaluate every member and keep its best state; stop it without patience left, or with a loss not finite."""
    heads, rows = [(m.head, m.validation_condition) for m in members], settings.rows_per_step
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
    data: ScoredStates,
    arrangement: Arrangement,
    weight: HeadWeight,
    *,
    rows: int | None = None,
    scale: float = 1.0,
    processes: Processes | None = None,
    watch: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Per-document nll sums (H, N) in float64 nats; a head of None is the frozen model.

    `rows` per batch cut the arrangement, unless it was given as batches. `watch` is called with token losses (H, M)
    and their document numbers (M,), each document's side by side. Heads are read in eval mode and left in the mode
    they were in. A head that ignores its condition gets the same numbers from any batches; documents in no batch
    stay 0.
    """
    processes = processes or Processes()
    out = torch.zeros(len(heads), data.documents, dtype=torch.float64, device=data.device)
    with torch.no_grad(), in_eval_mode([head for head, _ in heads if head is not None]):
        for batch in arrangement.steps(rows)[processes.index :: processes.count]:
            conditions = conditions_of([source for _, source in heads], arrangement, batch)
            updates = [head and head.factors(c) for (head, _), (c, _) in zip(heads, conditions)]
            for places in data.pieces(batch):
                documents = batch[places]
                h, target, row = data.batch(documents)
                groups = groups_of(conditions, updates, places[row])
                nll = token_losses(h, target, weight, updates, groups, scale)  # (H, M)
                if watch is not None:
                    watch(nll, documents[row].to(nll.device))
                # By segment, not by scattered additions: a GPU repeats itself. unsafe: a check would make it wait.
                sums = {"lengths": data.counts[documents].to(out.device), "axis": 0, "unsafe": True}
                nll = torch.segment_reduce(nll.double().T.contiguous(), "sum", **sums)  # (b, H)
                out[:, documents.to(out.device)] = nll.T
    return processes.sum(out)


@contextmanager
def in_eval_mode(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Modules in eval mode, and afterwards, whatever happens, in the mode they were in."""
    modes = [(module, module.training) for module in modules]
    for module, _ in modes:
        module.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.train(mode)


def average(
    nll: Tensor, counts: Tensor, over: str = "token", batches: Sequence[Tensor] | None = None
) -> Tensor:
    """nll sums (…, N) and token counts (N,) to nats per token (…).

    over="token" divides the sums once; over="batch" is the released scripts' unweighted mean over batches of
    per-batch means (audit, row 7), which depends on how documents were batched.
    ValueError for any other `over`, and for "batch" without batches.
    """
    counts = counts.to(nll)
    if over == "token":
        return nll.sum(-1) / counts.sum()
    if over != "batch" or batches is None:
        raise ValueError('average: over is "token", or "batch" together with the batches')
    means = [nll[..., b].sum(-1) / counts[b].sum() for b in batches]
    return torch.stack(means, -1).mean(-1)
