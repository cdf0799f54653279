"""Softmax banks: K low-rank experts, stored, and blended by a selector that reads the condition.

    condition (G, C) ── selector, softmax ─▶ π (G, K)
    BankHead        ΔW = Σ_k π_k up_k down_k                    experts blended as updates (claim 10's rival)
    FactorBankHead  ΔW = (Σ_k π_k up_k) (Σ_k π_k down_k)        blended in factor space, as the hyper-network does

With K = 33 and rank 4 a bank has about as many parameters as the paper's hyper-network, whose last layer holds
33 pairs of factors too (audit, finding 6). Every `up` starts at zero: a no-op that learns.
"""

import math

import torch
from torch import Tensor, nn

from .interface import Condition, Head, HeadUpdate


class BankHead(Head):
    """K experts side by side as one pair of factors of rank K·R; the blend is a weight on their slots."""

    conditioned = True

    def __init__(self, width: int, vocab: int, experts: int, rank: int = 4) -> None:
        super().__init__()
        self.experts, self.rank = experts, rank
        self.selector = nn.Linear(width, experts)
        self.down = nn.Parameter(torch.empty(experts * rank, width))
        self.up = nn.Parameter(torch.zeros(vocab, experts * rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def weights(self, condition: Condition) -> Tensor:
        """The blend π (G, K) of each group."""
        return self.selector(condition.vector).softmax(-1)

    def factors(self, condition: Condition) -> HeadUpdate:
        """One pair of factors (1, K·R, C), (1, V, K·R) and each group's mix (G, K·R)."""
        mix = self.weights(condition).repeat_interleave(self.rank, dim=1)
        return HeadUpdate(self.down.unsqueeze(0), self.up.unsqueeze(0), mix=mix)


class FactorBankHead(BankHead):
    """The same parameters, blended before the product: the cross terms up_k down_j appear (R11b)."""

    def factors(self, condition: Condition) -> HeadUpdate:
        """Blended factors (G, R, C) and (G, V, R)."""
        weights = self.weights(condition)  # (G, K)
        down = torch.einsum("gk,krc->grc", weights, self.down.unflatten(0, (self.experts, self.rank)))
        up = torch.einsum("gk,vkr->gvr", weights, self.up.unflatten(1, (self.experts, self.rank)))
        return HeadUpdate(down, up)
