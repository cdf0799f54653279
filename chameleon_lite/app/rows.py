"""Rows of texts: a string or an object, in any kind of file, becomes a prompt and a text, or gets its error.

    "some text" or {"text": …}                            the text is scored
    {"prompt": …, "response", "text" or "completion": …}  the response is scored; to continue, the prompt is enough
    {"instruction": …, "input": …, "output": …}           the output is scored, after Alpaca's prompt; input is optional
    {"messages": [{"role": …, "content": …}, …]}          the assistant's last turn is scored, after those before it

`id`, `group` and `split` are optional; the id of a row without one is its number. Files are .jsonl, .json (one list),
.csv, or a folder of .txt.
"""

import csv
import difflib
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..backbones.formats import once
from ..errors import UserError

# Columns of a row; the last one is scored.
ANSWERS = [("prompt", name) for name in ("response", "text", "completion")]
SCORED = (("instruction", "output"), *ANSWERS, ("text",))
PROMPTS = (("instruction",), ("prompt",))
KINDS = ".jsonl, .json, .csv or a folder of .txt"
OTHER_KINDS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "compressed", b"PAR1": "parquet"}
# What stands before the first value of a list in JSON, before each other, after the last, and instead of any.
FIRST, NEXT, LAST, EMPTY = map(re.compile, (r"\s*\[(?!\s*\])\s*", r"\s*,\s*", r"\s*\]\s*", r"\s*\[\s*\]\s*"))
LINE = "\n"
MARK = "chameleon_lite_corpus"  # the first key of an exported corpus, and of no other JSONL


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


def parse(value: Any, number: int, *, scored: bool = False) -> Row:
    """A string or an object with named columns to a row; with `scored`, one that has only a prompt is an error."""
    value = {"text": value} if isinstance(value, str) else value
    try:
        row = _parsed(value, number, SCORED if scored else SCORED + PROMPTS)
        for column in ("id", "prompt", "text", "group", "split"):
            if flaw := flaw_of(getattr(row, column)):
                raise ValueError(f"{column!r} {flaw}")
    except (ValueError, RecursionError) as error:
        name = str(value["id"]) if isinstance(value, dict) and isinstance(value.get("id"), str | int) else ""
        return Row(number, str(number) if flaw_of(name) or not name else name, error=str(error))
    return row


def _parsed(value: Any, number: int, accepted: tuple[tuple[str, ...], ...]) -> Row:
    """A row; ValueError, with the reason, for a value that is none."""
    if not isinstance(value, dict):
        raise ValueError(f"a row is an object or a string, not {type(value).__name__}")
    if None in value:  # where Python's reader of CSV puts what no column has
        raise ValueError("more cells than the header; quote those with commas")
    if "messages" in value and not any(all(c in value for c in some) for some in SCORED):
        value = value | _conversation(value["messages"])
    columns = next((some for some in accepted if all(c in value for c in some)), None)
    if columns is None:
        raise ValueError(_no_column(value))
    for column in (*columns, "input"):
        if not isinstance(value.get(column) or "", str):
            raise ValueError(f"{column!r} is {type(value[column]).__name__}, not a string")
    prompt = instruction = value[columns[0]] or "" if columns[0] != "text" else ""
    if columns[0] == "instruction":  # Alpaca's prompt, up to where the response begins
        context = f"### Input:\n{value['input']}\n\n" if value.get("input") else ""
        prompt = f"### Instruction:\n{instruction}\n\n{context}### Response:\n"
    text = value[columns[-1]] or "" if columns in SCORED else ""
    name = str(number) if value.get("id") in (None, "") else str(value["id"])
    group, split = (str(value.get(column) or "") for column in ("group", "split"))
    return Row(number, name, prompt, text, instruction=instruction, group=group, split=split)


def _conversation(turns: Any) -> dict[str, str]:
    """Messages to the columns prompt and response, which is empty where the last turn is not the assistant's."""
    try:
        turns = [(turn["role"] + ": ", turn["content"] + "") for turn in turns]
    except (TypeError, KeyError):
        raise ValueError("'messages' is not a list of {'role': string, 'content': string}") from None
    answer = turns.pop()[1] if turns and turns[-1][0] == "assistant: " else ""
    return {"prompt": "\n\n".join([*map("".join, turns), "assistant: "]), "response": answer}


