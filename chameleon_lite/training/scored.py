"""Scored positions of a corpus, ready to be drawn by document: what head training and evaluation read.

    FeatureStore + TokenTable ─▶ ScoredStates
    rows (B,) ─ batch ─▶ h (M, C), target (M,), row (M,)      row[m] in 0 … B − 1, ascending

A document's states lie together in the store and its targets together in the table, so two numbers a document say
where all its pairs are. The states live on the device where they fit its budget; otherwise each batch is read
from the memory map, and device memory holds one batch whatever the corpus holds. What grows on the host is ids.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .features import FeatureStore

RESIDENT_BYTES = {"cpu": 1 << 30, "cuda": 24 << 30}


@dataclass(frozen=True)
class ScoredStates:
    """The scored (state, target) pairs of N documents, document after document.

    `first_state`, `first_target` (N,) and `ids` (L,) lie beside the states: on the device where those are
    resident, on the host where they are read from disk.
    """

    counts: Tensor  # (N,) int64 scored tokens of each document, on the host: asking for a total waits for nothing
    first_state: Tensor  # (N,) int64 where a document's first predicting state lies in the store
    first_target: Tensor  # (N,) int64 where its first target lies in ids
    ids: Tensor  # (L,) int32 token ids of all documents
    states: Tensor | None  # (tokens, C) fp16 on the device in the store's order, or None: read from the store
    store: FeatureStore | None
    device: torch.device

    @classmethod
    def resident(cls, states: Tensor, target: Tensor, counts: Tensor) -> "ScoredStates":
        """Pairs that are in memory already: states (S, C), target (S,), and counts (N,) that say whose they are."""
        first = (counts.cumsum(0) - counts).to(states.device)
        return cls(counts.cpu(), first, first, target.int(), states, None, states.device)

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
        first = self.first_target.cpu()
        within = torch.arange(self.total) - (self.counts.cumsum(0) - self.counts).repeat_interleave(self.counts)
        place = first.repeat_interleave(self.counts) + within  # (S,)
        return self.ids[place.to(self.ids.device)].long().to(self.device)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Documents rows (B,) to their states (M, C), targets (M,) and row numbers (M,) in 0 … B − 1."""
        counts = self.counts[rows]  # (B,)
        total = int(counts.sum())
        place = self.ids.device
        rows, counts = rows.to(place), counts.to(place)
        index = torch.arange(len(rows), device=place)
        row = torch.repeat_interleave(index, counts, output_size=total)  # (M,)
        within = torch.arange(total, device=place) - (counts.cumsum(0) - counts)[row]
        target = self.ids[self.first_target[rows][row] + within].long()  # (M,)
        state = self.first_state[rows][row] + within  # (M,)
        if self.states is not None:
            return self.states[state], target, row
        h = torch.empty(total, self.store.width, dtype=torch.float16)
        self.store.gather(state.numpy(), h)
        return h.to(self.device), target.to(self.device), row.to(self.device)


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
    place = device if states is not None else torch.device("cpu")
    prefix = table.prefix.astype(np.int64)
    first_target = table.offsets[:-1] + prefix
    return ScoredStates(
        counts=torch.from_numpy(table.n_scored.astype(np.int64)),
        first_state=torch.from_numpy(store.start + prefix - 1).to(place),
        first_target=torch.from_numpy(first_target).to(place),
        ids=torch.from_numpy(table.ids).to(place),
        states=states,
        store=store,
        device=device,
    )
