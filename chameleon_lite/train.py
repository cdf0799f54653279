"""Heads trained on hidden states, several at once on the same batches.

    arrangement of an epoch ─▶ rows ─▶ h, targets ─ one base product, each head's own update ─▶ nats ─ AdamW per head

Heads that share batches form a cohort: the large product h Wᵀ is done once per step for all of them, and since
nothing else is shared, each head ends where it would have ended alone. Learning rate, early stop and best state are
kept per head. With several processes each takes a share of the documents of every step; gradients are summed over
processes and divided by the global token count, so the result is that of one process.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batches import Arrangement
from .conditions import Source
from .errors import RunFailed
from .fast.recorder import Dropout, Recorder, active, maskable
from .heads import Condition, Head, HeadUpdate
from .loss import HeadWeight, head_losses, token_losses
from .processes import Processes
from .settings import TrainSettings
from .states import ScoredStates
from .text import IGNORED


class Steps:
    """The steps of one `fit`: optimisers, recordings, and the training losses since they were last asked for."""

    def __init__(
        self,
        members: Sequence,
        train: ScoredStates,
        weight: HeadWeight,
        settings: TrainSettings,
        processes: Processes,
        over: str,
        recorder: Recorder | None,
    ) -> None:
        self.train, self.weight, self.settings, self.processes = train, weight, settings, processes
        # States that are computed anew for every batch may carry gradients on to the layers: a copy would not.
        can = isinstance(train, ScoredStates) and recorder is not None and recorder.limit > 0
        self.recorder = recorder if can else None
        if self.recorder is not None:
            for member in members:
                maskable(member.head)
        self.living: tuple[str, ...] = ()
        self.sums = Sums(over)
        self.run = (
            object()
        )  # part of every key: heads of the same names in another run must not meet these recordings
        self.optimisers = {m.name: _optimiser(m, settings) for m in members}

    def __call__(self, live: Sequence, arrangement: Arrangement, rows: Tensor, number: int) -> None:
        """Step `number` of every member of `live` on a batch of documents (B,)."""
        if self.recorder is not None and self.living != (names := tuple(m.name for m in live)):
            self.recorder.forget()  # a head that stopped does not come back, and neither do steps with it
            self.living = names
        total = int(self.train.counts[rows].sum())
        share = slice(self.processes.index, None, self.processes.count)
        told, groups = tell([(m.head, m.condition) for m in live], arrangement, rows, self.train, share)
        recorded = (
            self.recorder is not None
            and all(g is None for g in groups)
            and all(_can_give(m.head) for m in live)
        )
        h, target, _ = self.train.batch(rows[share])
        with own_dropout([m.head for m in live], self.train.device) as seed_dropout:
            if recorded:
                nll = self._recorded(live, number, told, filled(h, target), total, seed_dropout)
            else:
                updates = []
                for member, condition in zip(live, told):
                    seed_dropout(member.head, member.seed + number)
                    updates.append(member.head.factors(condition))
                nll = self._work(live, updates, groups, h, target, total)
        self.sums.add(tuple(m.name for m in live), nll, total)

    def finish(self) -> None:
        """Let go of recordings, and of gradients that lie in their memory."""
        if self.recorder is not None:
            self.recorder.forget()
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)

    def _work(
        self,
        live: Sequence,
        updates: list[HeadUpdate],
        groups: list[Tensor | None],
        h: Tensor,
        target: Tensor,
        total: int | Tensor,
    ) -> Tensor:
        """From the heads' updates to stepped parameters; sums of nats (K,)."""
        groups = [g if u.groups > 1 else None for u, g in zip(updates, groups)]
        nll = head_losses(h, target, self.weight, updates, groups=groups, scale=self.settings.scale)  # (K,)
        parameters = [p for m in live for p in m.head.parameters() if p.requires_grad]
        gradients = torch.autograd.grad((nll / total).sum(), parameters, allow_unused=True)
        for p, gradient in zip(parameters, gradients):
            p.grad = (
                None if gradient is None else gradient.contiguous()
            )  # fused steps want the parameter's own order
        self.processes.sum_gradients(parameters)
        for member in live:
            self.optimisers[member.name].step()
        return nll.detach()

    def _recorded(
        self,
        live: Sequence,
        number: int,
        told: list[Condition | None],
        pairs: tuple[Tensor, Tensor],
        total: int,
        seed_dropout: Callable[[Head, int], None],
    ) -> Tensor:
        """The same through the recorder: everything that changes from step to step is an input."""
        layers, masks = [active(m.head) for m in live], []
        for member, dropouts, condition in zip(live, layers, told):
            seed_dropout(member.head, member.seed + number)
            masks += [
                layer.draw(1 if condition is None else condition.groups, self.train.device)
                for layer in dropouts
            ]
        distinct = list({id(c): c for c in told if c is not None}.values())
        place = [next((i for i, c in enumerate(distinct) if c is condition), None) for condition in told]
        names = [[name for name, x in vars(c).items() if isinstance(x, Tensor)] for c in distinct]
        fields = [getattr(c, name) for c, own in zip(distinct, names) for name in own]
        count = torch.full((), float(total), device=self.train.device)

        def work(h: Tensor, target: Tensor, count: Tensor, *rest: Tensor) -> Tensor:
            given = iter(rest)
            conditions = [
                replace(c, **{name: next(given) for name in own}) for c, own in zip(distinct, names)
            ]
            updates = []
            for member, dropouts, at in zip(live, layers, place):
                with _masked(dropouts, given):
                    updates.append(member.head.factors(None if at is None else conditions[at]))
            return self._work(live, updates, [None] * len(updates), h, target, count)

        key = (self.run, tuple(m.name for m in live), tuple(place), tuple(map(tuple, names)))
        return self.recorder(key, [*pairs, count, *fields, *masks], work)


