"""Lines of a JSONL file, or Python strings, become rows to adapt to; a row that is no good says why and stays.

    "some text"                              the text
    {"text": …}                              the text
    {"prompt": …, "response": …}             the response is scored; to be continued, the prompt is enough
    {"instruction": …, "input": …, "output": …}   the same, with the prompt that training used

`id` is kept where there is one, otherwise it is the line's number. Two rows may share an id: results come in the
rows' order and carry the line number too.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.corpora.rows import alpaca_prompt
from ..errors import UserError

STRINGS = ("text", "prompt", "response", "instruction", "input", "output")


@dataclass(frozen=True)
class Row:
    """One row: line number from 1, id, what stands before the scored text, the scored text; or what is wrong."""

    number: int
    id: str
    prompt: str = ""
    text: str = ""
    error: str = ""


def read_jsonl(path: Path | str, skip: int = 0) -> Iterator[tuple[Row, int]]:
    """Yield (row, bytes read so far) of a JSONL file, after `skip` rows; empty lines are passed over.

    Read as bytes, line by line: a line that is not UTF-8 or not JSON is one bad row, and no more than one line is
    in memory.
    """
    if not Path(path).is_file():
        raise UserError(f"no file at {path}; give a .jsonl file with one object or string a line")
    read = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            read += len(line)
            if not line.strip():
                continue
            if skip:
                skip -= 1
                continue
            yield parse_line(line, number), read


def parse_line(line: bytes, number: int) -> Row:
    """One line of a JSONL file to a row."""
    try:
        return parse(json.loads(line.decode("utf-8-sig")), number)
    except UnicodeDecodeError as error:
        return Row(number, str(number), error=f"not UTF-8 (byte {error.start} of the line)")
    except (json.JSONDecodeError, RecursionError) as error:
        return Row(number, str(number), error=f"not JSON: {error}")


def parse(value: Any, number: int) -> Row:
    """A string or an object with named columns to a row."""
    value = {"text": value} if isinstance(value, str) else value
    if not isinstance(value, dict):
        return Row(number, str(number), error=f"a row is an object or a string, not {type(value).__name__}")
    own = str(value["id"]) if value.get("id") is not None else str(number)
    wrong = [name for name in STRINGS if not isinstance(value.get(name) or "", str)]
    if wrong:
        return Row(number, own, error=f"{wrong[0]!r} is {type(value[wrong[0]]).__name__}, not a string")
    column = {name: value.get(name) or "" for name in STRINGS}
    if "prompt" in value:
        return Row(number, own, column["prompt"], column["response"] or column["text"])
    if "instruction" in value:
        return Row(number, own, alpaca_prompt(column["instruction"], column["input"]), column["output"])
    if "text" in value:
        return Row(number, own, text=column["text"])
    found = ", ".join(map(repr, value)) or "none"
    return Row(number, own, error=f"no column 'text', 'prompt' or 'instruction'; found {found}")


def windows(rows: Iterable, size: int) -> Iterator[list]:
    """Runs of `size` items, the last may be shorter."""
    part: list = []
    for row in rows:
        part.append(row)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
