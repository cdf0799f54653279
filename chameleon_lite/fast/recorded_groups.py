"""Where each group's rows lie, in a recording: worked out on the device from an input, since the host cannot read.

    groups and counts (B,) of documents ── runs_of ─▶ ends and groups of runs (2, runs) ─▶ recorder ─▶
    RecordedGroups: index (M,), runs ── tables ─▶ the head loss's tables of tiles and items

A run is a stretch of rows of one group. How many runs, tiles and items there are is the same in every replay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .recorder import outliving


def runs_of(group: Tensor, groups: int, counts: Tensor, rows: int) -> tuple[Tensor, bool]:
    """Ends and groups (2, runs) of runs, from documents' groups and counts (B,); and whether run g is group g's.

    Then there are G runs, else B, the spare ones empty. The last one takes what is missing to `rows` rows.
    """
    own, documents = torch.unique_consecutive(group.cpu(), return_counts=True)
    ends = counts.cumsum(0)[documents.cumsum(0) - 1]
    ends[-1], each = rows, torch.equal(own, torch.arange(groups))
    spare = (0, 0 if each else len(group) - len(own))
    return torch.stack([F.pad(ends, spare, value=rows), F.pad(own, spare)]), each


@dataclass(frozen=True)
class RecordedGroups:
    """The group of each of M rows.

    In a step they stand for the groups (B,) of its documents, which it would spread over the rows on the host.
    """

    index: Tensor  # (M,) int64
    end: Tensor  # (runs,) int64, ascending: the row behind each run's last
    group: Tensor  # (runs,) int64
    each: bool  # whether the runs are those of all groups, in order
    ordered = True  # taken for granted: rows stay where they are

    @classmethod
    def of(cls, runs: Tensor, rows: int, each: bool) -> "RecordedGroups":
        """From what `runs_of` made, on the device."""
        end, group = runs
        own = torch.searchsorted(end, torch.arange(rows, device=end.device), right=True)  # (M,)
        return cls(group[own], end, group, each)

    def cpu(self) -> "RecordedGroups":
        """Itself: nothing is waited for."""
        return self

    def __getitem__(self, places: Tensor) -> "RecordedGroups":
        """Itself: spread over the rows already."""
        return self

    @property
    def shape(self) -> torch.Size:
        """The index's."""
        return self.index.shape

    def within(self, rows: slice, count: int) -> Tensor:
        """All runs as a chunk of `count` rows sees them (runs, 4): 0, group, first, end."""
        end = (self.end - rows.start).clamp(0, count)
        return torch.stack([torch.zeros_like(end), self.group, F.pad(end[:-1], (1, 0)), end], 1)


def tables(groups: Sequence, first: Sequence[int], rows: slice, n: int, size: int, device) -> tuple:
    """What `Layout` holds of a chunk of n rows, for heads with groups or None and slots from first[k] on.

    Each run is an item; tiles have at most `size` rows.
    """
    whole = known(((0, 0, 0, n),), device)
    runs = {id(g): whole if g is None else g.within(rows, n) for g in groups}  # heads often share one
    starts = known(tuple((k, slot, 0, 0) for k, slot in enumerate(first[:-1])), device)  # (H, 4)
    items = torch.cat([runs[id(g)] + start for g, start in zip(groups, starts)])  # (I, 4), head by head
    index = {id(g): items.new_zeros(n) if g is None else g.index[rows] for g in groups}
    slot = torch.stack([index[id(g)] for g in groups]) + starts[:, 1:2]  # (H, n)
    tiles = cut(items, size, slot.numel()).int()
    if all(g is None or g.each for g in groups):
        return slot, tiles, items.int(), 1, None
    items = items[items[:, 1].argsort(stable=True)]
    ends = torch.searchsorted(items[:, 1].contiguous(), torch.arange(first[-1], device=device), right=True)
    return slot, tiles, items.int(), 0, ends - F.pad(ends[:-1], (1, 0))


def cut(runs: Tensor, size: int, rows: int) -> Tensor:
    """Runs (·, 4) of so many rows in all in pieces of at most `size`, by first row; the last ones are empty."""
    parts = (runs[:, 3] - runs[:, 2] + (size - 1)) // size
    behind = parts.cumsum(0)
    number = torch.arange((rows + len(runs) * (size - 1)) // size, device=runs.device)
    own = torch.searchsorted(behind, number, right=True).clamp_max(len(runs) - 1)
    out = runs[own]
    out[:, 2] += (number - (behind - parts)[own]) * size
    out[:, 3] = torch.minimum(out[:, 3], out[:, 2] + size)
    return out[out[:, 2].argsort(stable=True)]


def known(numbers: tuple, device: torch.device) -> Tensor:
    """Numbers on the device, sent there the first time."""
    return outliving(_sent(numbers, device))


@lru_cache(maxsize=4_096)
def _sent(numbers: tuple, device: torch.device) -> Tensor:
    return torch.tensor(numbers, device=device)
