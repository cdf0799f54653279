"""Vectors of documents in one file, computed piece by piece and checked: what a killed process wrote is kept.

    <name>.npy        (L, C) fp16   document n owns rows offsets[n] … offsets[n + 1]
    <name>.marks.npy  (N,) int64    a checksum per document, written after its rows; 0 where there are none

A pass that is started again computes the pieces whose documents are not marked. Each process compares rows
and marks once, at first use; what differs is named in a warning and computed again. Memory is two pieces.
"""

import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .. import files

THREADS = 8  # that write and sum, or read and sum: one alone is slower than a GPU that computes
_whole: dict[Path, int] = {}  # files this process compared with their marks: when each was last written, ns


def stored(
    path: Path, offsets: np.ndarray, width: int, pieces: Sequence, compute: Callable, meanwhile, progress=True
) -> np.ndarray:
    """Memory map (L, C) fp16 of the file at `path`, computed now where it is not there.

    offsets (N + 1,) say where the rows of each document lie. `pieces` are document numbers (n,) that are
    computed together; `compute` gives their rows, document after document, inside the context `meanwhile`.
    Two processes may call this at once: one computes, the other waits.
    """
    with files.locked(path):
        if not path.is_file() or _whole.get(path) != path.stat().st_mtime_ns:
            marks, lost = _opened(path.with_suffix(".marks.npy"), (len(offsets) - 1,), np.int64)
            rows, _ = _opened(path, (int(offsets[-1]), width), np.float16)
            good = marked = marks != 0  # (N,)
            if marked.any():  # of a new file there is nothing to compare
                good = marked & (_sums(path, rows.offset, np.diff(offsets) * rows.strides[0]) == marks)
            if damaged := int((~good if lost else marked & ~good).sum()):
                warnings.warn(f"{path} is damaged: {damaged} documents are computed again", stacklevel=3)
            if not good.all():
                with meanwhile:
                    _compute(path, rows.offset, marks, good, offsets, pieces, compute, progress)
            _whole[path] = path.stat().st_mtime_ns
    return np.load(path, mmap_mode="r")


def _opened(path: Path, shape: tuple[int, ...], dtype: type) -> tuple[np.memmap, bool]:
    """The array at `path`, else zeros, which take no disk; and whether a file lay there that is another."""
    size = path.stat().st_size if path.is_file() else -1
    try:
        found = np.lib.format.open_memmap(path, "r+" if os.access(path, os.W_OK) else "r")
        if found.shape == shape and found.dtype == dtype:
            return found, size < found.offset + found.nbytes  # a file cut short was filled up with zeros
    except (FileNotFoundError, ValueError, TypeError, OverflowError, SyntaxError, RecursionError):
        pass  # not there, or no array
    with files.atomic(path) as part:
        np.lib.format.open_memmap(part, "w+", dtype, shape)
    return np.lib.format.open_memmap(path, "r+"), size >= 0


def _sums(path: Path, start: int, sizes: np.ndarray) -> np.ndarray:
    """Checksums (N,) int64, none of them 0, of runs of `sizes` bytes, one after another from byte `start`."""
    first = start + np.cumsum(sizes) - sizes  # (N,)

    def read(runs: np.ndarray) -> list[int]:
        with open(path, "rb") as file:  # not through the map, whose pages count as this process's memory
            file.seek(int(first[runs[0]]))
            return [zlib.crc32(file.read(size)) + 1 for size in sizes[runs].tolist()]

    shares = [runs for runs in np.array_split(np.arange(len(sizes)), THREADS) if len(runs)]
    with ThreadPoolExecutor(THREADS) as threads:
        return np.array([number for share in threads.map(read, shares) for number in share], dtype=np.int64)


def _compute(path, start, marks, good, offsets, pieces, compute, progress) -> None:
    """Compute every piece with a document that is not good; it is written while the next is computed."""
    from tqdm import tqdm

    sizes = np.diff(offsets)
    total, disable = int(sizes.sum()), None if progress else True
    bar = tqdm(total=total, unit="token", unit_scale=True, desc="hidden states", disable=disable, leave=False)

    def write(documents: np.ndarray, parts: list[np.ndarray]) -> None:
        with open(path, "r+b") as file:  # a full disk is an error here; through a map it ends the process
            for document, part in zip(documents, parts):
                file.seek(start + int(offsets[document]) * part.strides[0])
                file.write(part)
        marks[documents] = [zlib.crc32(part) + 1 for part in parts]

    with bar, ThreadPoolExecutor(THREADS) as threads:
        writing = []
        for documents in pieces:
            if not good[documents].all():
                parts = np.split(compute(documents), np.cumsum(sizes[documents])[:-1])
                for task in writing:  # two pieces in memory at most
                    task.result()  # raises what the task raised
                shares = [slice(first, None, THREADS) for first in range(THREADS)]
                writing = [threads.submit(write, documents[own], parts[own]) for own in shares]
            bar.update(int(sizes[documents].sum()))
        for task in writing:
            task.result()
