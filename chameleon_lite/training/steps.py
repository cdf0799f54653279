"""One optimiser step of every live head of a cohort, and what its heads are told.

    rows ─ conditions, dropout masks, h, targets ─▶ work: factors ─ one pass for all heads ─ gradients ─ AdamW a head

On a GPU the work of a step is recorded once for each number of positions and set of live heads, and replayed (see
`recorder.py`): positions are filled up to a few numbers, and dropout masks are drawn beforehand. A step in which a head
has several updates, and one that processes share, is done plainly.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from ..batches import Arrangement
from ..conditions import Source
from ..config import TrainSettings
from ..model.head_loss import HeadWeight, RowGroups, head_losses
from ..model.heads.dropout import Dropout, active
from ..model.heads.interface import Condition, Head, HeadUpdate
from .processes import Processes
from .recorder import Recorder
from .scored import ScoredStates


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
        recorded = self.recorder is not None and not any(groups) and all(_can_give(m.head) for m in live)
        room = [roomy(int(self.train.counts[rows[share]].sum()))] if recorded else []
        h, target, _ = self.train.batch(rows[share], *room)
        with own_dropout([m.head for m in live], self.train.device) as seed_dropout:
            if recorded:
                nll = self._recorded(live, number, told, (h, target), total, seed_dropout)
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
        groups: list[RowGroups | None],
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
) -> tuple[list[Condition | None], list[RowGroups | None]]:
    """Each head's condition for a batch of documents, and the groups of the positions where there are several.

    `share`: those of the documents whose positions this process computes. Heads that share a condition source, as one
    regime's learning rates do, ask it once.
    """
    known: dict[int, tuple] = {}
    for _, condition_of in heads:
        if id(condition_of) not in known:
            condition, group = condition_of(arrangement, rows) if condition_of is not None else (None, None)
            if group is not None:
                group = RowGroups.of_documents(group[share], data.counts[rows[share]], data.device)
            known[id(condition_of)] = condition, group
    told = [known[id(condition_of)] for _, condition_of in heads]
    return [condition for condition, _ in told], [group for _, group in told]


def roomy(count: int) -> int:
    """The number of positions that a step of `count` is filled up to: few different ones, and little added."""
    step = 64 if count <= 1_024 else 256 if count <= 4_096 else 1_024
    return -(-count // step) * step


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