def flaw_of(text: str) -> str:
    """Why a string can be neither tokenised nor written to a file; "" where it can."""
    if "\0" in text:
        return "holds a NUL character: is it UTF-16, or no text?"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds half a character (a lone surrogate, place {error.start})"
    return ""


def _no_column(value: dict) -> str:
    names, hint = [column for some in SCORED for column in some], "rename one"
    for column in reversed([str(c) for c in value if c not in names]):
        if near := difflib.get_close_matches(column.lower(), names, n=1, cutoff=0.5):
            hint = f"{column!r} looks like {near[0]!r}"
    columns = ", ".join(map(repr, list(value)[:10])) or "none"
    return f"no column 'text', nor 'prompt' and 'response', nor 'instruction' and 'output'; found {columns}: {hint}"


def parse_line(line: bytes, number: int, *, scored: bool = False) -> Row:
    """One line of a JSONL file to a row."""
    try:
        return parse(json.loads(line.decode("utf-8-sig"), object_pairs_hook=once), number, scored=scored)
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 (byte {error.start} of the line)"
    except (ValueError, RecursionError) as error:  # ValueError alone for an integer of thousands of digits
        reason = "holds NUL bytes: is it UTF-16?" if b"\0" in line else f"not JSON: {error}"
    return Row(number, str(number), error=reason)


def jsonl_rows(path: Path, *, scored: bool = False) -> Iterator[Row]:
    """The rows of a JSONL file; empty lines and the header of an exported corpus are none.

    Read as bytes, line by line: a bad line is one bad row, and no more than one line is in memory.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            header = number == 1 and line.startswith(f'{{"{MARK}"'.encode())
            if line.removeprefix(b"\xef\xbb\xbf").strip() and not header:
                yield parse_line(line, number, scored=scored)


def read_rows(path: Path, *, scored: bool = True) -> Iterator[Row]:
    """The rows of a .json (one list) or .csv file, a folder of .txt, or JSONL; UserError for a file of another kind.

    Without `scored` a prompt is enough, and a file with any other ending is read as JSONL.
    """
    kind = path.suffix.lower()
    if path.is_dir():
        return parsed(_paragraphs(path))
    if scored and kind not in (".jsonl", ".json", ".csv"):
        raise UserError(f"cannot read {path.name}: a corpus is {KINDS}")
    _refuse_other_kinds(path)
    if kind == ".csv":
        return parsed(_csv(path), scored=scored)
    return (_json if kind == ".json" else jsonl_rows)(path, scored=scored)


def parsed(values: Iterable, *, scored: bool = True) -> Iterator[Row]:
    """Values to rows, by default of a corpus, numbered from 1."""
    return (parse(value, number, scored=scored) for number, value in enumerate(values, start=1))


def _refuse_other_kinds(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(4)
    if other := next((name for sign, name in OTHER_KINDS.items() if start.startswith(sign)), None):
        raise UserError(f"{path.name} is {other}; save it as text in UTF-8, as {KINDS}")


def _text(path: Path) -> str:
    _refuse_other_kinds(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _json(path: Path, scored: bool) -> Iterator[Row]:
    """The rows of a file that holds one list, read one by one: what is wrong has its line and column."""
    text, decoder, number, end, sign = _text(path), json.JSONDecoder(object_pairs_hook=once), 0, 0, FIRST

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


def _csv(path: Path) -> Iterator[dict]:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts above 128 KiB
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        names = [name for name in reader.fieldnames or () if name]
        if len(set(names)) < len(names):
            raise UserError(f"{path.name}, line 1 names the column {max(names, key=names.count)!r} twice")
        yield from reader
    except csv.Error as error:
        raise UserError(f"{path.name}, line {reader.line_num} is not CSV: {error}") from None


def _paragraphs(folder: Path) -> Iterator[dict[str, str]]:
    """Each paragraph of the .txt files of a folder as a row; `group` is its file."""
    for file in sorted(p for p in folder.rglob("*.txt") if p.is_file()):
        name = file.relative_to(folder).as_posix()
        text = _text(file).replace("\r\n", "\n").replace("\r", "\n")
        paragraphs = (p.strip() for p in re.split(r"\n[ \t]*\n", text))
        for i, paragraph in enumerate(filter(None, paragraphs)):
            yield {"id": f"{name}#{i}", "text": paragraph, "group": name}
