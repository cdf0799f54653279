"""Heads turn a condition into low-rank factors that change the output weight, and so the logits.

    Condition (one per group, from unscored tokens only) ── head.factors ─▶ HeadUpdate ─▶ logits or loss
    logits = h Wᵀ + b + α (h downᵀ) upᵀ + bias          down and up are the paper's A and B (section 3.1)

A group is a conditioning group: documents that share one condition; in training a run of the epoch's order,
at generation rows of one batch. There are G of them, B for per-sample conditioning. A static head makes one
update, G = 1, whatever the condition.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import engine, errors


@dataclass(frozen=True)
class Condition:
    """What G groups' updates are made from; heads of the core read `vector` alone.

    In training a group's vector is the mean of its documents' unit vectors, not normalised again; the other
    cases stand in conditions.py.
    """

    vector: Tensor  # (G, C) one per group
    counts: Tensor | None = None  # (G, V) token counts of the group's prefixes, float; the study's
    cluster: Tensor | None = None  # (G,) int64, index of the routing centroid; the study's

    @property
    def groups(self) -> int:
        """The number of conditioning groups, G."""
        return self.vector.shape[0]

    def of(self, group: Tensor) -> "Condition":
        """The conditions of groups (B,) int64 on any device: B groups, which may repeat each other."""
        place = group.to(self.vector.device, non_blocking=True)
        return Condition(**{name: x if x is None else x[place] for name, x in vars(self).items()})


def by_row(given: Sequence[tuple], rows: int) -> list[tuple]:
    """Spread each condition over the step's rows (how many), one group per row: each draws its own mask.

    Results then depend on the rows' conditions, not on how many groups they form.
    """
    each, none = torch.arange(rows), torch.zeros(rows, dtype=torch.int64)
    spread = {id(c): (c.of(none if group is None else group), each) for c, group in given if c is not None}
    return [spread.get(id(pair[0]), pair) for pair in given]


class HeadUpdate(NamedTuple):
    """What changes the head's logits for each of G groups: low-rank factors, which may be absent, and a bias.

    `bias` and `mix` are the study's. With `mix` (G, R) there is no bias and one pair of factors, (1, R, C)
    and (1, V, R), of which group g uses the R slots weighted with mix[g]: a bank of experts is one product.
    """

    down: Tensor | None = None  # (G, R, C), the paper's A
    up: Tensor | None = None  # (G, V, R), the paper's B
    bias: Tensor | None = None  # (G, V)
    mix: Tensor | None = None  # (G, R)

    @property
    def groups(self) -> int:
        """The number of groups, G; 1 for one update of all rows."""
        return next(len(x) for x in (self.mix, self.down, self.bias) if x is not None)

    def of(self, group: int) -> "HeadUpdate":
        """The update of one group, G = 1."""
        one = HeadUpdate(*(None if x is None else x[group : group + 1] for x in self))
        return one if self.mix is None else self._replace(mix=one.mix)

    def dense(self, group: int = 0) -> Tensor:
        """up @ down (V, C) of one group, without α and bias; large, meant for merging and for tests."""
        down, up, _, mix = self.of(group)
        return (up[0] if mix is None else up[0] * mix) @ down[0]  # (V, C)


def apply_update(h: Tensor, update: HeadUpdate, scale: float = 1.0) -> Tensor:
    """h (G, M, C), or (…, C) with G = 1, to what the update adds to the frozen logits, (…, V)."""
    down, up, bias, mix = (None if x is None else x.to(h.dtype) for x in update)
    x = h.unsqueeze(0) if h.dim() == 2 else h  # (G, M, C)
    out = x.new_zeros(*x.shape[:-1], 1)
    if down is not None:
        z = x @ down.transpose(1, 2)  # (G, M, R)
        if mix is not None:
            z = z * mix.unsqueeze(1)
        out = scale * (z @ up.transpose(1, 2))  # (G, M, V)
    if bias is not None:
        out = out + bias.unsqueeze(1)
    return out.squeeze(0) if h.dim() == 2 else out


def add_update(
    logits: Tensor, h: Tensor, update: HeadUpdate, group: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """logits (X, …, V) plus the update of each entry of the first axis, where h is (X, …, C).

    group (X,) int64, None where G = 1. An entry is a document in generation, a state in the loss.
    """
    if group is not None and group.shape != h.shape[:1]:
        raise ValueError(f"group {tuple(group.shape)} must be {tuple(h.shape[:1])}, one for each row")
    if group is None or not len(group):
        return logits + apply_update(h, update, scale) if group is None else logits
    ids, sizes = group.unique(return_counts=True)
    order = group.argsort(stable=True)  # rows of one group side by side
    rows = h[order].split(sizes.tolist())
    parts = [apply_update(x, update.of(g), scale) for g, x in zip(ids.tolist(), rows)]
    return logits + torch.cat(parts)[order.argsort()]


def update_logits(
    update: HeadUpdate, group: Tensor | None = None, rows: int | None = None
) -> Callable[..., Tensor]:
    """A function logits(head, h (B, T, C), scale) → (B, T, V) for batches whose row b belongs to `group[b]`.

    group (B,) int64, or None where row b has update b, or all `rows` (B) the only one. `head` gives the frozen
    logits. k · B rows are k copies of each (beams, samples). ValueError where groups or rows do not fit.
    """
    if group is None:
        group = torch.arange(update.groups) if rows in (None, update.groups) else torch.zeros(rows).long()
        if update.groups not in (1, len(group)):
            raise ValueError(f"{update.groups} updates for {rows} rows: give each row's update in `group`")
    if group.shape != (rows or group.numel(),) or int(group.min()) < 0 or int(group.max()) >= update.groups:
        shapes = f"group {tuple(group.shape)} must be ({rows or 'B'},), one for each row"
        raise ValueError(f"{shapes}, and lie in 0 … {update.groups - 1}, the update's groups")
    if impl := engine.fast("update_logits"):
        return impl(update, group, rows)

    def logits(head: Callable[[Tensor], Tensor], h: Tensor, scale: float = 1.0) -> Tensor:
        if len(h) % len(group):
            raise ValueError(f"{len(h)} rows, but the conditions are for {len(group)}")
        own = group.repeat_interleave(len(h) // len(group)).to(h.device)
        return add_update(head(h), h, update, own, scale)

    return logits


class Head(nn.Module):
    """Base of all heads. `conditioned`: whether `factors` reads the condition at all."""

    conditioned: bool = False

    def factors(self, condition: Condition | None) -> HeadUpdate:
        """One update per group, or one for all. Subclasses define it: here TypeError."""
        raise TypeError(f"{type(self).__name__} must define factors(condition)")

    def trainable_parameters(self) -> int:
        """Number of trainable scalars."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def stored_bytes(self) -> int:
        """Bytes of a saved copy at the parameters' own dtypes."""
        return sum(p.numel() * p.element_size() for p in self.parameters())


