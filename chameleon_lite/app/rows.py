"""Rows of texts: a string or an object, in any kind of file, becomes a prompt and a text, or gets its error.

    "some text" or {"text": …}                            the text is scored
    {"prompt": …, "response", "text" or "completion": …}  the response is scored; to continue, the prompt is enough
    {"instruction": …, "input": …, "output": …}           the output is scored, after Alpaca's prompt; input is optional
    {"messages": [{"role": …, "content": …}, …]}          the assistant's last turn is scored, after those before it
    {"conversations": [{"from": …, "value": …}, …]}       the same, with the names human and gpt

`id`, `group` and `split` are optional; the id of a row without one is its number. In a table the turns are JSON.
Files are read in files_read.py; what a model's chat template makes of turns and prompts is in chat.py.
"""

import difflib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..backbones.formats import once

# Columns of a row; the last one is scored.
ANSWERS = [("prompt", name) for name in ("response", "text", "completion")]
SCORED = (("instruction", "output"), *ANSWERS, ("text",))
PROMPTS = (("instruction",), ("prompt",))
TURNS = ("messages", "conversations")
ROLES = {"human": "user"} | dict.fromkeys(("gpt", "chatgpt", "bing", "bard"), "assistant")
ROLES |= {role: role for role in ("user", "assistant", "system", "tool")}  # "from" ─▶ role


@dataclass(frozen=True)
class Row:
    """One row: its number from 1, the prompt, the text that is scored after it; or what is wrong with the row.

    turns: the prompt as it was spoken, a JSON list of [role, content]; "" where it has no turns.
    """

    number: int
    id: str
    prompt: str = ""
    text: str = ""
    error: str = ""
    instruction: str = ""
    group: str = ""
    split: str = ""
    turns: str = ""


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
    # a table has cells for all columns
    filled = {column: x for column, x in value.items() if x is not None and x != ""}
    named = next((name for name in TURNS if name in filled), "")
    if named and not any(filled.keys() >= set(some) for some in SCORED):
        value = filled = filled | _conversation(value[named], named)
    either = (some for columns in (filled, value) for some in accepted if columns.keys() >= set(some))
    columns = next(either, None)
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
    more = {"instruction": instruction, "group": group, "split": split, "turns": _exported(value, prompt)}
    return Row(number, name, prompt, text, **more)


def _conversation(turns: Any, named: str) -> dict[str, str]:
    """Turns to the columns prompt and response, which is empty where the last turn is not the assistant's."""
    turns = _turns(turns, named)
    if not turns:
        raise ValueError(f"{named!r} has no turns")
    answer = turns.pop()[1] if turns[-1][0] == "assistant" else ""
    return {"prompt": _flat(turns), "response": answer, "turns": json.dumps(turns, ensure_ascii=False)}


def _turns(turns: Any, named: str) -> list[list[str]]:
    """Turns as [role, content]; ValueError where they are none, with what they look like."""
    try:
        turns = json.loads(turns, object_pairs_hook=once) if isinstance(turns, str) else turns
        keys = [("from", "value") if "from" in t and "role" not in t else ("role", "content") for t in turns]
        turns = [[turn[role], turn[content]] for turn, (role, content) in zip(turns, keys)]
        if not all(isinstance(part, str) for turn in turns for part in turn):
            raise TypeError
    except (TypeError, KeyError, ValueError, RecursionError):
        who, what = ("role", "content") if named == "messages" else ("from", "value")
        raise ValueError(f"{named!r} is not a list of {{{who!r}: string, {what!r}: string}}") from None
    if named == "conversations" and (unknown := [role for role, _ in turns if role not in ROLES]):
        raise ValueError(f"'from' is {unknown[0][:40]!r}, none of {', '.join(ROLES)}")
    return [[ROLES.get(role, role), content] for role, content in turns]


def _exported(value: dict, prompt: str) -> str:
    """The turns in a line of an exported corpus, where they are those of the prompt; else ""."""
    turns = value.get("turns")
    try:
        return turns if isinstance(turns, str) and _flat(json.loads(turns)) == prompt else ""
    except (TypeError, ValueError, RecursionError):
        return ""


def _flat(turns: list[list[str]]) -> str:
    """Turns as plain text, up to where the assistant's begins."""
    return "\n\n".join([*(f"{role}: {content}" for role, content in turns), "assistant: "])


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
    names, hint = [column for some in (*SCORED, TURNS) for column in some], "rename one"
    for column in reversed([str(c) for c in value if c not in names]):
        if near := difflib.get_close_matches(column.lower(), names, n=1, cutoff=0.5):
            hint = f"{column!r} looks like {near[0]!r}"
    columns = ", ".join(map(repr, list(value)[:10])) or "none"
    wanted = "'text', nor 'prompt' and 'response', nor 'instruction' and 'output', nor 'messages'"
    return f"no column {wanted}; found {columns}: {hint}"


def parse_line(line: bytes, number: int, *, scored: bool = False, encoding: str = "utf-8-sig") -> Row:
    """One line of a JSONL file to a row."""
    try:
        return parse(json.loads(line.decode(encoding), object_pairs_hook=once), number, scored=scored)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8-sig" else encoding
        reason = f"not {name} (byte {error.start} of the line)"
    except (ValueError, RecursionError) as error:  # ValueError alone for an integer of thousands of digits
        reason = "holds NUL bytes: is it UTF-16?" if b"\0" in line else f"not JSON: {error}"
    return Row(number, str(number), error=reason)


def parsed(values: Iterable, *, scored: bool = True) -> Iterator[Row]:
    """Values to rows, by default of a corpus, numbered from 1."""
    return (parse(value, number, scored=scored) for number, value in enumerate(values, start=1))
