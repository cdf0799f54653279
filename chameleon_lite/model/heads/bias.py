"""Context-unigram bias: tilt the frequencies towards the tokens that the condition has seen; two parameters.

    q_c = (counts + μ q_0) / (n + μ)          logits = h Wᵀ + β (log q_c − log q_0)

q_0 is the training prefixes' smoothed distribution of tokens. A head that beats this one does more than count.
"""

import math

import torch
from torch import Tensor, nn

from .interface import Condition, Head, HeadUpdate

SMOOTHING = 16.0  # μ at the start: as many pseudo-tokens as a plain text's prefix has tokens


class UnigramBias(Head):
    """β starts at 0, exactly the frozen head; background (V,) are token counts, smoothed by one each."""

    conditioned = True

    def __init__(self, background: Tensor) -> None:
        super().__init__()
        self.register_buffer(
            "background", (background.double() + 1).div(background.sum() + len(background)).float()
        )
        self.beta = nn.Parameter(torch.zeros(()))
        self.log_smoothing = nn.Parameter(torch.tensor(math.log(SMOOTHING)))

    def factors(self, condition: Condition) -> HeadUpdate:
        """A bias (G, V) from the condition's counts (G, V)."""
        mu = self.log_smoothing.exp()
        counts = condition.counts
        ratio = (counts / self.background + mu) / (counts.sum(1, keepdim=True) + mu)  # q_c / q_0, (G, V)
        return HeadUpdate(None, None, bias=self.beta * ratio.log())
