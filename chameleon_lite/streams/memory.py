"""Learning from what has passed: each document of a stream is scored first, and learned from afterwards.

    rows of a batch ─ slots that each row reads ─▶ factors ─▶ nats of every row ─ only then ─▶ a step
      one memory        slot 0, read by all rows
      one per cluster   slot k, read by the rows of cluster k; on top of a global one: slots 0 and 1 + k

This is dynamic evaluation (Krause et al. 2018, 2019) of low-rank factors: the weights stay frozen, and a slot
is a pair of factors of the head, or with `LayerStates` of every layer too. The P numbers of a slot lie side
by side in one row of a matrix (S, P), so a step is a few operations whatever a slot is made of, and slots
with other rates, or of other streams, go through the same pass. Nothing is kept of a row but its effect on
the slots: memory is bounded.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from ..errors import UserError
from ..heads import HeadUpdate, LoraHead
from ..loss import HeadWeight, head_losses, token_losses
from ..settings import Settings
from ..text import IGNORED

HEAD = "head"
Shapes = dict[str, tuple[int, int, int]]  # of each pair of factors: its name, (rank, inputs, outputs)


class LearnSettings(Settings):
    """How a memory learns. With momentum 0 a step is the gradient scaled by its root mean square (RMS)."""

    batch_rows: int = Field(32, ge=1, description="documents that are scored, then learned from, together")
    momentum: float = Field(0.9, ge=0, lt=1, description="Adam's first decay rate")
    square: float = Field(0.99, ge=0, lt=1, description="Adam's second decay rate")
    decay: float = Field(
        0.0, ge=0, description="how strongly a step draws towards the start, in units of the rate"
    )
    cap: float = Field(1.0, gt=0, description="largest RMS of a step's changes, in units of the rate")
    freeze_after: int | None = Field(
        None, ge=0, description="documents after which nothing is learned any more"
    )


class Memory:
    """S slots of low-rank factors with the optimiser's state of each: what a stream has changed so far.

    shapes: the factors of one slot; start (S, P) or (1, P) their first values, see `fresh_start`; rates (S,):
    the learning rate of each slot. `skipped` counts steps of a slot whose gradient was not finite, `failed`
    documents whose loss was not. Raises ValueError where these sizes do not fit.
    """

    def __init__(
        self, shapes: Shapes, start: Tensor, rates: Tensor, settings: LearnSettings | None = None
    ) -> None:
        self.shapes, self.settings = shapes, settings or LearnSettings()
        sizes = {name: rank * (inputs + outputs) for name, (rank, inputs, outputs) in shapes.items()}
        self.head_size, numbers = sizes.get(HEAD, 0), sum(sizes.values())
        if list(sizes)[1:].count(HEAD) or len(start) not in (1, len(rates)) or start.shape[1] != numbers:
            raise ValueError(
                f"start {tuple(start.shape)} is not ({len(rates)} or 1, {numbers}), the head's first"
            )
        self.start, self.rates = start.detach().float(), rates.to(start.device, torch.float32)
        self.values = self.start.expand(len(rates), -1).clone()  # (S, P)
        self.mean, self.square = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self.steps = torch.zeros(len(rates), 1, device=start.device)
        self.counts = torch.zeros(3, dtype=torch.int64, device=start.device)  # rows seen, skipped, failed
        self.seen = 0  # the first of them, on the host

    @property
    def skipped(self) -> int:
        """Number of steps of a slot that were skipped."""
        return int(self.counts[1])

    @property
    def failed(self) -> int:
        """Number of documents that were not learned from."""
        return int(self.counts[2])

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of one slot's numbers; the optimiser holds two more such rows."""
        return self.values[0].numel() * self.values.element_size()

    def read(
        self,
        data,
        weight: HeadWeight,
        rows: Tensor,
        slots: Tensor,
        learns: bool = True,
        below: tuple[HeadUpdate, Tensor] | None = None,
    ) -> Tensor:
        """Score documents rows (B,), which read slots (B, U), then learn: sums of nats (B,) float64.

        data: `ScoredStates` or `LayerStates`; rows and slots on the host; below: an update of G groups that stays
        as it is, and each row's group (B,). A document whose loss is not finite is counted and not learned from.
        Without `learns` they are scored only.
        """
        learns &= self.settings.freeze_after is None or self.seen < self.settings.freeze_after
        stays = torch.zeros(len(rows), dtype=torch.int64) if below is None else below[1].cpu()
        keys, group = torch.cat([slots, stays[:, None]], 1).unique(dim=0, return_inverse=True)  # (g, U + 1)
        slots = keys[:, :-1]
        fixed = below and _of_groups(below[0], keys[:, -1])
        order = group.argsort(stable=True)  # rows that read the same slots side by side
        present, place = slots.unique(return_inverse=True)  # (n,), (g, U)
        leaf = self.values[present.to(self.values.device)].requires_grad_(learns)  # (n, P)
        nll = torch.zeros(len(rows), dtype=torch.float64, device=self.values.device)
        tokens = torch.zeros(len(present), dtype=torch.float64, device=self.values.device)
        with torch.set_grad_enabled(learns):
            for piece in data.pieces(rows[order]):
                at = order[piece]  # (b,)
                sums, counts = self._piece(data, weight, rows[at], group[at], place, leaf, fixed)
                nll[at.to(nll.device)] = sums
                read = place[group[at]].to(tokens.device)  # (b, U)
                tokens.index_add_(0, read.flatten(), counts.repeat_interleave(read.shape[1]))
        if learns:
            self._step(present.to(self.values.device), leaf.grad, tokens)
        self.seen += len(rows)
        self.counts[0] += len(rows)
        return nll

    def _piece(self, data, weight, rows, group, place, leaf, fixed) -> tuple[Tensor, Tensor]:
        """Sums of nats (b,) of a piece and the tokens (b,) learned from; gradients go to leaf (n, P)."""
        layers = {name: shape for name, shape in self.shapes.items() if name != HEAD}
        if layers:
            h, target, row = data.batch(rows, leaf[:, self.head_size :], place[group], layers)
        else:
            h, target, row = data.batch(rows)  # (M, C), (M,), (M,) on the host
        update = fixed
        if self.head_size:
            own_slots = leaf[:, : self.head_size][place.to(leaf.device)]  # (g, U, ·)
            update = pairs_of(own_slots, {HEAD: self.shapes[HEAD]})[HEAD]
            update = update if fixed is None else joined(fixed, update)
        own = None if update is None or len(place) == 1 else group[row]
        lengths = data.counts[rows].to(h.device)
        each = token_losses(h, target, weight, [update], [own])[0]  # (M,)
        sums = torch.segment_reduce(each.double(), "sum", lengths=lengths, axis=0, unsafe=True)  # (b,)
        finite = sums.isfinite()
        if torch.is_grad_enabled():
            good = finite.repeat_interleave(lengths, output_size=len(each))  # (M,)
            h = torch.where(good[:, None], h, torch.zeros((), dtype=h.dtype, device=h.device))
            head_losses(h, target.masked_fill(~good, IGNORED), weight, [update], [own]).sum().backward()
        self.counts[2] += (~finite).sum()
        return sums, (lengths * finite).double()

    @torch.no_grad()
    def _step(self, at: Tensor, grad: Tensor, tokens: Tensor) -> None:
        """A step of slots at (n,) along grad (n, P), sums over tokens (n,), where all is finite."""
        s, rate = self.settings, self.rates[at, None]
        grad = grad / tokens[:, None].float()
        good = grad.isfinite().all(1, keepdim=True)  # not for a slot without tokens either
        steps, old = self.steps[at] + 1, self.values[at]
        mean = self.mean[at].lerp(grad, 1 - s.momentum)
        square = self.square[at].lerp(grad.square(), 1 - s.square)
        move = mean / (1 - s.momentum**steps) / ((square / (1 - s.square**steps)).sqrt() + 1e-8)
        if s.decay:
            move = move + s.decay * (old - self.start.expand_as(self.values)[at])
        rms = move.square().mean(1, keepdim=True).sqrt()  # (n, 1), in units of the rate
        move = move * (s.cap / rms.clamp_min(1e-30)).clamp_max(1.0)
        moved = old - rate * move
        good = good & (moved.isfinite() & square.isfinite()).all(1, keepdim=True)
        new = {"values": moved, "mean": mean, "square": square, "steps": steps}
        for name, value in new.items():
            kept = getattr(self, name)
            kept[at] = torch.where(good, value, kept[at])
        self.counts[1] += (~good).sum()

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next batch's numbers depend on, as copies; bounded, whatever has passed."""
        names = ("values", "mean", "square", "steps", "start", "rates", "counts")
        return {name: getattr(self, name).clone() for name in names}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state` was taken; UserError for the state of another memory."""
        for name, value in state.items():
            mine = getattr(self, name)
            if mine.shape != value.shape:
                raise UserError(
                    f"the state is of another memory: {name} is {tuple(value.shape)}, not {tuple(mine.shape)}"
                )
            setattr(self, name, value.to(mine.device, copy=True))
        self.seen = int(self.counts[0])


def pairs_of(flat: Tensor | None, shapes: Shapes) -> dict[str, HeadUpdate]:
    """flat (N, U, P), numbers of the named pairs in U slots each, to an update per name, of rank U·R."""
    out = {}
    sizes = [rank * n for rank, *both in shapes.values() for n in both]
    parts = iter(flat.split(sizes, dim=-1) if sizes else ())
    for name, (rank, inputs, outputs) in shapes.items():
        down = next(parts).unflatten(-1, (rank, inputs)).flatten(1, 2)  # (N, U·R, inputs)
        up = next(parts).unflatten(-1, (outputs, rank)).transpose(1, 2).flatten(2)  # (N, outputs, U·R)
        out[name] = HeadUpdate(down, up)
    return out


def _of_groups(update: HeadUpdate, group: Tensor) -> HeadUpdate:
    group = group.to(update.down.device)
    return HeadUpdate(update.down.detach()[group], update.up.detach()[group])


def joined(first: HeadUpdate, second: HeadUpdate) -> HeadUpdate:
    """The sum of two low-rank updates of G groups each, as one of both ranks together."""
    up = torch.cat([first.up.to(second.up), second.up], 2)
    return HeadUpdate(torch.cat([first.down.to(second.down), second.down], 1), up)  # (G, R + R', C)


def fresh_start(shapes: Shapes, generator: torch.Generator) -> Tensor:
    """A slot (1, P) that changes nothing yet: `down` random as in `LoraHead`, `up` zero."""
    parts = []
    for rank, inputs, outputs in shapes.values():
        bound = 1 / math.sqrt(inputs)
        parts += [
            (2 * torch.rand(rank * inputs, generator=generator) - 1) * bound,
            torch.zeros(outputs * rank),
        ]
    return torch.cat(parts)[None]


def start_of(head: LoraHead) -> Tensor:
    """A slot (1, P) that begins as a trained head."""
    return torch.cat([head.down.detach().flatten(), head.up.detach().flatten()])[None]
