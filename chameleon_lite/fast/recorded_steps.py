"""Training steps through the recorder: the plain step of train.py, with all that changes as an input.

    conditions, groups, states, targets, token count, dropout masks ─▶ recorder ─▶ step on one batch ─▶ nats (H,)

A recording draws nothing at random, so masks of dropout are drawn beforehand; positions that count nothing
fill up a step to one of few lengths; where the rows of each group lie is an input. Recorded are steps of one
process on states that were computed beforehand; any other step is taken plainly.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..heads import Condition, Head, by_row, own_dropout
from ..states import ScoredStates, sent
from ..text import IGNORED
from ..train import Common, Member
from .recorded_groups import RecordedGroups, runs_of
from .recorder import Recorder

_using: Recorder | None = None


@contextmanager
def using(recorder: Recorder) -> Iterator[None]:
    """Steps of trainings inside the block go through this recorder; Recorder(device, 0) records none."""
    global _using
    before, _using = _using, recorder
    try:
        yield
    finally:
        _using = before


@contextmanager
def replayed(step: Callable[..., Tensor]) -> Iterator[Callable[..., Tensor]]:
    """`step` of train.py, recorded on a GPU and replayed; recordings end with the block, one training."""
    run = Replayed(step, _using)
    try:
        yield run
    finally:
        if run.recorder is not None:
            run.recorder.forget()


class Replayed:
    """The steps of one training: plain where a step cannot be recorded, else through the recorder."""

    def __init__(self, step: Callable[..., Tensor], recorder: Recorder | None) -> None:
        self.step, self.recorder = step, recorder
        self.living: tuple[str, ...] = ()
        self.shapes: dict[tuple[nn.Dropout, int], torch.Size] = {}  # what a layer drops from, for G groups

    def __call__(self, live: list[Member], given: list, rows: Tensor, number: int, common: Common) -> Tensor:
        """What `step` returns: nats (H,)."""
        if self.recorder is None:
            self.recorder = Recorder(common.data.device)
        if self.living != (names := tuple(m.name for m in live)):
            self.recorder.forget()  # a head that stopped does not come back, and neither do steps with it
            self.living = names
        if common.settings.masks == "row":
            given = by_row(given, len(rows))
            common = common._replace(settings=common.settings.model_copy(update={"masks": "group"}))
        layers = [(layer, groups_in(c)) for m, (c, _) in zip(live, given) for layer in dropping(m.head)]
        # States that are computed anew for every batch carry gradients on to the layers: a copy would not.
        can = self.recorder.limit > 0 and common.processes.count == 1
        can &= isinstance(common.data, ScoredStates)
        can &= all(type(x) is nn.Dropout and not x.inplace for x, _ in layers)  # others may do more
        if not can or any(layer not in self.shapes for layer in layers):
            with self._noting(layers):
                return self.step(live, given, rows, number, common)
        return self._recorded(live, given, rows, number, common)

    def _recorded(self, live, given, rows: Tensor, number: int, common: Common) -> Tensor:
        """The step through the recorder: everything that changes from step to step is an input."""
        data = common.data
        h, target = filled(*data.batch(rows)[:2])
        inputs, kinds = [h, target, torch.full((), float(data.tokens(rows)), device=data.device)], []
        pairs = {(id(c), id(g)): (c, g) for c, g in given}  # heads often share one
        for condition, group in pairs.values():
            names = tuple(n for n, x in vars(condition).items() if isinstance(x, Tensor)) if condition else ()
            inputs += [getattr(condition, name) for name in names]
            each = None
            if group is not None:
                runs, each = runs_of(group, condition.groups, data.counts[rows], len(h))
                inputs.append(sent(runs, data.device))
            kinds.append((names, each))
        place = tuple([*pairs].index((id(c), id(g))) for c, g in given)

        def work(h: Tensor, target: Tensor, count: Tensor, *more: Tensor) -> Tensor:
            more, own = iter(more), []
            for (condition, _), (names, each) in zip(pairs.values(), kinds):
                condition = condition and replace(condition, **{name: next(more) for name in names})
                own.append((condition, None if each is None else RecordedGroups.of(next(more), len(h), each)))
            for optimiser in common.optimisers.values():
                optimiser.zero_grad(set_to_none=True)  # a recording that failed may have left some
            with masked([m.head for m in live], more):
                batch = OneBatch(h, target, count, data.device)
                return self.step(live, [own[i] for i in place], rows, number, common._replace(data=batch))

        masks = [mask for m, (c, _) in zip(live, given) for mask in self._masks(m, number, c, data.device)]
        return self.recorder((self.living, place, tuple(kinds)), [*inputs, *masks], work)

    def _masks(self, member: Member, number: int, condition: Condition | None, device) -> list[Tensor]:
        """A mask for each layer that drops, of the numbers that its own pass would have drawn."""
        groups = groups_in(condition)
        with own_dropout(member.head, member.seed + number, device):
            return [
                F.dropout(torch.ones(self.shapes[layer, groups], device=device), layer.p, training=True)
                for layer in dropping(member.head)
            ]

    @contextmanager
    def _noting(self, layers: Sequence[tuple[nn.Dropout, int]]) -> Iterator[None]:
        """Take down the shapes that the layers drop from: known once a head has made so many updates."""
        groups = dict(layers)

        def note(layer: nn.Dropout, inputs: tuple[Tensor]) -> None:
            self.shapes[layer, groups[layer]] = inputs[0].shape

        with ExitStack() as hooks:
            for layer in groups:
                hooks.enter_context(layer.register_forward_pre_hook(note))
            yield


@dataclass(frozen=True)
class OneBatch:
    """States of one step that are inputs of a recording, as `step` reads them."""

    h: Tensor  # (M, C)
    target: Tensor  # (M,)
    count: Tensor  # () tokens of the step
    device: torch.device

    def tokens(self, rows: Tensor) -> Tensor:
        """The tokens of the step, ()."""
        return self.count

    def pieces(self, rows: Tensor) -> list[Tensor]:
        """One piece, of no documents by number."""
        return [torch.arange(0)]

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h (M, C), target (M,), and no row numbers: groups are spread already."""
        return self.h, self.target, torch.arange(0)


