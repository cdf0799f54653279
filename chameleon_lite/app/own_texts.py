"""Texts of one's own as a corpus: rows (see files_read.py) in three splits; a bad row is refused by its number.

A corpus is exported as JSONL with a header line, and read back unchanged.
"""

import json
import re
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path

from .. import files
from ..backbones.formats import once
from ..errors import DamagedFile, UserError
from ..text import Document
from .chat import Dialogue, document_of
from .corpus import SPLITS, Corpus, lines, overlaps, split_documents
from .files_read import KINDS, MARK, given, read_rows
from .rows import Row

CORPORA = "chameleon_lite.corpora"  # entry points of packages that have corpora by name
EMPTY = "empty_rows"
FEW = 10  # files or distinct instructions below which 80/10/10 would leave a part without any


def load_corpus(
    name: str, *, data_dir: Path | str | None = None, seed: int = 0, encoding: str | None = None
) -> Corpus:
    """A corpus by a name or path that an installed package reads (entry points of `CORPORA`), else from a path.

    `data_dir` holds the files of a named corpus; `seed` decides the splits; with an `encoding` the name is a path's.
    Raises UserError for what does not exist.
    """
    if name == "-" or encoding:
        return load(name, seed=seed, encoding=encoding)
    for entry in entry_points(group=CORPORA):
        try:
            by_name = entry.load()
        except ModuleNotFoundError as error:
            if error.name != entry.module.split(".")[0]:
                raise
            continue
        return by_name(name, data_dir=data_dir, seed=seed)
    return load(name, seed=seed)


def load(path: Path | str, *, seed: int = 0, encoding: str | None = None) -> Corpus:
    """Read a corpus from `path`, "-" for standard input; raises UserError, with the row, for what cannot be read.

    In a folder a document is a paragraph; from 10 files on, a file stays whole on one side of the split.
    """
    with given(path) as path:
        if not path.exists():
            names = "names come with a clone of the repository"
            raise UserError(f"no file or folder at {path}; give {KINDS} ({names})")
        if path.suffix.lower() == ".jsonl" and path.is_file() and is_exported(path):
            return read_jsonl(path)
        rows = read_rows(path, encoding=encoding)
        if path.is_dir():
            name = path.resolve().name
            return corpus(name, f"folder {name}", rows, path.name, seed=seed, by="file")
        name = path.stem if path.suffix.lower() != ".gz" else Path(path.stem).stem
        return corpus(name, f"file {path.name}", rows, path.name, seed=seed)


def corpus(
    name: str, source: str, rows: Iterable[Row], where: str, *, seed: int, by: str = "instruction"
) -> Corpus:
    """Rows to a corpus: by the splits they name, if all do and all three occur, else 80/10/10.

    Equal instructions (or prompts; with `by` "file", rows of a file) stay on one side, unless fewer than 10 differ.
    `where` names the rows in errors. Raises UserError for the first bad row and when there is nothing to score.
    """
    documents, split_of, empty = [], [], 0
    for row in rows:
        if row.error:
            row_is = row.id if by == "file" else f"row {row.number}"
            raise UserError(f"{where}, {row_is}: {row.error}")
        if row.text.strip():
            documents.append(document_of(row, row.id))
            split_of.append(row.split)
        else:
            empty += 1
    if not documents:
        raise UserError(f"{where} has no text: {empty} rows, all empty; give at least 3 that are not")
    if set(split_of) == set(SPLITS):
        splits = {split: tuple(d for d, s in zip(documents, split_of) if s == split) for split in SPLITS}
        return Corpus(name, splits, source, {"split": "given by the rows", EMPTY: empty} | overlaps(splits))
    # instructions are equal but for case and spaces
    keys = [d.group if by == "file" else " ".join(d.instruction.lower().split()) or d.id for d in documents]
    enough = len(set(keys)) >= FEW
    splits, notes = split_documents(documents, seed=seed, keys=keys if enough else None)
    how = f"80/10/10 by {by} and near-duplicates" if enough else "80/10/10 by near-duplicates"
    return Corpus(name, splits, source, {"split": how} | notes | {EMPTY: empty})


def write_jsonl(corpus: Corpus, path: Path | str) -> Path:
    """Write a header line (name, source, notes, hash, and their checksum), then one line per document; atomic."""
    header = {MARK: 2} | {name: getattr(corpus, name) for name in ("name", "source", "notes", "hash")}
    with files.atomic(path) as part, open(part, "w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(header | {"seal": files.seal(header)}, ensure_ascii=False) + "\n")
        file.writelines(line + "\n" for line in lines(corpus))
    return Path(path)


def is_exported(path: Path | str) -> bool:
    """Whether a file begins with the header that `write_jsonl` writes."""
    with open(path, "rb") as file:
        return file.read(len(MARK) + 3) == f'{{"{MARK}"'.encode()


def read_jsonl(path: Path | str) -> Corpus:
    """Read back what `write_jsonl` wrote, with the same hash; DamagedFile for another, UserError for a bad name."""
    if not Path(path).is_file():
        raise UserError(f"no file at {path}; export one with: chameleon-lite corpus docstrings --out {path}")
    if not is_exported(path):
        raise DamagedFile(f"{path} is not an exported corpus: its first line is not an export's header")
    documents: dict[str, list[Document]] = {split: [] for split in SPLITS}
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            header = json.loads(file.readline(), object_pairs_hook=once)
            for line in file:
                row = json.loads(line)
                if not all(isinstance(value, str) for value in row.values()):
                    raise TypeError("a document's field is no text")
                kind = Dialogue if "turns" in row else Document
                documents.setdefault(row.pop("split"), []).append(kind(**row))
        name, source, notes, hash = (header[key] for key in ("name", "source", "notes", "hash"))
        corpus = Corpus(name, {split: tuple(rows) for split, rows in documents.items()}, source, dict(notes))
        if not isinstance(source, str):
            raise TypeError("its source is no text")
        if corpus.hash != hash:
            raise ValueError(f"content {corpus.hash[:12]}…, header {str(hash)[:12]}…")
        seal = header.pop("seal", None)
        if header[MARK] != 1 and files.seal(header) != seal:  # 1: of before headers had a checksum
            raise ValueError("its header is not what its checksum promises")
        if not re.fullmatch(r"[^/\\\0-\x1f]{1,200}", name) or name in (".", ".."):
            raise UserError(f"{path}: its corpus's name {name[:40]!r} cannot be part of a file's: change it")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged ({type(error).__name__}: {error}); export it again") from None
    return corpus
