"""Files of rows, in every form that people have them, packed or not; or standard input.

    .jsonl   line by line, in bounded memory      .csv .tsv   a header, then rows    a folder   each paragraph of its
    .json    one list                             .parquet    columns                           .txt files is a row

Each may be packed as .gz. UTF-8, with or without a mark at its beginning, unless another encoding is named.
"""

import codecs
import csv
import gzip
import io
import json
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import IO

from ..backbones.formats import once
from ..errors import UserError
from . import SENTENCES
from .rows import Row, parse, parse_line, parsed

ENDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
KINDS = f"{', '.join(ENDS[:-1])} or {ENDS[-1]}, a folder of .txt (each also .gz), or - for standard input"
GZIP = b"\x1f\x8b"
# how a file begins that is read otherwise ─▶ what it is, what to do
OTHER_KINDS = {bytes.fromhex(sign): what for sign, what in SENTENCES["other files"].items()}
# What stands before the first value of a list in JSON, before each other, after the last, and instead of any.
FIRST, NEXT, LAST, EMPTY = map(re.compile, (r"\s*\[(?!\s*\])\s*", r"\s*,\s*", r"\s*\]\s*", r"\s*\[\s*\]\s*"))
LINE = "\n"
MARK = "chameleon_lite_corpus"  # the first key of an exported corpus, and of no other JSONL
UTF8 = "utf-8-sig"
BATCH = 1_024  # rows of a .parquet in memory


