"""What the released scripts score: each objective picks (state, target) pairs from a padded batch.

    ids (B, T), mask (B, T) ─ pick ─▶ row (M,), column (M,), target (M,)

    pick_last   state and token of the final padded position          mode "last" of the released scripts
    pick_full   state and token of every position, padding included   their mode "full"

Unshifted: the target is the token just read, or the pad token. This book scores `loss.next_token_pairs`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Losses = Callable[[Tensor, Tensor, Tensor], Tensor]  # states (M, C), targets (M,), rows (M,) ─▶ sums of nats
Pick = tuple[Tensor, Tensor, Tensor]  # row (M,), column (M,) of the state, target (M,); rows ascending

IGNORED_BY_RELEASED = 0  # their ignore id: an ordinary token of every vocabulary used here


def released_last(hidden: Tensor, ids: Tensor, losses: Losses) -> tuple[Tensor, int]:
    """The scripts' loss of mode "last" (compute_loss): at most one target per row, and mostly padding.

    hidden (B, T, C) under `released_mask`; ids (B, T) padded to one length. Returns (nll_sum, n_tokens).
    """
    row, column, target = pick_last(ids)
    return losses(hidden[row, column], target, row), len(row)


def released_mask(ids: Tensor) -> Tensor:
    """The released scripts' attention mask (B, T): every id but 0, so padding is attended and token 0 is not.

    Paper: padding masked / released code: collate_fn compares ids with 0 / here: a mask of the real tokens.
    """
    return ids != IGNORED_BY_RELEASED


def pick_full(ids: Tensor, real: Tensor | None = None) -> Pick:
    """Every position of ids (B, T) but those of the ignored id, or those of text by the mask `real`."""
    row, column = (ids != IGNORED_BY_RELEASED if real is None else real).nonzero(as_tuple=True)
    return row, column, ids[row, column]


def pick_last(ids: Tensor, real: Tensor | None = None) -> Pick:
    """Those of `pick_full` at the final position."""
    row, column, target = pick_full(ids[:, -1:], None if real is None else real[:, -1:])
    return row, torch.full_like(column, ids.shape[1] - 1), target
