"""Scored positions of a corpus, ready to be drawn by document: what head training and evaluation read.

    FeatureStore + TokenTable ─▶ ScoredStates
    rows (B,) ─ batch ─▶ h (M, C), target (M,), row (M,)      row[m] in 0 … B − 1, ascending

A document's states lie together in the store and its targets together in the table, so two numbers a document say
where all its pairs are. Those are worked out on the host, where a batch of them costs no launches, and sent in one
piece. The states lie on the device where they fit its budget; otherwise each batch is read from the memory map, and
device memory holds one batch whatever the corpus holds. What grows on the host is ids.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.ragged import ragged
from ..data.tokens import IGNORED
from .features import FeatureStore, sent

RESIDENT_BYTES = {"cpu": 1 << 30, "cuda": 24 << 30}


@dataclass(frozen=True)
class ScoredStates:
    """The scored (state, target) pairs of N documents, document after document; all but `states` on the host."""

    counts: Tensor  # (N,) int64 scored tokens of each document
    first_state: Tensor  # (N,) int64 where a document's first predicting state lies in the store
    first_target: Tensor  # (N,) int64 where its first target lies in ids
    ids: Tensor  # (L,) int32 token ids of all documents
    states: Tensor | None  # (tokens, C) fp16 on the device in the store's order, or None: read from the store
    store: FeatureStore | None
    device: torch.device

    @classmethod
    def resident(cls, states: Tensor, target: Tensor, counts: Tensor) -> "ScoredStates":
        """Pairs that are in memory already: states (S, C), target (S,), and counts (N,) that say whose they are."""
        counts = counts.cpu()
        first = counts.cumsum(0) - counts
        return cls(counts, first, first, target.cpu().int(), states, None, states.device)

    @property
    def documents(self) -> int:
        return len(self.counts)

    @property
    def total(self) -> int:
        """Scored tokens of all documents."""
        return int(self.counts.sum())

    @property
    def offsets(self) -> Tensor:
        """(N + 1,) int64 on the device: of all pairs, document n owns offsets[n] … offsets[n + 1]."""
        return torch.cat([self.counts.new_zeros(1), self.counts.cumsum(0)]).to(self.device)

    @property
    def target(self) -> Tensor:
        """All targets (S,) int64 on the device, document after document; made anew at each call."""
        place = ragged(self.first_target.numpy(), self.counts.numpy())
        return self.ids[torch.from_numpy(place)].long().to(self.device)

    def batch(self, rows: Tensor, length: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Documents rows (B,) to their states (M, C), targets (M,) and row numbers (M,) in 0 … B − 1.

        With a `length` of at least M there are so many pairs: added ones count nothing, their targets are IGNORED.
        """
        rows = rows.cpu()
        counts = self.counts[rows].numpy()
        state = ragged(self.first_state[rows].numpy(), counts)  # (M,)
        target = self.ids.numpy()[ragged(self.first_target[rows].numpy(), counts)]
        told = np.zeros((3, len(state) if length is None else length), dtype=np.int64)
        told[0, : len(state)], told[1, : len(state)], told[1, len(state) :] = state, target, IGNORED
        told[2, : len(state)] = np.repeat(np.arange(len(rows)), counts)
        told[2, len(state) :] = max(len(rows) - 1, 0)
        place, target, row = sent(torch.from_numpy(told), self.device)
        if self.states is not None:
            return self.states.index_select(0, place), target, row
        h = torch.empty(told.shape[1], self.store.width, dtype=torch.float16)
        self.store.gather(told[0], h)
        return sent(h, self.device), target, row


def scored_states(
    store: FeatureStore, table, *, device: torch.device | str = "cpu", budget: int | None = None
) -> ScoredStates:
    """Pair a table's targets with its stored states; resident on `device` when they take at most `budget` bytes."""
    device = torch.device(device)
    limit = RESIDENT_BYTES.get(device.type, RESIDENT_BYTES["cpu"]) if budget is None else budget
    states = None
    if int(store.bounds[-1]) * store.width * 2 <= limit:
        states = torch.empty(int(store.bounds[-1]), store.width, dtype=torch.float16, device=device)
        for first, shard in store.shards():
            states[first : first + len(shard)] = torch.from_numpy(np.array(shard)).to(device)
    prefix = table.prefix.astype(np.int64)
    return ScoredStates(
        counts=torch.from_numpy(table.n_scored.astype(np.int64)),
        first_state=torch.from_numpy(store.start + prefix - 1),
        first_target=torch.from_numpy(table.offsets[:-1] + prefix),
        ids=torch.from_numpy(table.ids),
        states=states,
        store=store,
        device=device,
    )