class Sums:
    """Training nll and tokens since the last validation, kept on the device: no wait in a step."""

    def __init__(self, over: str = "token") -> None:
        self.over = over
        self.nll: dict[tuple[str, ...], Tensor] = {}  # by the heads that shared a step, (K,)
        self.tokens: dict[tuple[str, ...], int] = {}

    def add(self, names: tuple[str, ...], nll: Tensor, tokens: int) -> None:
        """Nats (K,) of a step over so many tokens."""
        if self.over == "batch":  # a batch counts once, as its mean
            nll, tokens = nll / tokens, 1
        self.nll[names] = self.nll[names] + nll if names in self.nll else nll.clone()
        self.tokens[names] = self.tokens.get(names, 0) + tokens

    def take(self, processes: Processes) -> dict[str, float]:
        """Mean nll by member, over the tokens of all processes; starts anew."""
        if not self.nll:
            return {}
        sums = iter(processes.sum(torch.cat([*self.nll.values()])).tolist())
        nll, tokens = {}, {}
        for names in self.nll:
            for name in names:
                nll[name] = nll.get(name, 0.0) + next(sums)
                tokens[name] = tokens.get(name, 0) + self.tokens[names]
        self.nll, self.tokens = {}, {}
        return {name: value / tokens[name] for name, value in nll.items()}


def tell(
    heads: Sequence[tuple[Head | None, Source | None]],
    arrangement: Arrangement,
    rows: Tensor,
    data: ScoredStates,
    share: slice = slice(None),
) -> tuple[list[Condition | None], list[Tensor | None]]:
    """Each head's condition for a batch of documents, and the group (M,) of each position where there are several.

    `share`: those of the documents whose positions this process computes. Heads that share a condition source, as one
    regime's learning rates do, ask it once. Groups lie on the host: so no step waits for a GPU.
    """
    known: dict[int, tuple] = {}
    for _, condition_of in heads:
        if id(condition_of) not in known:
            condition, group = condition_of(arrangement, rows) if condition_of is not None else (None, None)
            if group is not None:
                # By numpy: PyTorch's own wakes all threads of the processor for a handful of numbers, in every step.
                group = np.repeat(group[share].cpu().numpy(), data.counts[rows[share]].numpy())
                group = torch.from_numpy(group)
            known[id(condition_of)] = condition, group
    told = [known[id(condition_of)] for _, condition_of in heads]
    return [condition for condition, _ in told], [group for _, group in told]


def roomy(count: int) -> int:
    """The number of positions that a step of `count` is filled up to: few different ones, and little added."""
    step = 64 if count <= 1_024 else 256 if count <= 4_096 else 1_024
    return -(-count // step) * step


def filled(h: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """States (M, C) and targets (M,) with positions added that count nothing, up to `roomy` ones."""
    more = roomy(len(target)) - len(target)
    return F.pad(h, (0, 0, 0, more)), F.pad(target, (0, more), value=IGNORED)


@contextmanager
def own_dropout(heads: Sequence[Head], device: torch.device) -> Iterator[Callable[[Head, int], None]]:
    """A function that seeds a head's dropout; the device's generator is left as it was."""
    dropping = {id(head) for head in heads if active(head)}
    if not dropping:
        yield lambda head, seed: None
        return
    # Not torch.manual_seed: without a GPU that keeps a stack trace of every call for a later start of CUDA.
    generator = (
        torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
    )
    before = generator.get_state()
    try:
        yield lambda head, seed: generator.manual_seed(seed) if id(head) in dropping else None
    finally:
        generator.set_state(before)


@contextmanager
def _masked(dropouts: Sequence[Dropout], given: Iterator[Tensor]) -> Iterator[None]:
    for layer in dropouts:
        layer.mask = next(given)
    try:
        yield
    finally:
        for layer in dropouts:
            layer.mask = None


def _can_give(head: Head) -> bool:
    """Whether all that a head drops can be drawn beforehand: its shapes are known once it has made an update."""
    return all(isinstance(layer, Dropout) and layer.seen is not None for layer in active(head))


def _optimiser(member, settings: TrainSettings) -> torch.optim.Optimizer:
    parameters = [p for p in member.head.parameters() if p.requires_grad]
    gpu = all(p.is_cuda for p in parameters)
    return torch.optim.AdamW(
        parameters, lr=member.learning_rate, weight_decay=settings.weight_decay, fused=gpu, capturable=gpu
    )


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
    recorder: Recorder | None = None,
) -> None:
    """Train every member in place and leave each with its best validation state; curves hold nats per token.

    Each epoch's order is cut into steps of settings.rows_per_step documents, as the validation order is into batches.
    `over` is how losses are averaged, "token" or "batch" (see `average`), in training and in validation.
    `recorder`: what steps are recorded with and replayed from; by default one process on a GPU has its own.
    A member whose loss stops being finite is stopped and its `failure` says where; RunFailed if all did, with no state
    to go back to. ValueError as in `average`.
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
    """Evaluate every member, keep the best state; stop heads without patience left or whose loss is not finite."""
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
