"""Corpora by name: the values of --corpus."""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from chameleon_lite import files
from chameleon_lite.app import corpus, own_texts
from chameleon_lite.app.corpus import SPLITS, Corpus
from chameleon_lite.app.own_texts import read_jsonl, write_jsonl
from chameleon_lite.errors import DamagedFile, UserError, unknown

from ..provenance import installed
from . import docstrings, hub, planted, prose


def load_corpus(name: str, *, data_dir: Path | str | None = None, seed: int = 0) -> Corpus:
    """A corpus by its name, a path, or hub:owner/name.

    Names are in `NAMES`; a path is a .jsonl (an exported corpus too), .json, .csv or a folder of .txt.
    `data_dir` is the folder with WikiText's or Alpaca's files, or its parent, or one with an exported docstrings
    corpus (docstrings.jsonl), which is then read. `seed` deals out the splits.
    Raises UserError for what does not exist and Unreachable when only the hub has it and it cannot be reached.
    """
    if data_dir is not None and not Path(data_dir).exists():
        raise UserError(f"no folder at {data_dir}; correct --data-dir or leave it out")
    if name in NAMES:
        return NAMES[name](data_dir=data_dir and Path(data_dir), seed=seed)
    if name.startswith("hub:"):
        return hub.load(name.removeprefix("hub:"), seed=seed)
    try:
        if Path(name).exists() or "/" in name or Path(name).suffix:
            return own_texts.load(name, seed=seed)
    except OSError as error:
        raise UserError(f"the corpus {name[:100]} cannot be read: {error.strerror or error}") from None
    raise unknown("corpus", name, [*NAMES, "hub:owner/name", "a path"])


def _docstrings(form: str, *, data_dir: Path | None = None, seed: int = 0) -> Corpus:
    """The embedded corpus: another machine's export in `data_dir`, else of this one's libraries, cached."""
    name = "docstrings" if form == "paragraphs" else f"docstrings-{form}"
    if data_dir is not None and (data_dir / f"{name}.jsonl").is_file():
        return read_jsonl(data_dir / f"{name}.jsonl")
    # its name holds what it depends on: library versions, Python, the code that reads them, the seed
    libs = map(docstrings.to_install, docstrings.read_by(form))
    parts = [sys.version, str(seed), *(f"{lib} {installed(lib)}" for lib in libs)]
    parts += [Path(module.__file__).read_text(encoding="utf-8") for module in (docstrings, prose, corpus)]
    parts += [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.yaml"))]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    cached = files.home() / "corpora" / f"docstrings-{form}-{key}.jsonl"
    with files.locked(cached):
        try:
            if cached.exists():
                return read_jsonl(cached)
        except DamagedFile as error:
            print(f"{error}; it is made again", file=sys.stderr)
        built = docstrings.build(form, seed=seed)
        write_jsonl(built, cached)
    return built


def _mixed(*, data_dir: Path | None = None, seed: int = 0) -> Corpus:
    """Three kinds of text shuffled, as many characters of each per split; `group` is the source (claim 14)."""
    parts = {name: load_corpus(name, data_dir=data_dir) for name in SOURCES}
    splits, generator = {}, np.random.default_rng(seed)
    for split in SPLITS:
        limit, rows = min(sum(len(d.text) for d in part.splits[split]) for part in parts.values()), []
        for name, part in parts.items():
            documents = [part.splits[split][i] for i in generator.permutation(len(part.splits[split]))]
            count = int((np.cumsum([len(d.text) for d in documents]) <= limit).sum())
            rows += [replace(d, id=f"{name}/{d.id}", group=name) for d in documents[:count]]
        splits[split] = tuple(rows[i] for i in generator.permutation(len(rows)))
    notes = {name: {"hash": part.hash, **part.notes} for name, part in parts.items()}
    return Corpus("mixed", splits, "; ".join(f"{name}: {part.source}" for name, part in parts.items()), notes)


SOURCES = ("docstrings", "wikitext-2-lite", "alpaca")  # of the mixed stream
NAMES: dict[str, Callable[..., Corpus]] = {
    "docstrings": partial(_docstrings, "paragraphs"),
    "docstrings-instructions": partial(_docstrings, "instructions"),
    "docstrings-large": partial(_docstrings, "large"),
    **{name: partial(hub.wikitext, name) for name in hub.NOTES},
    **{name: partial(hub.alpaca, name) for name in hub.ALPACAS},
    "mixed": _mixed,
    **{name: partial(planted.build, name) for name in planted.NAMES},
}
