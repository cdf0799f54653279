"""Which of a head's updates each row of a pass uses, on the device and as runs on the host.

An index that lies on the host costs no wait: its runs are read there and it is sent to the device. One that lies on
the device is waited for once.
"""

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
    def of(cls, index: Tensor, device: torch.device) -> "RowGroups":
        """From the index (M,), on the host or on `device`."""
        values = index.detach().cpu().numpy()
        starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
        return cls(index.to(device, non_blocking=True), starts, values[starts])

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
