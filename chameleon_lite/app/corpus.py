"""A corpus: documents in three splits, with near-duplicates on one side and a hash of all its text.

    documents ── word 8-grams ─▶ pairs that share half of the shorter one's ─▶ connected components ─▶ 80 / 10 / 10

Libraries repeat their sentences and instruction sets their tasks: split row by row, a large part of the test
set would be in training almost word for word. Components are assigned in the order of their hash, so the split
depends on the texts and the seed alone.
"""

import hashlib
import json
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..errors import UserError
from ..text import Document, cumulative

SPLITS = ("train", "validation", "test")
GRAM = 8  # words
HELD_OUT = 0.1  # share of the documents in validation, and as much in test
LARGE = 0.05  # a component with a larger share of the documents goes to training
ROWS = 1024  # documents compared at once with all others
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Corpus:
    """Documents by split, with one line on where they came from and JSON-able `notes` about them."""

    name: str
    splits: dict[str, tuple[Document, ...]]
    source: str
    notes: dict = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """Hex sha256 over the canonical JSON lines of all splits, in order; name, source and notes don't count."""
        digest = hashlib.sha256()
        for line in lines(self):
            digest.update(line.encode() + b"\n")
        return digest.hexdigest()

    def counts(self) -> dict[str, dict[str, int]]:
        """For each split the number of documents, of scored characters and of groups."""
        counts = {split: {"documents": len(documents)} for split, documents in self.splits.items()}
        for split, documents in self.splits.items():
            counts[split]["characters"] = sum(len(d.text) for d in documents)
            counts[split]["groups"] = len({d.group for d in documents})
        return counts


def lines(corpus: Corpus) -> Iterator[str]:
    """One canonical JSON line per document: its split and all its fields, keys sorted, no spaces."""
    for split in sorted(corpus.splits, key=lambda s: (SPLITS.index(s) if s in SPLITS else len(SPLITS), s)):
        for document in corpus.splits[split]:
            row = {"split": split} | vars(document)
            yield json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def split_documents(
    documents: Sequence[Document], *, seed: int = 0, keys: Sequence[Hashable] | None = None
) -> tuple[dict[str, tuple[Document, ...]], dict]:
    """Documents to their splits and the notes about it; documents with equal `keys` (N,) stay together too.

    The notes hold how many documents are linked to another, the size of the largest component, and the
    residual overlap of validation and test with training. Raises UserError when a split would be empty.
    """
    component = components(_texts(documents), keys)
    texts = (f"{seed}\0{d.prompt}\0{d.text}" for d in documents)
    side = _sides(component, [hashlib.sha256(text.encode()).hexdigest() for text in texts])
    splits = {name: tuple(d for d, s in zip(documents, side) if s == name) for name in SPLITS}
    if not all(splits.values()):
        found = f"{len(documents)} in {component.max(initial=-1) + 1} groups without near-duplicates"
        raise UserError(f"too few distinct documents to split: {found}; give at least 3, better 1,000")
    sizes = np.bincount(component)
    notes = {"linked_documents": int(sizes[sizes > 1].sum()), "largest_component": int(sizes.max())}
    return splits, notes | overlaps(splits)


def overlaps(splits: dict[str, Sequence[Document]]) -> dict[str, dict[str, float]]:
    """The note {"overlap": {split: share}}: documents that have half their 8-grams somewhere in training.

    Documents of fewer than 8 words are not counted. 0 for a split with none to count.
    """
    texts = {name: _texts(splits.get(name, ())) for name in SPLITS}
    for name in SPLITS[1:]:
        texts[name] = [text for text in texts[name] if len(WORD.findall(text)) >= GRAM]
    grams, (first, *ends) = _grams(sum(texts.values(), [])), cumulative([*map(len, texts.values())])[1:]
    seen, shares = grams[:first].sum(0) > 0, {}  # seen (G,)
    for name, start, end in zip(SPLITS[1:], (first, *ends), ends):
        rows = grams[start:end]
        shares[name] = round(float((2 * (rows @ seen) >= rows.sum(1)).mean()), 6) if end > start else 0.0
    return {"overlap": shares}


def _texts(documents: Sequence[Document]) -> list[str]:
    return [f"{d.prompt} {d.text}" for d in documents]


def _grams(texts: Sequence[str]):
    """Which distinct 8-grams each text has, a sparse (N, G) matrix of ones; a shorter text is one gram, all its words.

    scikit-learn's CountVectorizer gives the same matrix, six times slower.
    """
    from scipy.sparse import csr_array

    number: dict[str, int] = {}  # of each gram
    columns = []
    for text in texts:
        words = WORD.findall(text.lower())
        grams = {" ".join(words[i : i + GRAM]) for i in range(max(1, len(words) - GRAM + 1))}
        columns.append(np.array([number.setdefault(gram, len(number)) for gram in grams]))
    starts = cumulative([len(row) for row in columns])
    flat = np.concatenate([np.empty(0, np.int64), *columns])
    return csr_array((np.ones(len(flat), np.int32), flat, starts), shape=(len(texts), len(number)))


def components(texts: Sequence[str], keys: Sequence[Hashable] | None = None) -> np.ndarray:
    """The component (N,) int64 of each text; two that share half of the shorter one's 8-grams are linked."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    grams = _grams(texts)
    size = grams.sum(1)  # (N,)
    grams = grams[:, grams.sum(0) > 1]  # a gram of one document alone links nothing
    first: dict[Hashable, int] = {}
    equal = [(i, first.setdefault(key, i)) for i, key in enumerate(keys or ())]
    pairs = [np.array(equal, np.int64).reshape(-1, 2)]
    for start in range(0, len(texts), ROWS):
        shared = (grams[start : start + ROWS] @ grams.T).tocoo()  # how many 8-grams two documents share
        a, b = shared.coords[0] + start, shared.coords[1]
        linked = (a < b) & (2 * shared.data >= np.minimum(size[a], size[b]))
        pairs.append(np.stack([a[linked], b[linked]], 1))
    left, right = np.concatenate(pairs).T
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(len(texts), len(texts)))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _sides(component: np.ndarray, digests: Sequence[str]) -> list[str]:
    """The split of each document (N,): components in order of their smallest digest fill test, then validation."""
    sizes = np.bincount(component)
    large = max(1, LARGE * len(component))
    room = dict.fromkeys(("test", "validation"), max(1, round(HELD_OUT * len(component))))
    side = {}
    for c in dict.fromkeys(c for _, c in sorted(zip(digests, component.tolist()))):
        fits = [name for name, left in room.items() if sizes[c] <= min(large, left)]
        side[c] = fits[0] if fits else "train"
        if fits:
            room[fits[0]] -= sizes[c]
    return [side[c] for c in component.tolist()]
