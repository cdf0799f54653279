"""The stream's documents: many sources, dealt into parts that share no near-duplicate, in one JSONL file.

    Alpaca · WikiText-2's articles · docstrings of LIBRARIES ─ components ─┬─ stream   scored, learned from
                                                                           ├─ tuning   chooses the rates
                                                                           └─ train    trains the static heads
    docstrings of OTHERS, nothing near the ones above ─────────────────────── other    trains shifted heads

A document's group is its source. The stream's sources are all in training, none of them is in `other`.
"""

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from chameleon_lite.app.corpus import Corpus, components
from chameleon_lite.app.own_texts import write_jsonl
from chameleon_lite.errors import UserError
from chameleon_lite.text import Document

from ..corpora import docstrings, load_corpus

LIBRARIES = "sympy torch transformers scipy sqlalchemy networkx matplotlib IPython huggingface_hub".split()
OTHERS = "pandas statsmodels numpy sklearn numba fontTools hypothesis docutils prompt_toolkit dask".split()
ARTICLES, INSTRUCTIONS = "wikitext-2-lite", "alpaca"
MOST_INSTRUCTIONS = 24_000  # Alpaca would be most of the stream
SHARES = {"stream": 0.6, "tuning": 0.2, "train": 0.2}


def stream_corpus(
    data_dir: Path, libraries: Sequence[str] = LIBRARIES, others: Sequence[str] = OTHERS, seed: int = 0
) -> Corpus:
    """The corpus from the data in `data_dir` and the libraries that are installed, dealt out by `seed`.

    Raises UserError where a library is missing: the corpus would be another.
    """
    if missing := [name for name in (*libraries, *others) if find_spec(name) is None]:
        raise UserError(f"the stream reads the docstrings of {', '.join(missing)}: install them")
    documents, sources = [], []
    for name in (ARTICLES, INSTRUCTIONS):
        corpus = load_corpus(name, data_dir=data_dir)
        rows = sorted((d for some in corpus.splits.values() for d in some), key=_digest)[:MOST_INSTRUCTIONS]
        documents += [
            Document(f"{name}/{d.group}/{d.id}", d.text, name, d.prompt, d.instruction) for d in rows
        ]
        sources.append(f"{name}: {corpus.source}")
    built = docstrings.build("paragraphs", libs=[*libraries, *others])
    rows = [d for some in built.splits.values() for d in some]
    documents += [Document(f"{d.group}/{d.id}", d.text, d.group) for d in rows]
    parts = _dealt(documents, _linked(documents), set(others), seed)
    notes = {"versions": built.notes["versions"], "shares": SHARES}
    return Corpus("stream", parts, "; ".join([*sources, f"docstrings: {built.source}"]), notes)


def _linked(documents: list[Document]) -> np.ndarray:
    """The component (N,) of each document: an article is one, since headings repeat; others by text."""
    rows = [d for d in documents if d.group != ARTICLES]
    linked = iter(components([f"{d.prompt} {d.text}" for d in rows]).tolist())
    articles: dict[str, int] = {}
    of_article = [articles.setdefault(d.id.rpartition("/")[0], -1 - len(articles)) for d in documents]
    return np.array([a if d.group == ARTICLES else next(linked) for d, a in zip(documents, of_article)])


def _dealt(documents: list[Document], component: np.ndarray, others: set[str], seed: int) -> dict[str, tuple]:
    """Whole components to parts by their smallest hash; `other` has those of its own sources alone."""
    digests = [_digest(d, seed) for d in documents]
    smallest: dict[int, str] = {}
    inside: set[int] = set()
    for c, digest, d in zip(component.tolist(), digests, documents):
        smallest[c] = min(smallest.get(c, digest), digest)
        inside |= set() if d.group in others else {c}
    bounds, names = np.cumsum([*SHARES.values()]), [*SHARES]
    parts: dict[str, list] = {name: [] for name in (*SHARES, "other")}
    for c, digest, d in sorted(zip(component.tolist(), digests, documents), key=lambda row: row[1]):
        if d.group in others:
            if c not in inside:
                parts["other"].append(d)
            continue
        place = (
            int(hashlib.sha256(smallest[c].encode()).hexdigest()[:12], 16) / 16**12
        )  # a minimum alone is small
        parts[names[min(int(np.searchsorted(bounds, place)), len(names) - 1)]].append(d)
    return {name: tuple(rows) for name, rows in parts.items()}


def _digest(d: Document, seed: int = 0) -> str:
    return hashlib.sha256(f"{seed}\0{d.id}\0{d.prompt}\0{d.text}".encode()).hexdigest()


def export(data_dir: Path, out: Path) -> Path:
    """Build the corpus and write it to a JSONL file."""
    return write_jsonl(stream_corpus(data_dir), out)