def groups_in(condition: Condition | None) -> int:
    """The number of groups; 1 without a condition."""
    return 1 if condition is None else condition.groups


class Mask(nn.Module):
    """In place of a dropout layer: multiplies by a given mask of zeros and 1 / (1 − p)."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        """x with its dropped numbers at zero; ValueError for a mask of another shape."""
        if self.mask.shape != x.shape:
            raise ValueError(f"a mask of {[*self.mask.shape]} does not fit {[*x.shape]}: draw it anew")
        return x * self.mask


@contextmanager
def masked(heads: Sequence[Head], masks: Iterator[Tensor]) -> Iterator[None]:
    """Heads whose dropout layers use given masks, in the layers' order, inside the block."""
    places = [(head, name, layer) for head in heads for layer, name in dropping(head).items()]
    try:
        for head, name, _ in places:
            head.set_submodule(name, Mask(next(masks)))
        yield
    finally:
        for head, name, layer in places:
            head.set_submodule(name, layer)


def dropping(module: nn.Module) -> dict[nn.Dropout, str]:
    """The dropout layers that drop anything, with their names, in the names' order."""
    layers = {m: name for name, m in module.named_modules() if isinstance(m, nn.Dropout)}
    return {layer: name for layer, name in layers.items() if layer.p > 0 and layer.training}


def roomy(count: int) -> int:
    """The positions that a step of `count` is filled up to: few different numbers, and little added."""
    step = 64 if count <= 1_024 else 256 if count <= 4_096 else 1_024
    return -(-count // step) * step


def filled(h: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """States (M, C) and targets (M,) with positions added that count nothing, up to `roomy` ones."""
    more = roomy(len(target)) - len(target)
    return F.pad(h, (0, 0, 0, more)), F.pad(target, (0, more), value=IGNORED)
