"""What the released scripts score, in their mode "last": the state and token of the final padded position.

Unshifted: the target is the token just read, the pad token on padding. `loss.next_token_pairs` picks what this
book scores.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Pick = tuple[Tensor, Tensor, Tensor]  # row (M,), column (M,) of the state, target (M,); rows ascending

IGNORED_BY_RELEASED = 0  # their ignore id: an ordinary token of every vocabulary used here


def released_last(hidden: Tensor, ids: Tensor, losses: Callable) -> tuple[Tensor, int]:
    """The released scripts' loss of mode "last" (compute_loss): its sum and the number of targets.

    hidden (B, T, C) under `released_mask`; ids (B, T) padded to one length; losses(states (M, C), targets (M,), rows
    (M,)) gives sums of nats.
    """
    row, column, target = pick_last(ids)
    return losses(hidden[row, column], target, row), len(row)


def released_mask(ids: Tensor) -> Tensor:
    """The released scripts' attention mask (B, T): every id but 0, so padding is attended and token 0 is not.

    Paper: padding masked / released code: collate_fn compares ids with 0 / here: a mask of the real tokens.
    """
    return ids != IGNORED_BY_RELEASED


def pick_last(ids: Tensor, real: Tensor | None = None) -> Pick:
    """The final position of rows (B, T) whose id there is not the ignored one; with the mask `real`, of full rows."""
    row = (ids[:, -1] != IGNORED_BY_RELEASED if real is None else real[:, -1]).nonzero().squeeze(1)
    return row, torch.full_like(row, ids.shape[1] - 1), ids[row, -1]
