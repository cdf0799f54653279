"""What the released scripts score: each objective picks (state, target) pairs from a padded batch.

    ids (B, T), mask (B, T) ─ pick ─▶ row (M,), column (M,), target (M,)
      hidden[row, column] (M, C) ─ losses ─▶ (nll_sum, n_tokens)

    released_last   state and token of the final padded position          mode "last" of the released scripts
    released_full   state and token of every position, padding included   their mode "full"

`loss.next_token_pairs` picks what this book scores.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Losses = Callable[[Tensor, Tensor, Tensor], Tensor]  # states (M, C), targets (M,), rows (M,) ─▶ sums of nats
Pick = tuple[Tensor, Tensor, Tensor]  # row (M,), column (M,) of the state, target (M,); rows ascending

IGNORED_BY_RELEASED = 0  # their ignore id: an ordinary token of every vocabulary used here


def released_last(
    hidden: Tensor,
    ids: Tensor,
    losses: Losses,
    mask: Tensor | None = None,
    ignored: int | None = IGNORED_BY_RELEASED,
) -> tuple[Tensor, int]:
    """The released scripts' loss of mode "last" (compute_loss): at most one target per row, and mostly padding.

    hidden (B, T, C) under `released_mask`; ids (B, T) padded to one length. Unshifted: the target is the token just
    read, the pad token in a padded row. Targets equal to `ignored` do not count; None ignores padding instead, by
    `mask` (B, T). Returns (nll_sum, n_tokens).
    """
    row, column, target = pick_last(ids, mask, ignored)
    return losses(hidden[row, column], target, row), len(row)


def released_full(
    hidden: Tensor,
    ids: Tensor,
    losses: Losses,
    mask: Tensor | None = None,
    ignored: int | None = IGNORED_BY_RELEASED,
) -> tuple[Tensor, int]:
    """The released scripts' loss of mode "full": every position with its own token as target, padding included.

    Arguments as for `released_last`. Returns (nll_sum, n_tokens), with n_tokens about B · T.
    """
    row, column, target = pick_full(ids, mask, ignored)
    return losses(hidden[row, column], target, row), len(row)


def released_mask(ids: Tensor) -> Tensor:
    """The released scripts' attention mask (B, T): every id but 0, so padding is attended and token 0 is not.

    Paper: padding masked / released code: collate_fn compares ids with 0 / here: a mask of the real tokens.
    """
    return ids != IGNORED_BY_RELEASED


def pick_last(ids: Tensor, mask: Tensor | None = None, ignored: int | None = IGNORED_BY_RELEASED) -> Pick:
    """Pairs of `released_last`."""
    row = _counted(ids[:, -1:], mask if mask is None else mask[:, -1:], ignored)[0]
    return row, torch.full_like(row, ids.shape[1] - 1), ids[row, -1]


def pick_full(ids: Tensor, mask: Tensor | None = None, ignored: int | None = IGNORED_BY_RELEASED) -> Pick:
    """Pairs of `released_full`."""
    row, column = _counted(ids, mask, ignored)
    return row, column, ids[row, column]


def _counted(ids: Tensor, mask: Tensor | None, ignored: int | None) -> tuple[Tensor, ...]:
    """Where a position counts as a target: not the ignored id, or, with None, not padding."""
    if ignored is None and mask is None:
        raise ValueError("ignored=None ignores padding: it needs the mask (B, T) of the real tokens")
    return (mask.bool() if ignored is None else ids != ignored).nonzero(as_tuple=True)
