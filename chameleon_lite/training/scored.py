"""Scored positions of a corpus, ready to be drawn by document: what head training and evaluation read.

    FeatureStore + TokenTable ─▶ ScoredStates: h (S, C), target (S,), offsets (N + 1)
    rows (B,) ─ batch ─▶ h (M, C), target (M,), row (M,)      row[m] in 0 … B − 1, ascending

The states live on the device where they fit its budget; otherwise each batch is read from the memory map, so
neither host nor device memory grows with the corpus.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .features import FeatureStore

RESIDENT_BYTES = {"cpu": 1 << 30, "cuda": 24 << 30}


@dataclass(frozen=True)
class ScoredStates:
    """The scored (state, target) pairs of N documents, document after document."""

    target: Tensor  # (S,) int64, on the device
    offsets: Tensor  # (N + 1,) int64 on the device: document n owns pairs offsets[n] … offsets[n + 1]
    counts: Tensor  # (N,) int64 scored tokens of each document, on the host: asking for a total waits for nothing
    states: Tensor | None  # (S, C) fp16 on the device, or None: read from the store
    store: FeatureStore
    stored: np.ndarray  # (S,) where each state lies in the store

    @property
    def documents(self) -> int:
        return len(self.offsets) - 1

    @property
    def device(self) -> torch.device:
        return self.target.device

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Documents rows (B,) to their states (M, C), targets (M,) and row numbers (M,) in 0 … B − 1."""
        total = int(self.counts[rows].sum())
        rows = rows.to(self.device)
        counts = self.offsets[rows + 1] - self.offsets[rows]  # (B,)
        index = torch.arange(len(rows), device=self.device)
        row = torch.repeat_interleave(index, counts, output_size=total)  # (M,)
        within = torch.arange(len(row), device=self.device) - (counts.cumsum(0) - counts)[row]
        pair = self.offsets[rows][row] + within  # (M,)
        return self._states(pair), self.target[pair], row

    def _states(self, pair: Tensor) -> Tensor:
        if self.states is not None:
            return self.states[pair]
        out = torch.empty(len(pair), self.store.width, dtype=torch.float16, device=self.device)
        return self.store.gather(self.stored[pair.cpu().numpy()], out)


def scored_states(
    store: FeatureStore, table, *, device: torch.device | str = "cpu", budget: int | None = None
) -> ScoredStates:
    """Pair a table's targets with its stored states; resident on `device` when they take at most `budget` bytes."""
    device = torch.device(device)
    position, target, document = table.targets()  # (S,) each; position counts in the table's own order
    offset_in_document = position - table.offsets[document]
    stored = store.start[document] + offset_in_document
    offsets = np.concatenate([[0], np.cumsum(np.bincount(document, minlength=len(table)))])
    limit = RESIDENT_BYTES.get(device.type, RESIDENT_BYTES["cpu"]) if budget is None else budget
    states = None
    if len(stored) * store.width * 2 <= limit:
        states = store.gather(stored, torch.empty(len(stored), store.width, dtype=torch.float16, device=device))
    return ScoredStates(
        torch.from_numpy(target.astype(np.int64)).to(device),
        torch.from_numpy(offsets).to(device),
        torch.from_numpy(np.diff(offsets)),
        states,
        store,
        stored,
    )