@contextmanager
def own_dropout(head: Head, seed: int, device: torch.device) -> Iterator[None]:
    """Inside the block the head's dropout draws from `seed`; the generator is restored after."""
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


class LoraHead(Head):
    """Ordinary low-rank adaptation of the head (Hu et al. 2021): one trained pair, down (R, C) and up (V, R).

    Starts with `up` = 0 and a random `down`: exactly the frozen head, and `up` gets gradient at once. The
    study's `released_init` draws both from N(0, 0.01²), as the released scripts do: not a no-op at the start.
    """

    def __init__(self, width: int, vocab: int, rank: int = 4, released_init: bool = False) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, width))
        self.up = nn.Parameter(torch.zeros(vocab, rank))
        if released_init:  # Paper: standard LoRA / released code: both factors N(0, 0.01²)
            nn.init.normal_(self.down, std=0.01)
            nn.init.normal_(self.up, std=0.01)
        else:
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def factors(self, condition: Condition | None = None) -> HeadUpdate:
        """`down` (1, R, C) and `up` (1, V, R), whatever the condition."""
        return HeadUpdate(self.down.unsqueeze(0), self.up.unsqueeze(0))


class HyperHead(Head):
    """Hyper-network head: one low-rank update of the output weight per condition (the paper's section 3.1).

        condition (G, C) ── net ─▶ (G, 32) ── last ─▶ (G, R·C + V·R) ── split ─▶ down (G, R, C), up (G, V, R)

    Sizes C → 64 → 32 → R(C + V) are the released scripts'. At the start `up` is exactly zero, so the head
    equals the frozen one, and yet it learns: the weight of `last` is zero and only the `down` part of its
    bias is random (bias-HyperInit, Beck et al. 2023). With both factors zero neither would get a gradient.
    `net` gets its first non-zero gradient at step 2, when the weight of `last` is no longer zero. `last` is
    affine: `down` and `up` are one linear combination of 1 + 32 pairs, `basis()`, trained and the same for
    all conditions, with the coefficients `code()` = [1, net(vector)]. The study's released_init: "wikitext"
    for Xavier and a last layer of N(0, 1e-3²), "alpaca" for PyTorch's default.
    """

    conditioned = True

    def __init__(
        self,
        width: int,
        vocab: int,
        rank: int = 4,
        dropout: float = 0.5,
        released_init: str | None = None,
        hidden: tuple[int, int] = (64, 32),
    ) -> None:
        super().__init__()
        self.width, self.vocab, self.rank = width, vocab, rank
        layers = [(nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)) for a, b in pairwise((width, *hidden))]
        self.net = nn.Sequential(*layers[0], *layers[1])
        self.last = nn.Linear(hidden[1], rank * (width + vocab))
        self._initialise(released_init)

    def _initialise(self, released_init: str | None) -> None:
        if released_init is None:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)
            down = self.last.bias.data[: self.rank * self.width].view(self.rank, self.width)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        elif released_init == "wikitext":  # Paper: Xavier and small-normal / released code: so
            for layer in (self.net[0], self.net[3], self.last):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
            nn.init.normal_(self.last.weight, std=1e-3)
            nn.init.normal_(self.last.bias, std=1e-3)
        elif released_init != "alpaca":  # released code: the Alpaca script leaves PyTorch's default
            raise errors.unknown("released_init", released_init, ["wikitext", "alpaca"])

    def factors(self, condition: Condition) -> HeadUpdate:
        """Conditions (G, C), one per group, to `down` (G, R, C) and `up` (G, V, R)."""
        return self._split(self.last(self.net(condition.vector)))

    def code(self, condition: Condition) -> Tensor:
        """The study's: the coefficients (G, 1 + 32) of `basis`; the first is the bias's, always 1."""
        learned = self.net(condition.vector)  # (G, 32)
        return torch.cat([torch.ones_like(learned[:, :1]), learned], dim=1)

    def basis(self) -> HeadUpdate:
        """The study's: 1 + 32 trained pairs, the same for all conditions; `factors` sums them by `code`."""
        return self._split(torch.cat([self.last.bias.unsqueeze(0), self.last.weight.T]))

    def _split(self, flat: Tensor) -> HeadUpdate:
        """(G, R·C + V·R) to the two factors, as views."""
        down, up = flat.split([self.rank * self.width, self.vocab * self.rank], dim=1)
        down = down.unflatten(1, (self.rank, self.width))
        return HeadUpdate(down, up.unflatten(1, (self.vocab, self.rank)))

    @torch.no_grad()
    def fold(self, condition: Condition) -> LoraHead:
        """The study's: this head in eval mode, for one condition, as a static one; UserError unless G = 1."""
        if condition.groups != 1:
            raise errors.UserError(f"folding needs one condition, not {condition.groups}")
        was_training, folded = self.training, LoraHead(self.width, self.vocab, self.rank)
        update = self.eval().factors(condition)
        self.train(was_training)
        folded.down.copy_(update.down[0])
        folded.up.copy_(update.up[0])
        return folded.to(update.down.device)


def matched_rank(width: int, vocab: int, rank: int = 4) -> int:
    """The rank at which a LoRA head has, as nearly as possible, as many parameters as the hyper-network."""
    with torch.device("meta"):
        hyper, one = HyperHead(width, vocab, rank), LoraHead(width, vocab, rank=1)
    return max(1, round(hyper.trainable_parameters() / one.trainable_parameters()))
