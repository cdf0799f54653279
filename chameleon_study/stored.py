"""Files of a results folder: stored whole with their checksum, compared with it whenever they are read.

    results/SHA256SUMS    a line for each file, which `sha256sum --check` reads too

A folder without that file, such as one of raw runs, is read as it is. Whatever cannot be read is a
DamagedFile with its name, and no part of it is used.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from pyarrow import ArrowException
from pydantic import BaseModel

from chameleon_lite import files
from chameleon_lite.errors import DamagedFile

SUMS = "SHA256SUMS"
VERDICTS, TABLES = "verdicts.json", "tables.json"  # made from the other files there
OWN_TEXTS = "own-texts.json"  # what people with texts of their own get, see own_texts.py
ANSWERS = "answers.json"  # whether an Instruct model answers, see answers.py
NOT_RECORDS = ("proofs", "spans")
KEPT = (".jsonl", ".parquet", ".json")  # ends of files that hold results
LOSSES = {"document", "group", "split", "tokens", "nll"}  # columns
AGAIN = "restore it, or store it again"


@contextmanager
def storing(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name, then put it and its checksum in place."""
    sums = path.parent / SUMS
    with files.locked(sums):
        with files.atomic(path) as part:
            yield part
        known = checksums(path.parent)
        if not known:  # the first of a folder's files to be listed brings the others with it
            known = {p.name: files.sha256(p) for p in path.parent.iterdir() if p.suffix in KEPT}
        known[path.name] = files.sha256(path)
        with files.atomic(sums) as part:
            part.write_text("".join(f"{known[name]}  {name}\n" for name in sorted(known)), encoding="utf-8")


def store_text(path: Path, text: str) -> Path:
    """Store a file of text in UTF-8; returns where it is."""
    with storing(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def checksums(folder: Path) -> dict[str, str]:
    """File name to hex sha256, {} for a folder without checksums."""
    path = folder / SUMS
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line.split(maxsplit=1) for line in text.splitlines()]
    if not lines or not all(len(line) == 2 and len(line[0]) == 64 for line in lines):
        raise DamagedFile(f"{path} is damaged: not every line is a checksum and a name; {AGAIN}")
    return {name: digest for digest, name in lines}


def read(path: Path) -> bytes:
    """A file's content; DamagedFile where it is not what its folder's checksums promise."""
    content, sums = path.read_bytes(), checksums(path.parent)
    if sums:
        lost = [path.parent / name for name in sums if not (path.parent / name).is_file()]
        if lost := [p for p in lost if p.suffix != ".json"]:  # verdicts can be written anew from the rest
            raise DamagedFile(f"{lost[0]} is listed in {SUMS} and not there: restore it, or remove its line")
        if path.name not in sums:
            raise DamagedFile(f"{path} is not listed in {SUMS}, so nobody stored it there: take it away")
        if hashlib.sha256(content).hexdigest() != sums[path.name]:
            raise DamagedFile(f"{path} is damaged: its content is not what {SUMS} promises; {AGAIN}")
    return content


@contextmanager
def content_of(path: Path, kind: str, anew: str = "remove it and write it again") -> Iterator[dict]:
    """Yield what a JSON file holds; DamagedFile where it cannot be read, or the block finds that it is no `kind`."""
    try:
        yield json.loads(read(path))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"{path} holds no {kind}, {reason(error)}: restore it, or {anew}") from error


def evidence_of(paths: list[Path], *circumstances: str) -> str:
    """Hex sha256 of files and circumstances; DamagedFile where a stored file is not what was stored."""
    digest = hashlib.sha256(repr(circumstances).encode())
    for path in paths:
        digest.update(path.name.encode() + hashlib.sha256(read(path)).digest())
    return digest.hexdigest()


def records_and_losses(results: Path) -> list[Path]:
    """The files of a results folder that tables and verdicts are made from."""
    found = sorted(Path(results).glob("*"))
    others = (VERDICTS, TABLES, OWN_TEXTS, ANSWERS)
    return [path for path in found if path.suffix in KEPT and path.name not in others]


def read_lines(path: Path, kind: type[BaseModel]) -> list:
    """The objects of a JSONL file; DamagedFile with the first line that is no object of this kind."""
    out = []
    for number, line in enumerate(read(path).splitlines(), 1):
        try:
            out.append(kind.model_validate_json(line))
        except ValueError as error:
            what = f"line {number} is no {kind.__name__.lower()}, {reason(error)}"
            raise DamagedFile(f"{path} is damaged: {what}; {AGAIN}") from error
    return out


def read_losses(path: Path, columns: set[str] = LOSSES) -> pd.DataFrame:
    """A table of losses per document, with `columns`; DamagedFile for anything else."""
    content = read(path)
    try:
        frame = pd.read_parquet(io.BytesIO(content))
    except (ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise DamagedFile(f"{path} is damaged: no parquet, {reason(error)}; {AGAIN}") from error
    if missing := sorted(columns - set(frame)):
        raise DamagedFile(f"{path} holds no losses per document: there is no column {missing[0]!r}; {AGAIN}")
    return frame


def reason(error: Exception) -> str:
    """What was wrong with a damaged file, in one short line, from the error of reading it."""
    errors = getattr(error, "errors", list)()  # pydantic's say where and what
    text = f"{'.'.join(map(str, errors[0]['loc']))} {errors[0]['msg']}" if errors else f"{error!r}"
    return " ".join(text.split())[:160]
