"""Frozen hidden states, computed once and kept: the backbone runs over a corpus one time, whatever is trained on it.

    TokenTable ─ documents by length ─▶ shards of whole documents ─ backbone, little padding ─▶ shard-00000.npy … (fp16)

A shard is written whole or not at all and `manifest.json` comes last, so a killed pass resumes at its first
missing shard. The folder's name is a key of everything that changes a value: the backbone's weights, the
tokens, the arithmetic and this file's format. Memory is one shard, whatever the corpus holds.
fp16 keeps 11 bits where bf16 keeps 8; final hidden states (|h| below about 100) lie far inside its range.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import cache
from ..errors import RunFailed

FORMAT = 1  # raised whenever a stored value would change
SHARD_TOKENS = 65_536
BATCH_TOKENS = {"cpu": 2_048, "cuda": 32_768}


@dataclass(frozen=True)
class FeatureStore:
    """Hidden states of every real token of a table, in shards of documents sorted by length.

    `order` (N,) lists documents as stored; `start` (N,) is where document n's states begin in the shards
    laid end to end; `bounds` (S + 1,) are the shards' borders there.
    """

    folder: Path
    order: np.ndarray
    start: np.ndarray
    bounds: np.ndarray
    width: int

    def shards(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first position, memory map (tokens, C) fp16) of each shard."""
        for index, first in enumerate(self.bounds[:-1]):
            yield int(first), np.load(_shard(self.folder, index), mmap_mode="r")

    def gather(self, position: np.ndarray, out: Tensor) -> Tensor:
        """Fill out (M, C) with the states at stored positions (M,); reads one shard at a time."""
        by_place = np.argsort(position, kind="stable")
        ordered = position[by_place]
        edges = np.searchsorted(ordered, self.bounds)
        for index, (low, high) in enumerate(zip(edges[:-1], edges[1:])):
            if low == high:
                continue
            shard = np.load(_shard(self.folder, index), mmap_mode="r")
            rows = torch.from_numpy(shard[ordered[low:high] - self.bounds[index]])
            out[torch.from_numpy(by_place[low:high]).to(out.device)] = rows.to(out.device)
        return out


def features(
    backbone, table, *, dtype: torch.dtype, folder: Path | None = None, progress: bool = True
) -> FeatureStore:
    """The store of `table`'s hidden states (L, C) under `backbone`, computed now if it is not on disk.

    `dtype` is the arithmetic of the pass. Two processes may call this at once: one computes, the other waits.
    Raises RunFailed when a state is not finite.
    """
    folder = (folder or cache.home() / "features") / feature_key(backbone, table, dtype)
    order = np.argsort(table.lengths, kind="stable")
    ends = np.cumsum(table.lengths[order])
    start = np.empty(len(table), dtype=np.int64)
    start[order] = ends - table.lengths[order]
    pieces = _shard_pieces(table.lengths[order])
    bounds = np.concatenate([[0], ends[[piece[-1] for piece in pieces]]]).astype(np.int64)
    store = FeatureStore(folder, order, start, bounds, backbone.width)
    with cache.locked(folder):
        if not _complete(store):
            _compute(backbone, table, store, pieces, dtype, progress)
    return store


def feature_key(backbone, table, dtype: torch.dtype) -> str:
    """Hex name of a store: weights, tokens, arithmetic, format."""
    parts = (backbone.hash, table.hash, str(dtype), str(FORMAT), str(backbone.width))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:24]


def _shard_pieces(lengths: np.ndarray) -> list[np.ndarray]:
    """Indices into the sorted documents, cut into runs of about SHARD_TOKENS tokens."""
    shard = (np.cumsum(lengths) - lengths) // SHARD_TOKENS  # (N,) the shard each document starts in
    return np.split(np.arange(len(lengths)), np.flatnonzero(np.diff(shard)) + 1)


def _shard(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.npy"


def _complete(store: FeatureStore) -> bool:
    """Whether the manifest is there and every shard has the size it promises; damaged shards are removed."""
    manifest = store.folder / "manifest.json"
    if not manifest.is_file():
        return False
    sizes = json.loads(manifest.read_text())["bytes"]
    bad = [i for i, size in enumerate(sizes) if not _has_size(_shard(store.folder, i), size)]
    for index in bad:
        _shard(store.folder, index).unlink(missing_ok=True)
    if bad:
        manifest.unlink()
    return not bad


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _compute(backbone, table, store, pieces, dtype, progress) -> None:
    """Write every missing shard, then the manifest."""
    from tqdm import tqdm

    store.folder.mkdir(parents=True, exist_ok=True)
    bar = tqdm(
        total=int(table.lengths.sum()),
        unit="token",
        unit_scale=True,
        desc="hidden states",
        disable=None if progress else True,
        leave=False,
    )
    with bar, arithmetic(backbone, dtype):
        for index, piece in enumerate(pieces):
            path = _shard(store.folder, index)
            rows = store.order[piece]
            if not path.is_file():
                states = _hidden_rows(backbone, table, rows)
                with cache.atomic(path) as part:
                    with open(part, "wb") as file:
                        np.save(file, states)
            bar.update(int(table.lengths[rows].sum()))
    sizes = [_shard(store.folder, i).stat().st_size for i in range(len(pieces))]
    with cache.atomic(store.folder / "manifest.json") as part:
        part.write_text(json.dumps({"bytes": sizes, "width": backbone.width, "dtype": str(dtype), "format": FORMAT}))


class arithmetic:
    """Hold the backbone's body in `dtype` for the pass and give it back as it was."""

    def __init__(self, backbone, dtype: torch.dtype) -> None:
        self.lm, self.dtype, self.before = backbone.lm, dtype, backbone.head.weight.dtype

    def __enter__(self) -> None:
        if self.dtype != self.before:
            # A 16-bit copy would lose the fp32 weights for good: keep them and put them back afterwards.
            self.kept = {name: value.detach() for name, value in self.lm.state_dict().items()}
            self.lm.to(self.dtype)

    def __exit__(self, *_) -> None:
        if self.dtype != self.before:
            self.lm.to(self.before)
            self.lm.load_state_dict(self.kept)


@torch.inference_mode()
def _hidden_rows(backbone, table, rows: np.ndarray) -> np.ndarray:
    """Hidden states of the given documents, padding removed, one after another: (tokens, C) fp16."""
    device = backbone.head.weight.device
    out, lengths = [], table.lengths[rows]
    budget = BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])
    for part in _by_budget(lengths, budget):
        ids, mask = table.padded(rows[part])  # (B, T), (B, T)
        ids, mask = ids.to(device), mask.to(device)
        states = backbone.hidden(ids, mask)[mask.bool()]  # (tokens, C)
        if not torch.isfinite(states).all():
            raise RunFailed(f"{backbone.name}: hidden states are not finite; try feature_dtype: float32")
        out.append(states.to(torch.float16).cpu().numpy())
    return np.concatenate(out)


def _by_budget(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Cut sorted lengths into runs whose padded size stays within `budget` tokens (at least one document)."""
    low = 0
    while low < len(lengths):
        high = low + 1
        while high < len(lengths) and lengths[high] * (high + 1 - low) <= budget:
            high += 1
        yield np.arange(low, high)
        low = high
