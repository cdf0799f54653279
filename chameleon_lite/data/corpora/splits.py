"""One list of documents becomes training, validation and test, with near-duplicates kept on one side.

    documents ── word 8-grams ─▶ who shares half of the shorter one's ─▶ connected components ─▶ 80 / 10 / 10

Libraries repeat their sentences and instruction sets their tasks: split row by row, a large part of the test
set would be in training almost word for word. Components are dealt out in the order of their hash, so the split
depends on the texts and the seed alone.
"""

import hashlib
import re
from collections.abc import Hashable, Sequence

import numpy as np

from ...errors import UserError
from ..ragged import cumulative, ragged
from .documents import SPLITS, Document

GRAM = 8  # words
HELD_OUT = 0.1  # share of the documents in validation, and as much in test
LARGE = 0.05  # a component with a larger share of the documents goes to training
ROWS = 1024  # documents compared at once with all others
WORD = re.compile(r"\w+")


def split_documents(
    documents: Sequence[Document], *, seed: int = 0, keys: Sequence[Hashable] | None = None
) -> tuple[dict[str, tuple[Document, ...]], dict]:
    """Documents to their splits and the notes about it; documents with equal `keys` (N,) stay together too.

    The notes hold how many documents are linked to another, the size of the largest component, and the
    residual overlap of validation and test with training. Raises UserError when a split would be empty.
    """
    component = _components(_texts(documents), keys)
    side = _sides(component, [_digest(d, seed) for d in documents])
    splits = {name: tuple(d for d, s in zip(documents, side) if s == name) for name in SPLITS}
    if not all(splits.values()):
        raise UserError(
            f"too few distinct documents to split: {len(documents)} in {component.max(initial=-1) + 1} groups without "
            "near-duplicates; give at least 3, better 1,000"
        )
    sizes = np.bincount(component)
    notes = {"linked_documents": int(sizes[sizes > 1].sum()), "largest_component": int(sizes.max())}
    return splits, notes | overlaps(splits)


def overlaps(splits: dict[str, Sequence[Document]]) -> dict[str, dict[str, float]]:
    """The note {"overlap": {split: share}}: documents that have half their 8-grams somewhere in training.

    Documents of fewer than 8 words are not counted. 0 for a split with none to count.
    """
    known = _texts(splits["train"])
    shares = {}
    for name in SPLITS[1:]:
        held = [text for text in _texts(splits.get(name, ())) if len(WORD.findall(text)) >= GRAM]
        owner, gram = _grams(known + held)  # together, because words are numbered anew in each call
        mine = owner >= len(known)
        seen = np.isin(gram[mine], gram[~mine])
        found = np.bincount(owner[mine] - len(known), weights=seen, minlength=len(held))
        total = np.bincount(owner[mine] - len(known), minlength=len(held))
        shares[name] = round(float((2 * found >= total).mean()), 6) if held else 0.0
    return {"overlap": shares}


def near_duplicates(texts: Sequence[str]) -> np.ndarray:
    """Texts (N,) to their component (N,) int64: texts that share half of the shorter one's 8-grams are linked."""
    return _components(texts, None)


def _texts(documents: Sequence[Document]) -> list[str]:
    return [f"{d.prompt} {d.text}" for d in documents]


def _digest(document: Document, seed: int) -> str:
    return hashlib.sha256(f"{seed}\0{document.prompt}\0{document.text}".encode()).hexdigest()


def _components(texts: Sequence[str], keys: Sequence[Hashable] | None) -> np.ndarray:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    left, right = _links(texts)
    if keys is not None:
        first = {}
        left = np.concatenate([left, np.arange(len(keys))])
        right = np.concatenate([right, [first.setdefault(key, i) for i, key in enumerate(keys)]])
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(len(texts), len(texts)))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _links(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of documents, (P,) and (P,), that share at least half of the shorter one's distinct 8-grams."""
    from scipy.sparse import csr_array

    owner, gram = _grams(texts)
    size = np.bincount(owner, minlength=len(texts))  # (N,)
    _, column, count = np.unique(gram, return_inverse=True, return_counts=True)
    shared = count[column] > 1  # a gram of one document alone links nothing
    matrix = csr_array(
        (np.ones(shared.sum(), np.int32), (owner[shared], column[shared])), shape=(len(texts), len(count))
    )
    left, right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in range(0, len(texts), ROWS):
        both = (matrix[start : start + ROWS] @ matrix.T).tocoo()  # how many 8-grams two documents share
        a, b = both.coords[0] + start, both.coords[1]
        linked = (a < b) & (2 * both.data >= np.minimum(size[a], size[b]))
        left.append(a[linked])
        right.append(b[linked])
    return np.concatenate(left), np.concatenate(right)


def _grams(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct 8-grams of every text: owner (G,) int64 and a 64-bit hash (G,) uint64, comparable inside one call.

    A text of fewer than 8 words is one gram, filled up with word 0, so that only equal short texts meet.
    """
    number: dict[str, int] = {}
    words = [[number.setdefault(w, len(number) + 1) for w in WORD.findall(text.lower())] for text in texts]
    lengths = np.array([len(w) for w in words], dtype=np.int64)
    offsets = cumulative(np.maximum(lengths, GRAM))
    flat = np.zeros(offsets[-1], dtype=np.uint64)
    flat[ragged(offsets[:-1], lengths)] = np.fromiter(
        (i for row in words for i in row), np.uint64, lengths.sum()
    )
    flat = _mixed(flat)
    windows = np.diff(offsets) - GRAM + 1
    start = ragged(offsets[:-1], windows)
    gram = np.zeros(len(start), dtype=np.uint64)
    for i in range(GRAM):  # a polynomial in the words' hashes, modulo 2⁶⁴
        gram = gram * np.uint64(0x9E3779B97F4A7C15) + flat[start + i]
    owner = np.repeat(np.arange(len(texts)), windows)
    order = np.lexsort((gram, owner))
    owner, gram = owner[order], gram[order]
    new = np.append(True, (owner[1:] != owner[:-1]) | (gram[1:] != gram[:-1]))[: len(owner)]
    return owner[new], gram[new]


def _mixed(x: np.ndarray) -> np.ndarray:
    """Small integers spread over 64 bits, so that sums of multiples of them do not collide (splitmix64's steps)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _sides(component: np.ndarray, digests: Sequence[str]) -> list[str]:
    """The split of each document (N,): components in order of their smallest digest fill test, then validation."""
    sizes = np.bincount(component)
    target = max(1, round(HELD_OUT * len(component)))
    large = max(1, LARGE * len(component))
    smallest: dict[int, str] = {}
    for c, digest in zip(component.tolist(), digests):
        smallest[c] = min(smallest.get(c, digest), digest)
    room = {"test": target, "validation": target}
    side = {}
    for c in sorted(smallest, key=smallest.__getitem__):
        fits = [name for name, left in room.items() if sizes[c] <= min(large, left)]
        side[c] = fits[0] if fits else "train"
        if fits:
            room[fits[0]] -= sizes[c]
    return [side[c] for c in component.tolist()]