@contextmanager
def given(source: Path | str) -> Iterator[Path]:
    """The path itself; for "-" a file that holds what came through standard input, for as long as the block runs."""
    if str(source) != "-":
        yield Path(source)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "standard input.jsonl"
        with open(path, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        with _opened(path, "any") as file:
            one_list = file.read(1_024).lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n").startswith(b"[")
        yield path.rename(path.with_suffix(".json")) if one_list else path


def read_rows(path: Path, *, scored: bool = True, encoding: str | None = None) -> Iterator[Row]:
    """The rows of a file or folder; UserError, naming it, for one of another kind, damaged or in another encoding.

    Without `scored` a prompt is enough, and a file with any other ending is read as JSONL.
    """
    if encoding is not None:
        try:
            "".encode(encoding)
            encoding = UTF8 if codecs.lookup(encoding).name == "utf-8" else encoding
        except (LookupError, ValueError) as error:
            raise UserError(f"--encoding {encoding!r} is none of a text: {error}") from None
    kind, encoding = kind_of(path), encoding or UTF8
    if path.is_dir():
        return parsed(_paragraphs(path, encoding))
    if scored and kind not in ENDS:
        raise UserError(f"cannot read {path.name}: a corpus is {KINDS}")
    if kind in (".json", ".parquet"):
        return _json(path, scored, encoding) if kind == ".json" else parsed(_parquet(path), scored=scored)
    if kind in (".csv", ".tsv"):
        return parsed(_table(path, "\t" if kind == ".tsv" else ",", encoding), scored=scored)
    with _opened(path, encoding):  # refuses at once what is of another kind
        return jsonl_rows(path, scored=scored, encoding=encoding)


def kind_of(path: Path) -> str:
    """A file's ending in small letters, without a .gz after it."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def texts_of(folder: Path) -> list[Path]:
    """The .txt files below a folder, in order of their names."""
    return sorted(p for p in folder.rglob("*") if kind_of(p) == ".txt" and p.is_file())


@contextmanager
def _opened(path: Path, encoding: str) -> Iterator[IO[bytes]]:
    """The unpacked bytes of a file; UserError for one of another kind, a damaged one, and bytes of another encoding.

    `encoding` is named in errors; a mark of UTF-16 is one only in UTF-8, a parquet's where `encoding` is a text's.
    """
    try:
        with open(path, "rb") as plain:
            with gzip.open(plain) if plain.peek(2).startswith(GZIP) else nullcontext(plain) as file:
                start = file.peek(6)
                for sign, what in OTHER_KINDS.items() if encoding != "any" else ():
                    if start.startswith(sign) and (encoding == UTF8 or not what.startswith("UTF-16")):
                        raise UserError(f"{path.name} is {what}")
                yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path.name} is a damaged .gz ({error}): pack it again") from None
    except UnicodeError as error:
        place = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else f" ({error})"
        name = "UTF-8" if encoding == UTF8 else encoding
        raise UserError(f"{path.name} is not {name}{place}; save it as UTF-8, or give --encoding") from None


def _text(path: Path, encoding: str) -> str:
    with _opened(path, encoding) as file:
        return file.read().decode(encoding)


def jsonl_rows(path: Path, *, scored: bool = False, encoding: str = UTF8) -> Iterator[Row]:
    """The rows of a JSONL file; empty lines and the header of an exported corpus are none.

    Read as bytes, line by line: a bad line is one bad row, and no more than one line is in memory. Where an encoding's
    ends of lines are more than one byte, one bad byte is an error of the whole file.
    """
    wide = encoding != UTF8 and LINE.encode(encoding) != LINE.encode()
    with (
        _opened(path, encoding) as file,
        io.TextIOWrapper(file, encoding, newline=LINE) if wide else nullcontext(file) as lines,
    ):
        encoding = UTF8 if wide else encoding
        for number, line in enumerate(lines, start=1):
            line = line.encode() if wide else line
            header = number == 1 and line.startswith(f'{{"{MARK}"'.encode())
            if line.removeprefix(b"\xef\xbb\xbf").strip() and not header:
                yield parse_line(line, number, scored=scored, encoding=encoding)


def _json(path: Path, scored: bool, encoding: str) -> Iterator[Row]:
    """The rows of a file that holds one list, read one by one: what is wrong has its line and column."""
    decoder, number, end, sign = json.JSONDecoder(object_pairs_hook=once), 0, 0, FIRST
    text = _text(path, encoding)

    def where(place: int) -> str:
        return f"line {text.count(LINE, 0, place) + 1} column {place - text.rfind(LINE, 0, place)}"

    while found := sign.match(text, end):
        start, sign, number = found.end(), NEXT, number + 1
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:  # not all of them say where
            reason = error if isinstance(error, json.JSONDecodeError) else f"{error}: {where(start)}"
            raise UserError(f"{path.name} is not JSON: {reason}") from None
        row = parse(value, number, scored=scored)
        yield replace(row, error=row.error and f"{row.error} ({where(start)})")
    if not (LAST if number else EMPTY).fullmatch(text, end):
        raise UserError(f"{path.name} must be one list of rows, and is not at {where(end)}")


def _table(path: Path, delimiter: str, encoding: str) -> Iterator[dict]:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts above 128 KiB
    reader = csv.DictReader(io.StringIO(_text(path, encoding), newline=""), delimiter=delimiter)
    kind = kind_of(path)[1:].upper()
    try:
        names = [name for name in reader.fieldnames or () if name]
        if len(set(names)) < len(names):
            raise UserError(f"{path.name}, line 1 names the column {max(names, key=names.count)!r} twice")
        yield from reader
    except csv.Error as error:
        raise UserError(f"{path.name}, line {reader.line_num} is not {kind}: {error}") from None


def _parquet(path: Path) -> Iterator[dict]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    with _opened(path, "any") as file:
        try:
            whole = io.BytesIO(file.read()) if isinstance(file, gzip.GzipFile) else file
            for batch in ParquetFile(whole).iter_batches(BATCH):
                yield from batch.to_pylist()
        except (ArrowException, OSError) as error:
            if isinstance(error, gzip.BadGzipFile):
                raise
            reason = str(error).splitlines()[0]
            raise UserError(f"{path.name} is no whole .parquet ({reason}): save it again") from None


def _paragraphs(folder: Path, encoding: str) -> Iterator[dict[str, str]]:
    """Each paragraph of the .txt files of a folder as a row; `group` is its file."""
    for file in texts_of(folder):
        name = file.relative_to(folder).as_posix()
        text = _text(file, encoding).replace("\r\n", "\n").replace("\r", "\n")
        for i, paragraph in enumerate(filter(None, map(str.strip, re.split(r"\n[ \t]*\n", text)))):
            yield {"id": f"{name}#{i}", "text": paragraph, "group": name}
