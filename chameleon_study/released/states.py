"""What the released scripts score of rows padded to one length, in their mode "last", and the states it needs.

    TokenTable ─ rows padded, mask by the protocol ─ backbone ─ pick ─▶ h (S, C), target (S,)
      cached: one pass, its scored positions stored on disk, then `ScoredStates`        `padded_states`
      live:   a pass per batch, for layers that train or a backbone with dropout on   `LivePaddedStates`

Mode "last" is unshifted: state and token of the final position, the pad token on padding. Objective
next_token is what this book scores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from chameleon_lite.backbones.formats import arithmetic
from chameleon_lite.backbones.stored import stored
from chameleon_lite.backbones.transfer import Fetched
from chameleon_lite.loss import next_token_pairs
from chameleon_lite.states import ScoredStates, place_of, read_at_once
from chameleon_lite.text import cumulative
from chameleon_lite.train_layers import LiveStates

Pick = tuple[Tensor, Tensor, Tensor]  # row (M,), column (M,) of the state, target (M,); rows ascending

IGNORED_BY_RELEASED = 0  # their ignore id: an ordinary token of every vocabulary used here
GPT2_DROPOUT = 0.1  # what the released scripts had live, by GPT-2's own configuration


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


@dataclass(frozen=True)
class Scoring:
    """What is scored of a padded row, and under which mask its states are computed."""

    objective: Literal["last", "next_token"]
    length: int  # tokens a row is padded to
    released_attention: bool  # mask by "id is not 0" instead of by padding
    ignore_padding: bool  # False: the released scripts' ignored id 0

    def batch(self, table, rows) -> tuple[Tensor, Tensor, Pick]:
        """Documents rows (B,) as ids (B, T), the backbone's mask (B, T), and the pairs (M,) that count.

        T is the length, or the longest row's where padding is idle.
        """
        ids, real = table.padded(rows, None if self.objective == "next_token" else self.length)
        mask = released_mask(ids) if self.released_attention else real
        if self.objective == "next_token":
            prefix = torch.from_numpy(table.prefix[np.asarray(rows)])
            return ids, mask.long(), next_token_pairs(ids, real, prefix)
        return ids, mask.long(), pick_last(ids, real if self.ignore_padding else None)


def _passed(backbone, table, scoring: Scoring, rows) -> tuple[Tensor, Tensor, Tensor]:
    """States (M, C), targets (M,) and, on the host, row numbers (M,) of documents rows (B,), by one pass."""
    ids, mask, (row, column, target) = scoring.batch(table, rows)
    device = backbone.device
    hidden = backbone.hidden(ids.to(device), mask.to(device))  # (B, T, C)
    return hidden[row.to(device), column.to(device)], target.to(device), row


def padded_states(backbone, table, scoring: Scoring, *, dtype, folder: Path | None = None) -> ScoredStates:
    """The scored pairs of a table on the backbone's device; states come from disk where they were computed before."""
    target, counts = _targets(table, scoring)

    @torch.inference_mode()
    def compute(rows: np.ndarray) -> np.ndarray:
        states = _passed(backbone, table, scoring, rows)[0]
        found = Fetched(*states.shape, backbone.device)
        found.add(states)
        return found.rows(backbone.name)

    order = np.argsort(table.lengths, kind="stable")
    lengths = table.lengths[order]
    if scoring.objective != "next_token":
        lengths = np.full_like(lengths, scoring.length)
    pieces = [order[part] for part in read_at_once(lengths, backbone.device)]
    path = place_of(backbone, table, dtype, f"{scoring} padded with {table.pad_id}", folder)
    numbers = arithmetic(backbone, dtype)
    states = stored(path, cumulative(counts), backbone.width, pieces, compute, numbers)
    return ScoredStates.of_pairs(states, target, counts, backbone.device)


class LivePaddedStates(LiveStates):
    """The same pairs computed anew for every batch; `train_mode`: with the backbone's own dropout."""

    def __init__(self, backbone, table, scoring: Scoring, *, dtype, train_mode: bool = False) -> None:
        super().__init__(backbone, table)
        self.scoring, self.train_mode, self.dtype = scoring, train_mode, dtype
        self.counts = torch.from_numpy(_targets(table, scoring)[1])

    pieces = ScoredStates.pieces  # all at once, as the released scripts do

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Documents rows (B,) to their states (M, C), targets (M,), and row numbers (M,) on the host."""
        lm, mode = self.backbone.lm, self.backbone.lm.training
        lm.train(self.train_mode)
        try:
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                h, target, row = _passed(self.backbone, self.table, self.scoring, rows.cpu())
        finally:
            lm.train(mode)
        return h.float(), target, row


def _targets(table, scoring: Scoring) -> tuple[np.ndarray, np.ndarray]:
    targets, counts = [], []
    for rows in np.array_split(np.arange(len(table)), max(1, len(table) // 4096)):
        row, _, target = scoring.batch(table, rows)[2]
        targets.append(target.numpy())
        counts.append(np.bincount(row.numpy(), minlength=len(rows)))
    return np.concatenate(targets).astype(np.int64), np.concatenate(counts).astype(np.int64)


def live_dropout(lm: nn.Module) -> dict:
    """Give `lm.train()` on a frozen model an effect, as the scripts have; returns what was found and set.

    GPT-2 has Dropout modules at 0.1. Llama-like models keep a number per attention module, most at 0: then
    it is set. `applies` is False where the architecture has no dropout at all.
    """
    modules = [m for m in lm.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    if modules:
        return {"applies": True, "configured": max(m.p for m in modules), "set": None, "sites": len(modules)}
    sites = [m for m in lm.modules() if isinstance(getattr(m, "attention_dropout", None), int | float)]
    configured = max((float(m.attention_dropout) for m in sites), default=0.0)
    new = GPT2_DROPOUT if sites and not configured else None
    for module in sites if new else ():
        module.attention_dropout = new
    return {"applies": bool(sites), "configured": configured, "set": new, "sites": len(sites)}
