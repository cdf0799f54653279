"""Texts of one's own: rows of a file become rows to adapt to (a bad row gets its error) or a corpus (it is refused).

    "some text" or {"text": …}                    the text is scored
    {"prompt": …, "response" or "text": …}        the response is scored; to be continued, the prompt is enough
    {"instruction": …, "input": …, "output": …}   the output is scored, after Alpaca's prompt; input is optional

`id`, `group` and `split` are optional; the id of a row without one is its number. Files are .jsonl, .json (one list),
.csv, or a folder of .txt; a corpus is exported as JSONL with a header line and read back unchanged.
"""

import csv
import difflib
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path
from typing import Any

from .. import files
from ..errors import DamagedFile, UserError
from ..text import Document
from .corpus import SPLITS, Corpus, lines, overlaps, split_documents

# Columns of a row; the last one is scored.
SCORED = (("instruction", "output"), ("prompt", "response"), ("prompt", "text"), ("text",))
PROMPTS = (("instruction",), ("prompt",))
CORPORA = "chameleon_lite.corpora"  # entry points of packages that have corpora by name
KINDS = ".jsonl, .json, .csv or a folder of .txt"
MARK = "chameleon_lite_corpus"  # the first key of an exported corpus, and of no other JSONL
EMPTY = "empty_rows"
FEW = 10  # files or distinct instructions below which 80/10/10 would leave a part without any


@dataclass(frozen=True)
class Row:
    """One row: its number from 1, the prompt, the text that is scored after it; or what is wrong with the row."""

    number: int
    id: str
    prompt: str = ""
    text: str = ""
    error: str = ""
    instruction: str = ""
    group: str = ""
    split: str = ""


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """The prompt of an instruction and its optional input, up to where the response begins."""
    middle = f"### Input:\n{context}\n\n" if context else ""
    return f"### Instruction:\n{instruction}\n\n{middle}### Response:\n"


def parse(value: Any, number: int, *, scored: bool = False) -> Row:
    """A string or an object with named columns to a row; with `scored`, one that has only a prompt is an error."""
    value = {"text": value} if isinstance(value, str) else value
    if not isinstance(value, dict):
        return Row(number, str(number), error=f"a row is an object or a string, not {type(value).__name__}")
    name = str(number) if value.get("id") in (None, "") else str(value["id"])
    accepted = SCORED if scored else SCORED + PROMPTS
    columns = next((some for some in accepted if all(c in value for c in some)), None)
    if columns is None:
        return Row(number, name, error=_no_column(value))
    wrong = [c for c in (*columns, "input") if not isinstance(value.get(c) or "", str)]
    if wrong:
        return Row(number, name, error=f"{wrong[0]!r} is {type(value[wrong[0]]).__name__}, not a string")
    instruction = value[columns[0]] or "" if columns[0] != "text" else ""
    alpaca = columns[0] == "instruction"
    prompt = alpaca_prompt(instruction, value.get("input") or "") if alpaca else instruction
    text = value[columns[-1]] or "" if columns in SCORED else ""
    group, split = (str(value.get(column) or "") for column in ("group", "split"))
    return Row(number, name, prompt, text, instruction=instruction, group=group, split=split)


def _no_column(value: dict) -> str:
    names, hint = [column for some in SCORED for column in some], "rename one"
    for column in reversed([str(c) for c in value if c not in names]):
        if near := difflib.get_close_matches(column.lower(), names, n=1, cutoff=0.5):
            hint = f"{column!r} looks like {near[0]!r}"
    columns = ", ".join(map(repr, value)) or "none"
    return f"no column 'text', nor 'prompt' and 'response', nor 'instruction' and 'output'; found {columns}: {hint}"


def parse_line(line: bytes, number: int, *, scored: bool = False) -> Row:
    """One line of a JSONL file to a row."""
    try:
        return parse(json.loads(line.decode("utf-8-sig")), number, scored=scored)
    except UnicodeDecodeError as error:
        return Row(number, str(number), error=f"not UTF-8 (byte {error.start} of the line)")
    except (json.JSONDecodeError, RecursionError) as error:
        return Row(number, str(number), error=f"not JSON: {error}")


