"""fit and evaluate: heads trained on frozen hidden states, several at once on the same batches.

    batches of an epoch ─▶ h, targets, rows ─ one base GEMM, every live head's own update ─▶ nll sums ─ AdamW a head

Heads that share batches form a cohort: the large product h Wᵀ is done once a step for all of them, and since
nothing else is shared, each head ends where it would have ended alone. Learning rate, early stop and best
state are kept per head. With several processes each takes a share of every step's documents; gradients are
summed over processes and divided by the global token count, so the result is one process's.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..batches import Arrangement
from ..conditions import Source
from ..config import TrainSettings
from ..errors import RunFailed
from ..model.head_loss import HeadWeight, token_losses
from ..model.heads.interface import Head
from .processes import Processes
from .recorder import Recorder
from .scored import ScoredStates
from .steps import Steps, tell

Orders = Callable[[int], Arrangement]  # epoch number ─▶ the order of that epoch's documents


@dataclass
class Member:
    """One head in a cohort, and what is known of its training."""

    name: str
    head: Head
    condition: Source
    validation_condition: Source
    learning_rate: float
    seed: int = 0  # of the head's dropout, so that it does not depend on who else is in the cohort
    live: bool = True
    best: float = math.inf  # nats a token on validation
    best_epoch: float = 0.0
    misses: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    curve: list[dict] = field(default_factory=list)  # one entry a validation
    failure: str | None = None


def fit(
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
    recorder: Recorder | None = None,
) -> None:
    """Train every member in place and leave each with its best validation state.

    Each epoch's order is cut into steps of settings.rows_per_step documents, as the validation order is into batches.
    `over` is how losses are averaged, "token" or "batch" (see `average`), in training and in validation.
    `recorder`: what steps are recorded with and replayed from; by default one process on a GPU has its own.
    Raises nothing for a member whose loss stops being finite: it is stopped and its `failure` says at which step.
    """
    processes = processes or Processes()
    if recorder is None and train.device.type == "cuda" and processes.count == 1:
        recorder = Recorder(train.device)
    run = Steps(members, train, weight, settings, processes, over, recorder)
    for member in members:
        member.head.train()  # readings put a head back into the mode it was in
    check = (validation, validation_order, weight, settings, processes, over)
    _validate(members, *check, 0.0, {})
    number = 0
    for epoch in range(settings.epochs):
        arrangement = orders(epoch)
        batches = arrangement.steps(settings.rows_per_step)
        stops = _validation_steps(len(batches), settings.validations_per_epoch)
        for step, rows in enumerate(
            steps_bar(batches, f"epoch {epoch + 1}/{settings.epochs}", progress, processes), start=1
        ):
            live = [m for m in members if m.live]
            if not live:
                return _end(run, members)
            number += 1
            run(live, arrangement, rows, number)
            if step in stops:
                at = epoch + step / len(batches)
                _validate(live, *check, at, run.sums.take(processes))
    _end(run, members)


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
    """Per-document nll sums (heads, N) in float64 nats; a head of None is the frozen model.

    `rows` per batch cut the arrangement, unless it was given as batches. `watch` is called with every batch's token
    losses (heads, M) and their document numbers (M,), ascending in the batch. Heads are read in eval mode and left
    in the mode they were in. A head that ignores its condition gets the same numbers from any batches; documents in
    no batch stay 0.
    """
    processes = processes or Processes()
    out = torch.zeros(len(heads), data.documents, dtype=torch.float64, device=data.device)
    with torch.no_grad(), in_eval_mode([head for head, _ in heads if head is not None]):
        for batch in arrangement.steps(rows)[processes.index :: processes.count]:
            h, target, row = data.batch(batch)
            told, groups = tell(heads, arrangement, batch, data)
            updates = [
                None if head is None else head.factors(condition) for (head, _), condition in zip(heads, told)
            ]
            groups = [None if u is None or u.groups == 1 else g for u, g in zip(updates, groups)]
            nll = token_losses(h, target, weight, updates, groups=groups, scale=scale)  # (heads, M)
            if watch is not None:
                watch(nll, batch.to(row.device)[row])
            out[:, batch.to(out.device)] = _by_row(nll.double(), data.counts[batch].to(out.device))
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
    """nll sums (…, N) and token counts (N,) to nats a token (…).

    over="token" divides the sums once; over="batch" is the released scripts' unweighted mean over batches of
    per-batch means (audit, row 7), which depends on how documents were batched.
    """
    counts = counts.to(nll)
    if over == "token":
        return nll.sum(-1) / counts.sum()
    if over != "batch" or batches is None:
        raise ValueError('average: over is "token", or "batch" together with the batches')
    means = [nll[..., b].sum(-1) / counts[b].sum() for b in batches]
    return torch.stack(means, -1).mean(-1)


def _validate(
    members: Sequence[Member],
    data: ScoredStates,
    arrangement: Arrangement,
    weight: HeadWeight,
    settings: TrainSettings,
    processes: Processes,
    over: str,
    epoch: float,
    train_nll: dict[str, float],
) -> None:
    """Measure every member, keep the best state, and stop heads without patience left or with a loss not finite."""
    nll = evaluate(
        [(m.head, m.validation_condition) for m in members],
        data,
        arrangement,
        weight,
        rows=settings.rows_per_step,
        scale=settings.scale,
        processes=processes,
    )
    means = average(nll, data.counts, over, arrangement.steps(settings.rows_per_step)).tolist()
    for member, value in zip(members, means):
        training = train_nll.get(member.name)
        member.curve.append({"epoch": epoch, "train_nll": training, "validation_nll": value})
        if not math.isfinite(value) or (training is not None and not math.isfinite(training)):
            member.live, member.failure = False, f"the loss was not finite at epoch {epoch:.2f}"
        elif value < member.best:
            member.best, member.best_epoch, member.misses = value, epoch, 0
            member.state = copy.deepcopy(member.head.state_dict())
        else:
            member.misses += 1
            member.live = member.misses <= settings.patience


def _end(run: Steps, members: Sequence[Member]) -> None:
    run.finish()
    _restore(members)


def _restore(members: Sequence[Member]) -> None:
    for member in members:
        if member.state:
            member.head.load_state_dict(member.state)
    failed = [m for m in members if m.failure and not m.state]
    if failed and len(failed) == len(members):
        raise RunFailed(f"{failed[0].name}: {failed[0].failure}; lower its learning rate")


def _validation_steps(steps: int, times: int) -> set[int]:
    return {max(1, round(steps * (i + 1) / times)) for i in range(times)}


def _by_row(nll: Tensor, lengths: Tensor) -> Tensor:
    """nll (heads, M), rows one after another, summed by row (B,) to (heads, B); no atomics, so a GPU repeats itself.

    unsafe: the lengths are right, and looking at them would make the host wait for the device.
    """
    return torch.segment_reduce(nll.T.contiguous(), "sum", lengths=lengths, axis=0, unsafe=True).T


def steps_bar(
    batches: Sequence[Tensor], text: str, progress: bool, processes: Processes | None
) -> Iterator[Tensor]:
    """The batches behind a progress bar, which the first process alone shows."""
    from tqdm import tqdm

    show = progress and (processes is None or processes.index == 0)
    return tqdm(batches, desc=text, unit="step", leave=False, disable=None if show else True)
