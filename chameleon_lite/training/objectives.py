"""What is scored: each objective picks (state, target) pairs from a padded batch and returns sums and counts.

    hidden (B, T, C), ids (B, T), mask (B, T) ─ pick ─▶ states (M, C), targets (M,), rows (M,)
      ─ losses ─▶ (nll_sum, n_tokens)

Sums and counts stay apart until the last moment: a mean of means depends on how the rows were batched (audit, row 7).
`losses` is any function from (states, targets, rows) to one nll sum per head, nats.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Losses = Callable[[Tensor, Tensor, Tensor], Tensor]


def next_token(hidden: Tensor, ids: Tensor, mask: Tensor, prefix: Tensor, losses: Losses) -> tuple[Tensor, int]:
    """Shifted, padding-masked cross-entropy over the positions after each row's prefix.

    hidden (B, T, C); ids (B, T); mask (B, T) true on real tokens; prefix (B,) tokens never scored, at least 1.
    Returns (nll_sum, n_tokens): nats summed over the scored tokens, and how many there are.
    """
    position = torch.arange(ids.shape[1], device=ids.device)  # (T,)
    scored = mask.bool() & (position[None] >= prefix[:, None].clamp_min(1))  # (B, T): is this token a target?
    row, column = scored.nonzero(as_tuple=True)  # (M,), (M,)
    return losses(hidden[row, column - 1], ids[row, column], row), len(row)