def jsonl_rows(path: Path | str, skip: int = 0, *, scored: bool = False) -> Iterator[tuple[Row, int]]:
    """Yield (row, bytes read so far) of a JSONL file, without its first `skip` rows; empty lines are no rows.

    Read as bytes, line by line: a bad line is one bad row, and no more than one line is in memory.
    """
    if not Path(path).is_file():
        raise UserError(f"no file at {path}; give a .jsonl file with one object or string per line")
    read = rows = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            read += len(line)
            rows += bool(line.strip())
            if line.strip() and rows > skip:
                yield parse_line(line, number, scored=scored), read


def windows(rows: Iterable, size: int) -> Iterator[list]:
    """Runs of `size` items, the last may be shorter."""
    rows = iter(rows)
    while window := list(islice(rows, size)):
        yield window


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a .jsonl, .json (one list) or .csv file; raises UserError for a file that is none."""
    if path.suffix == ".jsonl":
        return (row for row, _ in jsonl_rows(path, scored=True))
    if path.suffix not in (".json", ".csv"):
        raise UserError(f"cannot read {path.name}: a corpus is {KINDS}")
    return parsed(_json(path) if path.suffix == ".json" else _csv(path))


def parsed(values: Iterable) -> Iterator[Row]:
    """Values to rows of a corpus, numbered from 1."""
    return (parse(value, number, scored=True) for number, value in enumerate(values, start=1))


def _text(path: Path, newline: str | None = None) -> str:
    try:
        with open(path, encoding="utf-8-sig", newline=newline) as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _json(path: Path) -> list:
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path.name}, line {error.lineno} is not JSON: {error.msg}") from None
    if not isinstance(content, list):
        raise UserError(f"{path.name} holds one {type(content).__name__}; it must be a list of rows")
    return content


def _csv(path: Path) -> Iterator[dict]:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts above 128 KiB
    for row in csv.DictReader(io.StringIO(_text(path, newline=""), newline="")):
        if None in row:
            raise UserError(f"{path.name}: a row has more cells than the header; quote those with commas")
        yield row


def load_corpus(name: str, *, data_dir: Path | str | None = None, seed: int = 0) -> Corpus:
    """A corpus from a path (`load`), or by a name that an installed package defines (entry points of `CORPORA`).

    `data_dir` holds the files of a named corpus; `seed` decides the splits. Raises UserError for what does not exist.
    """
    if not name.startswith("hub:") and (Path(name).exists() or "/" in name or Path(name).suffix):
        return load(name, seed=seed)
    for entry in entry_points(group=CORPORA):
        try:
            by_name = entry.load()
        except ModuleNotFoundError as error:
            if error.name != entry.module.split(".")[0]:
                raise
            continue
        return by_name(name, data_dir=data_dir, seed=seed)
    raise UserError(
        f"no file or folder at {name}; give {KINDS} (corpora by name come with a clone of the repository)"
    )


def load(path: Path | str, *, seed: int = 0) -> Corpus:
    """Read a corpus from `path`; raises UserError, with the row, for what cannot be read."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"no file or folder at {path}; give {KINDS}")
    if path.is_dir():
        return _folder(path, seed)
    if path.suffix == ".jsonl" and is_exported(path):
        return read_jsonl(path)
    return corpus(path.stem, f"file {path.name}", read_rows(path), path.name, seed=seed)


