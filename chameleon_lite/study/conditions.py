"""What a head is told about a group of documents before they are scored: one small class a kind of knowledge.

A condition source is built for one split and handed the split's current arrangement; called with the rows of a
step it returns the groups met there and each row's group. Vectors come from the documents' condition spans
(prefix or prompt), so nothing scored is read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.arrangement import Arrangement
from ..model.heads.interface import Condition


@dataclass
class Split:
    """What condition sources may know of a split; `arrangement` changes every epoch."""

    vectors: Tensor  # (N, C) normalised mean token embeddings of the condition spans
    arrangement: Arrangement | None = None


class GroupMean:
    """The mean vector of the row's group of at most `size` documents (paper, section 3.1; size 1 = per sample)."""

    def __init__(self, split: Split, size: int) -> None:
        self.split, self.size = split, size
        self._for: Arrangement | None = None

    def __call__(self, rows: Tensor) -> tuple[Condition, Tensor | None]:
        self._refresh()
        group, row_group = torch.unique(self.group_of[rows], return_inverse=True)  # (G,), (B,)
        return Condition(self.means[group.to(self.means.device)]), row_group if len(group) > 1 else None

    def _refresh(self) -> None:
        """Group means (groups, C), once an arrangement."""
        if self._for is self.split.arrangement:
            return
        self._for = self.split.arrangement
        self.group_of = self._for.groups(self.size)  # (N,)
        vectors = self.split.vectors
        place = torch.argsort(self.group_of, stable=True)
        sizes = torch.bincount(self.group_of)  # (groups,)
        sums = torch.segment_reduce(
            vectors[place.to(vectors.device)], "mean", lengths=sizes.to(vectors.device), axis=0
        )
        self.means = sums  # (groups, C)


class Constant:
    """The same vector for every group: the mean over the training documents (regime R3)."""

    def __init__(self, split: Split, vector: Tensor) -> None:
        self.condition = Condition(vector[None])

    def __call__(self, rows: Tensor) -> tuple[Condition, None]:
        return self.condition, None
