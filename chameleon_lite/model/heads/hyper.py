"""Hyper-network head: one low-rank update of the output weight per condition (the paper's section 3.1).

    condition (G, C) ── net ─▶ code (G, 32) ── last ─▶ (G, R·C + V·R) ── split ─▶ down (G, R, C), up (G, V, R)
    logits = h Wᵀ + α (h downᵀ) upᵀ          down and up are the paper's A and B

At the start `up` is exactly zero, so the head equals the frozen one, and yet it learns: the weight of `last` is
zero and only the `down` part of its bias is random (bias-HyperInit, Beck et al. 2023). With everything at zero
each factor's gradient, which is a multiple of the other factor, would be zero for ever.

The last layer is affine, so all updates the head can make are mixtures of 33 fixed pairs of factors (its 32
columns and its bias) with the code as weights: `basis` and `code` give that form.
"""

import math

import torch
from torch import Tensor, nn

from ... import errors
from .dropout import Dropout
from .interface import Condition, Head, HeadUpdate
from .static import LoraHead

RELEASED_INITS = ("wikitext", "alpaca")


class HyperHead(Head):
    """Generates the update from the condition's vector; sizes C → 64 → 32 → R(C + V) are the released scripts'.

    released_init "wikitext": Xavier, last layer N(0, 1e-3²); "alpaca": PyTorch's default; None: an exact no-op.
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
        self.net = nn.Sequential(
            nn.Linear(width, hidden[0]),
            nn.ReLU(),
            Dropout(dropout),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
            Dropout(dropout),
        )
        self.last = nn.Linear(hidden[1], rank * (width + vocab))
        self._initialise(released_init)

    def _initialise(self, released_init: str | None) -> None:
        if released_init is None:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)
            down = self.last.bias.data[: self.rank * self.width].view(self.rank, self.width)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        elif (
            released_init == "wikitext"
        ):  # Paper: Xavier and small-normal / released code: the same, biases 0
            for layer in (self.net[0], self.net[3], self.last):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
            nn.init.normal_(self.last.weight, std=1e-3)
        elif released_init != "alpaca":  # released code: the Alpaca script leaves PyTorch's default
            raise errors.unknown("released_init", released_init, RELEASED_INITS)

    def factors(self, condition: Condition) -> HeadUpdate:
        """Conditions (G, C), one a group, to `down` (G, R, C) and `up` (G, V, R)."""
        return self._split(self.last(self.net(condition.vector)))

    def code(self, condition: Condition) -> Tensor:
        """The mixture weights (G, 1 + 32) of `basis`; the first is the bias's, always 1."""
        code = self.net(condition.vector)  # (G, 32)
        return torch.cat([torch.ones_like(code[:, :1]), code], dim=1)

    def basis(self) -> HeadUpdate:
        """The 1 + 32 fixed pairs of factors: factors(c) is their sum, weighted with `code(c)`."""
        return self._split(torch.cat([self.last.bias.unsqueeze(0), self.last.weight.T]))

    def _split(self, flat: Tensor) -> HeadUpdate:
        """(G, R·C + V·R) to the two factors, as views."""
        down, up = flat.split([self.rank * self.width, self.vocab * self.rank], dim=1)
        return HeadUpdate(
            down.unflatten(1, (self.rank, self.width)), up.unflatten(1, (self.vocab, self.rank))
        )

    @torch.no_grad()
    def fold(self, condition: Condition) -> LoraHead:
        """The static head that equals this one, in evaluation mode, for one fixed condition (G = 1)."""
        if condition.groups != 1:
            raise errors.UserError(
                f"folding needs one condition, not {condition.groups}: fold each group by itself"
            )
        was_training, folded = self.training, LoraHead(self.width, self.vocab, self.rank)
        update = self.eval().factors(condition)
        self.train(was_training)
        folded.down.copy_(update.down[0])
        folded.up.copy_(update.up[0])
        return folded.to(update.down.device)


def matched_rank(width: int, vocab: int, rank: int = 4) -> int:
    """The rank at which a LoRA head has, as nearly as possible, as many parameters as the hyper-network."""
    with torch.device("meta"):
        hyper = HyperHead(width, vocab, rank).trainable_parameters()
        one = LoraHead(width, vocab, rank=1).trainable_parameters()
    return max(1, round(hyper / one))
