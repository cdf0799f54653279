"""Rival heads: what else can adapt the output weight to a condition. Each starts exactly as the frozen head.

    BankHead        ΔW = Σ_k π_k up_k down_k                  π (G, K) a softmax of the condition (claim 10's rival)
    FactorBankHead  ΔW = (Σ_k π_k up_k) (Σ_k π_k down_k)      blended in factor space, as the hyper-network does
    SvfBank         ΔW = (W Q) diag(Σ_k π_k m_k − 1) Qᵀ       singular values rescaled (Transformer²)
    UnigramBias     logits + β (log q_c − log q_0)            frequencies of the tokens in the condition's text

A bank of 33 of rank 4 is about as large as the paper's hyper-network, which holds 33 pairs of factors too.
"""

import math

import torch
from torch import Tensor, nn

from chameleon_lite.heads import Condition, Head, HeadUpdate

SMOOTHING = 16.0  # μ at the start: as many pseudo-tokens as a plain text's prefix has tokens


class BankHead(Head):
    """K experts side by side as one pair of factors of rank K·R; the blend is a weight on their slots."""

    conditioned = True
    selects = True  # by a softmax of the condition

    def __init__(self, width: int, vocab: int, experts: int, rank: int = 4) -> None:
        super().__init__()
        self.experts, self.rank = experts, rank
        if self.selects:
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


class SvfBank(Head):
    """K masks over the C singular directions of weight (V, C), blended by a softmax selector.

        W = P diag(σ) Qᵀ      W' = P diag(σ ∘ Σ_k π_k m_k) Qᵀ      m_k = 2 sigmoid(a_k) in (0, 2), 1 at the start

    An expert is C numbers. W' − W is a fixed pair of factors of rank C with a mixture of its slots.
    """

    conditioned = True

    def __init__(self, weight: Tensor, experts: int) -> None:
        super().__init__()
        exact = weight.detach().double()
        # The eigenvectors of WᵀW are the right singular vectors: a (C, C) problem whatever the vocabulary.
        right = torch.linalg.eigh(exact.T @ exact).eigenvectors  # (C, C), columns
        self.register_buffer("down", right.T.float().contiguous(), persistent=False)  # (C, C)
        self.register_buffer("up", (exact @ right).float(), persistent=False)  # (V, C)
        self.selector = nn.Linear(weight.shape[1], experts)
        self.masks = nn.Parameter(torch.zeros(experts, weight.shape[1]))  # a_k

    def factors(self, condition: Condition) -> HeadUpdate:
        """The fixed factors (1, C, C), (1, V, C) and each group's mix (G, C)."""
        weights = self.selector(condition.vector).softmax(-1)  # (G, K)
        mix = weights @ (2 * torch.sigmoid(self.masks) - 1)  # (G, C)
        return HeadUpdate(self.down.unsqueeze(0), self.up.unsqueeze(0), mix=mix)


class UnigramBias(Head):
    """Tilts the frequencies towards the tokens in the condition's text; two parameters, β (0 at the start) and μ.

        q_c = (counts + μ q_0) / (n + μ)          logits = h Wᵀ + β (log q_c − log q_0)

    q_0 is the training prefixes' distribution of tokens: background (V,) are their counts, plus one each.
    """

    conditioned = True

    def __init__(self, background: Tensor) -> None:
        super().__init__()
        frequencies = (background.double() + 1) / (background.sum() + len(background))
        self.register_buffer("background", frequencies.float())
        self.beta = nn.Parameter(torch.zeros(()))
        self.log_smoothing = nn.Parameter(torch.tensor(math.log(SMOOTHING)))

    def factors(self, condition: Condition) -> HeadUpdate:
        """A bias (G, V) from the condition's counts (G, V)."""
        mu, counts = self.log_smoothing.exp(), condition.counts
        ratio = (counts / self.background + mu) / (counts.sum(1, keepdim=True) + mu)  # q_c / q_0, (G, V)
        return HeadUpdate(None, None, bias=self.beta * ratio.log())
