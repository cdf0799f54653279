"""States and targets of rows padded to one length: what the released objectives score.

    TokenTable ─ rows padded to `length`, mask by the protocol ─ backbone ─ pick ─▶ h (S, C), target (S,)
      cached: one pass, its scored positions stored on disk, then `ScoredStates`        `padded_states`
      live:   a pass per batch, for layers that train or a backbone with dropout on   `LivePaddedStates`

The pass computes padded positions too where the mask lets them be attended; nothing else gives their states.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chameleon_lite.backbones.formats import arithmetic
from chameleon_lite.backbones.stored import stored
from chameleon_lite.errors import unknown
from chameleon_lite.loss import next_token_pairs
from chameleon_lite.states import BATCH_TOKENS, ScoredStates, fetched, place_of
from chameleon_lite.text import by_length, cumulative
from chameleon_lite.train_layers import LiveStates

from .objectives import IGNORED_BY_RELEASED, Pick, pick_full, pick_last, released_mask

OBJECTIVES = ("last", "full", "next_token")


@dataclass(frozen=True)
class Scoring:
    """What is scored of a padded row, and under which mask its states are computed."""

    objective: str  # "last", "full", "next_token"
    length: int  # tokens a row is padded to
    released_attention: bool  # mask by "id is not 0" instead of by padding
    ignore_padding: bool  # False: the released scripts' ignored id 0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise unknown("objective", self.objective, OBJECTIVES)

    def rows(self, table, rows) -> tuple[Tensor, Tensor]:
        """ids (B, T) and mask of the real tokens (B, T); T is the length, or the longest row where padding is idle."""
        return table.padded(rows, None if self.objective == "next_token" else self.length)

    def mask(self, ids: Tensor, real: Tensor) -> Tensor:
        """The attention mask (B, T) the backbone gets."""
        return released_mask(ids) if self.released_attention else real

    def pick(self, ids: Tensor, real: Tensor, prefix: Tensor) -> Pick:
        """Rows, columns and targets (M,) of the scored positions."""
        if self.objective == "next_token":
            return next_token_pairs(ids, real, prefix)
        ignored = None if self.ignore_padding else IGNORED_BY_RELEASED
        return (pick_last if self.objective == "last" else pick_full)(ids, real, ignored)


def padded_states(
    backbone,
    table,
    scoring: Scoring,
    *,
    dtype: torch.dtype,
    folder: Path | None = None,
    progress: bool = True,
) -> ScoredStates:
    """The scored pairs of a table on the backbone's device; states come from disk where they were computed before."""
    device = backbone.head.weight.device
    target, counts = _targets(table, scoring)

    @torch.inference_mode()
    def compute(rows: np.ndarray) -> np.ndarray:
        ids, real = scoring.rows(table, rows)
        row, column, _ = scoring.pick(ids, real, torch.from_numpy(table.prefix[rows]))
        hidden = backbone.hidden(ids.to(device), scoring.mask(ids, real).long().to(device))  # (B, T, C)
        return fetched(hidden[row.to(device), column.to(device)].to(torch.float16), backbone.name)  # (M, C)

    states = stored(
        place_of(backbone, table, dtype, f"{scoring} padded with {table.pad_id}", folder),
        cumulative(counts),
        backbone.width,
        _batches(table, scoring, device),
        compute,
        arithmetic(backbone, dtype),
        progress,
    )
    return ScoredStates.of_pairs(states, target, counts, device)


def full_rows(table, length: int) -> Tensor:
    """Which documents (N,) fill the padded row, so that no position of it is padding."""
    return torch.from_numpy(table.lengths >= length)


class LivePaddedStates(LiveStates):
    """The same pairs computed anew for every batch; takes the place of `ScoredStates`.

    `train_mode` switches the backbone's own dropout on; gradients reach its layers where these train.
    """

    def __init__(
        self, backbone, table, scoring: Scoring, *, dtype: torch.dtype, train_mode: bool = False
    ) -> None:
        super().__init__(backbone, table)
        self.scoring, self.train_mode, self.dtype = scoring, train_mode, dtype
        self.counts = torch.from_numpy(_targets(table, scoring)[1])
        self.trains = any(p.requires_grad for p in backbone.lm.parameters())

    def pieces(self, rows: Tensor) -> list[Tensor]:
        """Places in rows (B,): all at once, as the released scripts do."""
        return [torch.arange(len(rows))]

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Documents rows (B,) to their states (M, C), targets (M,), and row numbers (M,) on the host."""
        ids, real = (x.to(self.device) for x in self.scoring.rows(self.table, rows))
        prefix = torch.from_numpy(self.table.prefix[rows.cpu().numpy()]).to(self.device)
        row, column, target = self.scoring.pick(ids, real, prefix)
        mode, grad = self.backbone.lm.training, nullcontext() if self.trains else torch.no_grad()
        self.backbone.lm.train(self.train_mode)
        try:
            with grad, torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                hidden = self.backbone.hidden(ids, self.scoring.mask(ids, real).long())
        finally:
            self.backbone.lm.train(mode)
        return hidden[row, column].float(), target, row.cpu()


def _targets(table, scoring: Scoring) -> tuple[np.ndarray, np.ndarray]:
    """Targets (S,) int64, document after document, and how many each document has (N,)."""
    targets, counts = [], []
    for rows in np.array_split(np.arange(len(table)), max(1, len(table) // 4096)):
        ids, real = scoring.rows(table, rows)
        row, _, target = scoring.pick(ids, real, torch.from_numpy(table.prefix[rows]))
        targets.append(target.numpy())
        counts.append(np.bincount(row.numpy(), minlength=len(rows)))
    return np.concatenate(targets).astype(np.int64), np.concatenate(counts).astype(np.int64)


def _batches(table, scoring: Scoring, device: torch.device) -> list[np.ndarray]:
    """Documents by length, in batches whose padded size stays within what the device takes well."""
    order = np.argsort(table.lengths, kind="stable")
    lengths = (
        table.lengths[order] if scoring.objective == "next_token" else np.full(len(order), scoring.length)
    )
    return [order[part] for part in by_length(lengths, BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"]))]
