"""fit and evaluate: heads trained on frozen hidden states, several at once on the same batches.

    batches of an epoch ─▶ h, targets, rows ─ one base GEMM, every live head's own update ─▶ nll sums ─ AdamW a head

Heads that share batches form a cohort: the large product h Wᵀ is done once a step for all of them, and since
nothing else is shared, each head ends where it would have ended alone. Learning rate, early stop and best
state are kept per head. With several processes each takes a share of every step's documents; gradients are
summed over processes and divided by the global token count, so the result is one process's.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..config import TrainSettings
from ..errors import RunFailed
from ..model.head_loss import HeadWeight, RowGroups, head_losses, token_losses
from ..model.heads.interface import Condition, Head, HeadUpdate
from .processes import Processes
from .scored import ScoredStates

# rows (B,) in the order of the step ─▶ the condition's groups and each row's group (B,), or None for one group
ConditionOf = Callable[[Tensor], tuple[Condition, Tensor | None]]
Epochs = Callable[[int], Sequence[Tensor]]  # epoch number ─▶ that epoch's batches of document numbers


@dataclass
class Member:
    """One head in a cohort, and what is known of its training."""

    name: str
    head: Head
    condition: ConditionOf
    validation_condition: ConditionOf
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
    epochs: Epochs,
    validation: ScoredStates,
    validation_batches: Sequence[Tensor],
    weight: HeadWeight,
    settings: TrainSettings,
    processes: Processes | None = None,
    progress: bool = True,
    over: str = "token",
) -> None:
    """Train every member in place and leave each with its best validation state.

    `over` is how losses are averaged, "token" or "batch" (see `average`), in training and in validation.
    Raises nothing for a member whose loss stops being finite: it is stopped and its `failure` says at which step.
    """
    processes = processes or Processes()
    optimisers = {m.name: _optimiser(m, settings) for m in members}
    _validate(members, validation, validation_batches, weight, settings, processes, 0.0, {}, over)
    number = 0
    for epoch in range(settings.epochs):
        batches = epochs(epoch)
        stops = _validation_steps(len(batches), settings.validations_per_epoch)
        sums = _Sums(members, over)
        for step, rows in enumerate(
            steps_bar(batches, f"epoch {epoch + 1}/{settings.epochs}", progress, processes), start=1
        ):
            live = [m for m in members if m.live]
            if not live:
                return _restore(members)
            number += 1
            _step(live, optimisers, train, rows, weight, settings, processes, sums, number)
            if step in stops:
                at = epoch + step / len(batches)
                means = sums.take(processes)
                _validate(live, validation, validation_batches, weight, settings, processes, at, means, over)
    _restore(members)


def evaluate(
    heads: Sequence[tuple[Head | None, ConditionOf | None]],
    data: ScoredStates,
    batches: Sequence[Tensor],
    weight: HeadWeight,
    *,
    scale: float = 1.0,
    processes: Processes | None = None,
    watch: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Per-document nll sums (heads, N) in float64 nats; a head of None is the frozen model.

    `watch` is shown every batch's token losses (heads, M) and their document numbers (M,), ascending in the batch.

    A head that ignores its condition gets the same numbers from any batches; documents in no batch stay 0.
    """
    processes = processes or Processes()
    out = torch.zeros(len(heads), data.documents, dtype=torch.float64, device=data.device)
    modes = [(h, h.training) for h, _ in heads if h is not None]
    for head, _ in modes:
        head.eval()
    with torch.no_grad():
        for batch in batches[processes.index :: processes.count]:
            h, target, row = data.batch(batch)
            updates, groups = _updates(heads, batch, data)
            nll = token_losses(h, target, weight, updates, groups=groups, scale=scale)  # (heads, M)
            if watch is not None:
                watch(nll, batch.to(row.device)[row])
            out[:, batch.to(out.device)] = _by_row(nll.double(), data.counts[batch].to(out.device))
    for head, mode in modes:
        head.train(mode)
    return processes.sum(out)


def average(nll: Tensor, counts: Tensor, over: str = "token", batches: Sequence[Tensor] | None = None) -> Tensor:
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