def corpus(name: str, source: str, rows: Iterable[Row], where: str, *, seed: int) -> Corpus:
    """Rows to a corpus: by the splits they name, if all do and all three occur, else 80/10/10.

    Equal instructions (or prompts) stay on one side, unless there are fewer than 10 different ones.
    `where` names the rows in errors. Raises UserError for the first bad row and when there is nothing to score.
    """
    documents, split_of, empty = [], [], 0
    for row in rows:
        if row.error:
            raise UserError(f"{where}, row {row.number}: {row.error}")
        if row.text.strip():
            documents.append(Document(row.id, row.text, row.group, row.prompt, row.instruction))
            split_of.append(row.split)
        else:
            empty += 1
    if not documents:
        raise UserError(f"{where} has no text: {empty} rows, all empty; give at least 3 that are not")
    if set(split_of) == set(SPLITS):
        splits = {split: tuple(d for d, s in zip(documents, split_of) if s == split) for split in SPLITS}
        return Corpus(name, splits, source, {"split": "given by the rows", EMPTY: empty} | overlaps(splits))
    splits, notes = _dealt(documents, [instruction_key(d) or d.id for d in documents], "instruction", seed)
    return Corpus(name, splits, source, notes | {EMPTY: empty})


def _dealt(documents: list[Document], keys: list[str], what: str, seed: int) -> tuple[dict, dict]:
    """Splits 80/10/10 and the notes on them; equal keys (N,), each a `what`, stay together if there are enough."""
    enough = len(set(keys)) >= FEW
    splits, notes = split_documents(documents, seed=seed, keys=keys if enough else None)
    return splits, {
        "split": f"80/10/10 by {what} and near-duplicates" if enough else "80/10/10 by near-duplicates"
    } | notes


def instruction_key(document: Document) -> str:
    """What makes two instructions the same one: all but case and spaces."""
    return " ".join(document.instruction.lower().split())


def _folder(path: Path, seed: int) -> Corpus:
    """A document is a paragraph, `group` its file; from 10 files on, a file stays whole on one side."""
    documents, paths = [], sorted(p for p in path.rglob("*.txt") if p.is_file())
    for file in paths:
        name = file.relative_to(path).as_posix()
        paragraphs = (p.strip() for p in re.split(r"\n[ \t]*\n", _text(file)))
        documents += [Document(f"{name}#{i}", p, group=name) for i, p in enumerate(filter(None, paragraphs))]
    if not documents:
        raise UserError(f"no text in {path}: {len(paths)} .txt files, nothing in them; give {KINDS}")
    splits, notes = _dealt(documents, [d.group for d in documents], "file", seed)
    return Corpus(path.resolve().name, splits, f"folder {path.name}, {len(paths)} files", notes)


def write_jsonl(corpus: Corpus, path: Path | str) -> Path:
    """Write a header line (name, source, notes, hash), then one line per document; atomic."""
    header = {MARK: 1} | {name: getattr(corpus, name) for name in ("name", "source", "notes", "hash")}
    with files.atomic(path) as part, open(part, "w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(header, ensure_ascii=False) + "\n")
        file.writelines(line + "\n" for line in lines(corpus))
    return Path(path)


def is_exported(path: Path | str) -> bool:
    """Whether a file begins with the header that `write_jsonl` writes."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.readline().startswith(f'{{"{MARK}"')


def read_jsonl(path: Path | str) -> Corpus:
    """Read back what `write_jsonl` wrote, with the same hash; DamagedFile when the content has another."""
    if not Path(path).is_file():
        raise UserError(f"no file at {path}; export one with: chameleon-lite corpus docstrings --out {path}")
    if not is_exported(path):
        raise UserError(f"{path} is not an exported corpus: its first line is not an export's header")
    documents: dict[str, list[Document]] = {split: [] for split in SPLITS}
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            header = json.loads(file.readline())
            for line in file:
                row = json.loads(line)
                documents.setdefault(row.pop("split"), []).append(Document(**row))
        splits = {split: tuple(rows) for split, rows in documents.items()}
        corpus = Corpus(header["name"], splits, header["source"], header["notes"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path} is damaged ({type(error).__name__}: {error}); export it again") from None
    if corpus.hash != header["hash"]:
        hashes = f"content {corpus.hash[:12]}…, header {header['hash'][:12]}…"
        raise DamagedFile(f"{path} is damaged: {hashes}; export it again")
    return corpus
