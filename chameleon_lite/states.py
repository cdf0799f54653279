"""Frozen hidden states, computed once and kept, and the (state, target) pairs that heads are trained on.

    TokenTable ─ documents by length ─ backbone ─▶ states (L, C) fp16, a file in document order
    ScoredStates.batch(rows (B,)) ─▶ h (M, C), target (M,), row (M,)        row[m] in 0 … B - 1, ascending

A state's place in the file is its token's place in the table, and the state at place p predicts the token at
p + 1. The file's name is a key of all that changes a value: the backbone's weights, the tokens, the
arithmetic, which positions are stored, and FORMAT. fp16 keeps 11 bits where bf16 keeps 8; final hidden states
(|h| below about 100) lie far inside its range.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from . import files
from .backbones.formats import arithmetic, unmasked
from .backbones.stored import stored
from .backbones.transfer import Fetched, on_device, sent
from .errors import UserError
from .lora import adapted_layers
from .text import by_length, cumulative, ragged

FORMAT = 4  # raised whenever a stored value would change
# Padded tokens that the backbone reads at once; what it made of them is written while it reads the next.
BATCH_TOKENS = {"cpu": 2_048, "cuda": 16_384}
RESIDENT_BYTES = {"cpu": 1 << 30, "cuda": 24 << 30}  # states up to this size lie on the device


class ScoredStates:
    """The scored (state, target) pairs of N documents, on the device where they fit, else in the file.

    The study's: `of_pairs`, `total`, `offsets` and `target`.
    """

    def __init__(self, table, states: np.ndarray | Tensor, device="cpu", budget: int | None = None) -> None:
        """Pair a table with its states (L, C); more than `budget` bytes of them stay in the file."""
        self.device, self.counts = torch.device(device), torch.from_numpy(table.n_scored.astype(np.int64))
        self.first = table.offsets[:-1] + table.prefix - 1  # (N,) place of each document's first pair
        self.next = table.ids[1:]  # the target of the state at place p is next[p]
        if budget is None:
            budget = RESIDENT_BYTES.get(self.device.type, RESIDENT_BYTES["cpu"])
        self.states = states if states.nbytes > budget else on_device(states, self.device)

    @classmethod
    def of_pairs(cls, states: np.ndarray | Tensor, target: np.ndarray, counts: np.ndarray, device="cpu"):
        """For the study, pairs without the tokens between: states (S, C), target (S,), counts (N,)."""
        ids, offsets = np.concatenate([[0], target]), cumulative(counts)
        return cls(SimpleNamespace(ids=ids, offsets=offsets, prefix=1, n_scored=counts), states, device)

    @property
    def total(self) -> int:
        """Scored tokens of all documents, S."""
        return int(self.counts.sum())

    @property
    def offsets(self) -> Tensor:
        """(N + 1,) int64 on the device: of all pairs, document n owns offsets[n] … offsets[n + 1]."""
        return torch.from_numpy(cumulative(self.counts.numpy())).to(self.device)

    @property
    def target(self) -> Tensor:
        """All targets (S,) int64 on the device, document after document."""
        place = ragged(self.first, self.counts.numpy())
        return torch.from_numpy(self.next[place].astype(np.int64)).to(self.device)

    def tokens(self, rows: Tensor) -> int:
        """Scored tokens of documents rows (B,)."""
        return int(self.counts[rows].sum())

    def pieces(self, rows: Tensor) -> list[Tensor]:
        """Indices into rows (B,) of the documents that are read at one time: all of them."""
        return [torch.arange(len(rows))]

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Documents rows (B,) to states (M, C), targets (M,), and indices into rows (M,) on the host."""
        rows = rows.cpu().numpy()
        counts = self.counts.numpy()[rows]
        at = ragged(self.first[rows], counts)  # (M,)
        row = torch.from_numpy(np.repeat(np.arange(len(rows)), counts))
        place, target = sent(torch.from_numpy(np.stack([at, self.next[at]])), self.device)  # one transfer
        if isinstance(self.states, Tensor):
            return self.states.index_select(0, place), target, row
        return sent(torch.from_numpy(self.states[at]), self.device), target, row


def hidden_states(
    backbone, table, dtype: torch.dtype, folder: Path | None = None, progress=True
) -> np.ndarray:
    """Memory map (L, C) fp16 of the states of all tokens of `table`, computed now where they are not on disk.

    `dtype` is the arithmetic of the pass. Raises RunFailed when a state is not finite, UserError for LoRA.
    """
    pieces = list(read_at_once(table.lengths, backbone.device))
    how = (lambda rows: hidden_rows(backbone, table, rows), arithmetic(backbone, dtype), progress)
    path = place_of(backbone, table, dtype, "tokens", folder)
    return stored(path, table.offsets, backbone.width, pieces, *how)


def read_at_once(lengths: np.ndarray, device: torch.device) -> Iterator[np.ndarray]:
    """Places in lengths (N,) of the documents of each batch, shortest first."""
    return by_length(lengths, BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"]))


def place_of(backbone, table, dtype: torch.dtype, layout: str, folder: Path | None = None) -> Path:
    """The file of a table's states; `layout` names which positions it holds and under which mask.

    Raises UserError for a backbone that carries LoRA.
    """
    if adapted_layers(backbone):  # the name is of the frozen weights, and these states are others
        raise UserError(f"{backbone.name} carries LoRA: only a frozen backbone's hidden states are kept")
    parts = (backbone.hash, table.hash, str(dtype), str(FORMAT), str(backbone.width), layout)
    name = hashlib.sha256("|".join(parts).encode()).hexdigest()[:24]
    return (folder or files.home() / "states") / f"{name}.npy"


@torch.inference_mode()
def hidden_rows(backbone, table, rows: np.ndarray) -> np.ndarray:
    """Hidden states of documents `rows`, which are in order of length, in that order: (tokens, C) fp16 on the host.

    Rows are padded on the right and attention is causal, so padding cannot reach a real token: no mask is
    needed, and attention without a mask takes its fastest path. RunFailed when a state is not finite.
    """
    device, lengths = backbone.device, table.lengths[rows]
    states = Fetched(int(lengths.sum()), backbone.width, device)
    with unmasked(backbone.lm):
        for part in read_at_once(lengths, device):
            ids, mask = table.padded(rows[part])  # (B, T), (B, T)
            real = mask.flatten().nonzero().squeeze(1)  # (tokens,), on the host: the device is not waited for
            h = backbone.hidden(sent(ids, device), None).flatten(0, 1)  # (B·T, C)
            states.add(h.index_select(0, sent(real, device)))
    return states.rows(backbone.name)
