"""The mixed stream: three kinds of text shuffled together, without a label at test (claim 14).

docstrings + wikitext-2-lite + alpaca ─ the same number of characters of each ─▶ one corpus, group = source
"""

from itertools import chain
from pathlib import Path

import numpy as np

from chameleon_lite.app.corpus import SPLITS, Corpus
from chameleon_lite.text import Document

from . import load_corpus

MIXED = "mixed"
SOURCES = ("docstrings", "wikitext-2-lite", "alpaca")


def mixed_corpus(data_dir: Path | None = None, seed: int = 0) -> Corpus:
    """The three sources cut to the shortest one's characters in each split, in an order drawn by the seed."""
    parts = {name: load_corpus(name, data_dir=data_dir) for name in SOURCES}
    splits, generator = {}, np.random.default_rng(seed)
    for split in SPLITS:
        limit = min(sum(len(d.text) for d in part.splits[split]) for part in parts.values())
        cut = (_cut(name, part.splits[split], limit, generator) for name, part in parts.items())
        rows = [*chain.from_iterable(cut)]
        splits[split] = tuple(rows[i] for i in generator.permutation(len(rows)))
    source = "; ".join(f"{name}: {part.source}" for name, part in parts.items())
    notes = {name: {"hash": part.hash, **part.notes} for name, part in parts.items()}
    return Corpus(MIXED, splits, source, notes)


def _cut(name: str, documents: tuple[Document, ...], limit: int, generator) -> list[Document]:
    """Random documents of one source with at most `limit` characters in all, named and grouped by it."""
    order = generator.permutation(len(documents))
    within = np.cumsum([len(documents[i].text) for i in order]) <= limit
    chosen = [documents[i] for i in order[within]]
    return [Document(f"{name}/{d.id}", d.text, name, d.prompt, d.instruction) for d in chosen]
