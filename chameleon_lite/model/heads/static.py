"""Heads that ignore the condition: the frozen head and ordinary low-rank adaptation of its weight.

    FrozenHead   logits = h Wᵀ                        the update has rank 0
    LoraHead     logits = h Wᵀ + α (h downᵀ) upᵀ      one update for every input (Hu et al. 2021)

LoRA starts with `up` = 0 and a random `down`: exactly the frozen head, and `up` gets gradient at once.
"""

import math

import torch
from torch import nn

from .interface import Condition, Head, HeadUpdate


class FrozenHead(Head):
    """No update at all, said as factors of rank 0 so that no caller needs a special case."""

    def __init__(self, width: int, vocab: int) -> None:
        super().__init__()
        self.register_buffer(
            "down", torch.empty(1, 0, width), persistent=False
        )  # a buffer follows .to(device)
        self.register_buffer("up", torch.empty(1, vocab, 0), persistent=False)

    def factors(self, condition: Condition | None = None) -> HeadUpdate:
        """`down` (1, 0, C) and `up` (1, V, 0)."""
        return HeadUpdate(self.down, self.up)


class LoraHead(Head):
    """One trained pair of factors, `down` (R, C) and `up` (V, R).

    `released_init` draws both from N(0, 0.01²), as the released scripts do: not a no-op at the start.
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