class _Sums:
    """Training nll and tokens a head since the last validation, kept on the device: no wait in a step."""

    def __init__(self, members: Sequence[Member], over: str = "token") -> None:
        self.names, self.over = [m.name for m in members], over
        self.nll: dict[str, Tensor] = {}
        self.tokens: dict[str, int] = {}

    def add(self, names: list[str], nll: Tensor, tokens: int) -> None:
        if self.over == "batch":  # a batch counts once, as its mean
            nll, tokens = nll / tokens, 1
        for name, value in zip(names, nll.detach()):
            self.nll[name] = self.nll.get(name, 0) + value
            self.tokens[name] = self.tokens.get(name, 0) + tokens

    def take(self, processes: Processes) -> dict[str, float]:
        """Mean nll by member, over the tokens of all processes; starts anew."""
        if not self.nll:
            return {}
        sums = processes.sum(torch.stack([*self.nll.values()])).tolist()
        out = {name: value / self.tokens[name] for name, value in zip(self.nll, sums)}
        self.nll, self.tokens = {}, {}
        return out


def _step(
    live: list[Member],
    optimisers,
    train: ScoredStates,
    rows: Tensor,
    weight: HeadWeight,
    settings: TrainSettings,
    processes: Processes,
    sums: "_Sums",
    number: int,
) -> None:
    """One optimiser step of every live member on one batch of documents."""
    total = int(train.counts[rows].sum())
    share = slice(processes.index, None, processes.count)
    h, target, _ = train.batch(rows[share])
    for member in live:
        member.head.train()
        optimisers[member.name].zero_grad(set_to_none=True)
    heads = [(m.head, m.condition) for m in live]
    updates, groups = _updates(heads, rows, train, [m.seed + number for m in live], share)
    nll = head_losses(h, target, weight, updates, groups=groups, scale=settings.scale)  # (heads,)
    (nll / total).sum().backward()
    processes.sum_gradients([p for m in live for p in m.head.parameters() if p.requires_grad])
    for member in live:
        optimisers[member.name].step()
    sums.add([m.name for m in live], nll, total)


def _updates(
    heads, rows: Tensor, data: ScoredStates, seeds: Sequence[int] | None = None, share: slice = slice(None)
) -> tuple[list[HeadUpdate | None], list[RowGroups | None]]:
    """Each head's update for a batch of documents, and the groups of the positions where there are several.

    `share`: those of the documents whose positions this process computes. Heads that share a condition source, as one
    regime's learning rates do, ask it once.
    """
    told: dict[int, tuple] = {}
    updates, groups = [], []
    with _own_dropout(seeds is not None, data.device) as seed_dropout:
        for index, (head, condition_of) in enumerate(heads):
            if id(condition_of) not in told:
                condition, group = condition_of(rows) if condition_of is not None else (None, None)
                if group is not None:
                    group = RowGroups.of_documents(group[share], data.counts[rows[share]], data.device)
                told[id(condition_of)] = condition, group
            condition, group = told[id(condition_of)]
            if head is None:
                updates.append(None)
                groups.append(None)
                continue
            if seeds is not None:
                seed_dropout(head, seeds[index])
            update = head.factors(condition)
            updates.append(update)
            groups.append(group if update.groups > 1 else None)
    return updates, groups


@contextmanager
def _own_dropout(active: bool, device: torch.device) -> Iterator[Callable[[Head, int], None]]:
    """A function that seeds a head's dropout; the global generators are left as they were."""

    def seed_dropout(head: Head, seed: int) -> None:
        if any(isinstance(m, nn.Dropout) and m.p > 0 for m in head.modules()):
            generator.manual_seed(seed)

    if not active:
        yield seed_dropout
        return
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        # Not torch.manual_seed: without a GPU that keeps a stack trace of every call for a later start of CUDA.
        generator = torch.cuda.default_generators[device.index or 0] if cuda else torch.default_generator
        yield seed_dropout


def _optimiser(member: Member, settings: TrainSettings) -> torch.optim.Optimizer:
    parameters = [p for p in member.head.parameters() if p.requires_grad]
    fused = all(p.is_cuda for p in parameters)
    return torch.optim.AdamW(parameters, lr=member.learning_rate, weight_decay=settings.weight_decay, fused=fused)


def _validate(
    members, data, batches, weight, settings, processes, epoch: float, train_nll: dict[str, float], over: str = "token"
) -> None:
    """Measure every member, keep the best state, and stop those that ran out of patience or left the numbers."""
    nll = evaluate(
        [(m.head, m.validation_condition) for m in members],
        data,
        batches,
        weight,
        scale=settings.scale,
        processes=processes,
    )
    means = average(nll, data.counts, over, batches).tolist()
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


def steps_bar(batches: Sequence[Tensor], text: str, progress: bool, processes: Processes | None) -> Iterator[Tensor]:
    """The batches behind a progress bar, which the first process alone shows."""
    from tqdm import tqdm

    show = progress and (processes is None or processes.index == 0)
    return tqdm(batches, desc=text, unit="step", leave=False, disable=None if show else True)
