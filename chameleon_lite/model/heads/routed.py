"""Hard routing: one low-rank expert a cluster, the nearest centroid chooses (modular LoRA libraries).

    cluster (G,) ── one-hot ─▶ mix ─▶ ΔW = up_k down_k of the chosen k alone

Nothing selects with parameters: which expert a text gets is settled by the clustering.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .interface import Condition, Head, HeadUpdate


class RoutedHead(Head):
    """K experts side by side as one pair of factors; a group uses the R slots of its cluster's expert."""

    conditioned = True

    def __init__(self, width: int, vocab: int, experts: int, rank: int = 4) -> None:
        super().__init__()
        self.experts, self.rank = experts, rank
        self.down = nn.Parameter(torch.empty(experts * rank, width))
        self.up = nn.Parameter(torch.zeros(vocab, experts * rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def factors(self, condition: Condition) -> HeadUpdate:
        """One pair of factors (1, K·R, C), (1, V, K·R) and each group's one-hot mix (G, K·R)."""
        one = F.one_hot(condition.cluster, self.experts).to(self.down.dtype)  # (G, K)
        return HeadUpdate(
            self.down.unsqueeze(0), self.up.unsqueeze(0), mix=one.repeat_interleave(self.rank, dim=1)
        )
