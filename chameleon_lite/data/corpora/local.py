"""A corpus from one's own files: JSONL, JSON, CSV, or a folder of .txt."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import UserError
from . import rows
from .documents import Corpus, Document, split_documents
from .jsonl import is_exported, read_jsonl

KINDS = ".jsonl, .json, .csv or a folder of .txt"
FEW_FILES = 10  # below this, whole files cannot be dealt out 80/10/10


def load(path: Path | str, *, seed: int = 0) -> Corpus:
    """Read a corpus from `path`; raises UserError, with the line, for what cannot be read."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"no file or folder at {path}; give {KINDS}")
    if path.is_dir():
        return _folder(path, seed)
    if path.suffix == ".jsonl" and is_exported(path):
        return read_jsonl(path)
    found, named, empty = rows.documents(read_rows(path), path.name)
    return rows.corpus(path.stem, f"file {path.name}", found, named, empty, seed=seed)


def read_rows(path: Path) -> Iterator[dict]:
    """The rows of a .jsonl, .json (one list) or .csv file, one at a time."""
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv}
    if path.suffix not in readers:
        raise UserError(f"cannot read {path.name}: a corpus is {KINDS}")
    try:
        yield from readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _jsonl(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise UserError(f"{path.name}, line {number} is not JSON: {error}") from None


def _json(path: Path) -> Iterator[dict]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path.name}, line {error.lineno} is not JSON: {error.msg}") from None
    if not isinstance(content, list):
        raise UserError(f"{path.name} holds one {type(content).__name__}; it must be a list of rows")
    yield from content


def _csv(path: Path) -> Iterator[dict]:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts above 128 KiB
    with open(path, encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            if None in row:
                raise UserError(
                    f"{path.name}: a row has more cells than the header; quote cells that hold commas"
                )
            yield row


def _folder(path: Path, seed: int) -> Corpus:
    """A document is a paragraph, `group` its file; from 10 files on, a file stays whole on one side."""
    files = sorted(p for p in path.rglob("*.txt") if p.is_file())
    found = [d for file in files for d in _text_file(path, file)]
    if not found:
        raise UserError(f"no text in {path}: {len(files)} .txt files, nothing in them; give {KINDS}")
    whole = len(files) >= FEW_FILES
    splits, notes = split_documents(found, seed=seed, keys=[d.group for d in found] if whole else None)
    rule = "80/10/10 by file and near-duplicates" if whole else "80/10/10 by near-duplicates"
    return Corpus(
        path.resolve().name, splits, f"folder {path.name}, {len(files)} files", {"split": rule} | notes
    )


def _text_file(root: Path, file: Path) -> Iterator[Document]:
    name = file.relative_to(root).as_posix()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    paragraphs = (p.strip() for p in re.split(r"\n[ \t]*\n", text))
    for i, paragraph in enumerate(p for p in paragraphs if p):
        yield Document(f"{name}#{i}", paragraph, group=name)
