"""Which of a head's updates each row of a pass uses, known on the host as well: no kernel launch waits for the device.

group (B,) of documents, counts (B,) ─ of_documents ─▶ RowGroups: index (M,) on the device, runs on the host
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RowGroups:
    """The group of each of M rows; a run is a stretch of rows of one group."""

    index: Tensor  # (M,) int64 on the rows' device
    first: np.ndarray  # (runs,) each run's first row
    group: np.ndarray  # (runs,) each run's group

    @classmethod
    def of(cls, index: Tensor) -> "RowGroups":
        """From the index (M,) alone; waits for its device once."""
        values = index.detach().cpu().numpy()
        starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
        return cls(index, starts, values[starts])

    @classmethod
    def of_documents(cls, group: Tensor, counts: Tensor, device: torch.device) -> "RowGroups":
        """From the group (B,) and the rows (B,) of documents that lie one after another; both on the host."""
        group, counts = group.cpu().numpy(), counts.cpu().numpy()
        # By numpy: PyTorch's own wakes all threads of the processor for a handful of numbers, in every step.
        index = torch.from_numpy(np.repeat(group, counts)).to(device, non_blocking=True)
        group, counts = group[counts > 0], counts[counts > 0]
        new = np.diff(group, prepend=group[:1] - 1) != 0
        return cls(index, (np.cumsum(counts) - counts)[new], group[new])

    @property
    def ordered(self) -> bool:
        """Whether every group's rows lie side by side, in ascending order of the groups."""
        return bool((np.diff(self.group) > 0).all())

    def within(self, rows: slice, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The runs of a chunk, as (first, end, group) with rows counted from its start; `count` is its rows."""
        low = max(0, int(np.searchsorted(self.first, rows.start, side="right")) - 1)
        high = int(np.searchsorted(self.first, rows.start + count, side="left"))
        first = np.maximum(self.first[low:high] - rows.start, 0)
        return first, np.append(first[1:], count), self.group[low:high]


Groups = Sequence[Tensor | RowGroups | None] | None
