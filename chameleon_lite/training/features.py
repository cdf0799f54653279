"""Frozen hidden states, computed once and kept: the backbone runs over a corpus one time, whatever is trained on it.

    TokenTable ─ documents by length ─▶ shards of whole documents ─ backbone, little padding ─▶ shard-00000.npy … (fp16)

A shard is written whole or not at all and `manifest.json` comes last, so a killed pass resumes at its first
missing shard. The folder's name is a key of everything that changes a value: the backbone's weights, the
tokens, the arithmetic and this file's format. Memory is two shards, whatever the corpus holds.
fp16 keeps 11 bits where bf16 keeps 8; final hidden states (|h| below about 100) lie far inside its range.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .. import cache
from ..data.tokens import by_length
from ..errors import RunFailed, UserError
from ..model.formats import in_format
from ..model.lora import lora_names

FORMAT = 3  # raised whenever a stored value would change
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

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        """A memory map (tokens, C) of each shard, opened once."""
        return [np.load(_shard(self.folder, index), mmap_mode="r") for index in range(len(self.bounds) - 1)]

    def shards(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first position, memory map (tokens, C) fp16) of each shard."""
        yield from zip(self.bounds[:-1].tolist(), self._maps)

    def gather(self, position: np.ndarray, out: Tensor) -> Tensor:
        """Fill out (M, C), on the host, with the states at stored positions (M,); touches no other page."""
        by_place = np.argsort(position, kind="stable")
        ordered = position[by_place]
        edges = np.searchsorted(ordered, self.bounds)
        for index in np.flatnonzero(np.diff(edges)):
            part = slice(edges[index], edges[index + 1])
            rows = self._maps[index][ordered[part] - self.bounds[index]]
            out[torch.from_numpy(by_place[part])] = torch.from_numpy(rows)
        return out


def features(
    backbone, table, *, dtype: torch.dtype, folder: Path | None = None, progress: bool = True
) -> FeatureStore:
    """The store of `table`'s hidden states (L, C) under `backbone`, computed now if it is not on disk.

    `dtype` is the arithmetic of the pass. Two processes may call this at once: one computes, the other waits.
    Raises RunFailed when a state is not finite, UserError for a backbone that carries LoRA.
    """
    if lora_names(backbone):  # a store is named after the frozen weights, and these states are others
        raise UserError(
            f"{backbone.name} carries LoRA, and its hidden states are not kept: use the frozen backbone"
        )
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
    """Write every missing shard, then the manifest; one shard is written while the next is computed."""
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
    writing: Future | None = None
    with bar, arithmetic(backbone, dtype), ThreadPoolExecutor(1) as writer:
        for index, piece in enumerate(pieces):
            path = _shard(store.folder, index)
            rows = store.order[piece]
            if not path.is_file():
                states = hidden_rows(backbone, table, rows)
                if writing is not None:
                    writing.result()  # two shards in memory at most
                writing = writer.submit(_write_shard, path, states)
            bar.update(int(table.lengths[rows].sum()))
        if writing is not None:
            writing.result()
    sizes = [_shard(store.folder, i).stat().st_size for i in range(len(pieces))]
    with cache.atomic(store.folder / "manifest.json") as part:
        part.write_text(
            json.dumps({"bytes": sizes, "width": backbone.width, "dtype": str(dtype), "format": FORMAT})
        )


def _write_shard(path: Path, states: np.ndarray) -> None:
    with cache.atomic(path) as part:
        with open(part, "wb") as file:
            np.save(file, states)


@contextmanager
def arithmetic(backbone, dtype: torch.dtype) -> Iterator[None]:
    """Hold the backbone in `dtype`, its activations fused, and give it back as it was."""
    with fused_activations(backbone.lm), in_format(backbone.lm, dtype):
        yield


@contextmanager
def fused_activations(lm: nn.Module) -> Iterator[None]:
    """Compute each activation that is spelled out in elementwise passes in one; the module is given back as it was.

    One pass also keeps one tensor for the way back where eight keep five.
    """
    slow = [
        (module, name, child)
        for module in lm.modules()
        for name, child in module.named_children()
        if type(child).__name__ == "NewGELUActivation"  # GPT-2's, spelled out in eight elementwise passes
    ]
    try:
        for module, name, _ in slow:
            setattr(module, name, nn.GELU(approximate="tanh"))
        yield
    finally:
        for module, name, child in slow:
            setattr(module, name, child)


@torch.inference_mode()
def hidden_rows(backbone, table, rows: np.ndarray) -> np.ndarray:
    """Hidden states of documents `rows`, sorted by length, one after another: (tokens, C) fp16.

    Rows are padded on the right and every token sees only what is left of it, so no mask is needed: real
    tokens never see padding, and attention without a mask takes its fastest path.
    """
    device = backbone.head.weight.device
    lengths = table.lengths[rows]
    states = torch.empty(int(lengths.sum()), backbone.width, dtype=torch.float16, device=device)
    done = 0
    for part in by_length(lengths, BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])):
        ids, mask = table.padded(rows[part])  # (B, T), (B, T)
        real = (
            mask.flatten().nonzero().squeeze(1)
        )  # (tokens,), found on the host: the device is not waited for
        h = backbone.hidden(sent(ids, device), None).flatten(0, 1)  # (B·T, C)
        states[done : done + len(real)] = h.index_select(0, sent(real, device))
        done += len(real)
    if not torch.isfinite(states).all():
        raise RunFailed(f"{backbone.name}: hidden states are not finite; try feature_dtype: float32")
    return _fetched(states).numpy()


def sent(x: Tensor, device: torch.device) -> Tensor:
    """x on the device, copied beside its work: the host does not wait for a GPU."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def _fetched(x: Tensor) -> Tensor:
    """x on the host; through page-locked memory, which a GPU fills several times faster."""
    if not x.is_cuda:
        return x.cpu()
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x)
