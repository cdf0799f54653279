"""A bank of singular-value masks: each expert rescales the singular values of the frozen head (Transformer²).

    W = P diag(σ) Qᵀ      W' = P diag(σ ∘ Σ_k π_k m_k) Qᵀ      m_k = 2 sigmoid(a_k) in (0, 2), 1 at the start

An expert is C numbers, so storage is no argument against such a bank. As an update:
W' − W = (W Q) diag(Σ_k π_k m_k − 1) Qᵀ, a fixed pair of factors of rank C with a mixture of its slots.
"""

import torch
from torch import Tensor, nn

from .interface import Condition, Head, HeadUpdate


class SvfBank(Head):
    """K masks over the C singular directions of weight (V, C), blended by a softmax selector."""

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
