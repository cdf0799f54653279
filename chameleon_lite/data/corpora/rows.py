"""Rows with named columns become documents: one place for what columns may be called.

text                            one scored text
prompt, response                the response is scored, the prompt is context
instruction, [input], output    the same, the prompt made of instruction and input as Alpaca's is here
id, group, split                optional beside each of them
"""

import difflib
from collections.abc import Iterable, Sequence

from ...errors import UserError
from .documents import SPLITS, Corpus, Document, overlaps, split_documents

COLUMNS = {("instruction", "output"): "output", ("prompt", "response"): "response", ("text",): "text"}
EMPTY = "empty_rows"
FEW = 10


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """The prompt of an instruction and its optional input, up to where the response begins."""
    middle = f"### Input:\n{context}\n\n" if context else ""
    return f"### Instruction:\n{instruction}\n\n{middle}### Response:\n"


def documents(rows: Iterable[dict], where: str) -> tuple[list[Document], list[str], int]:
    """Rows to documents, each one's split ("" where the row names none) and how many had nothing to score.

    `where` names the rows in errors. Raises UserError for missing columns, naming the nearest that is there,
    for values that are not strings, and when nothing is left.
    """
    found, splits, empty = [], [], 0
    for number, row in enumerate(rows, start=1):
        needed = _columns(row, where, number)
        for column in (*needed, "input"):
            if not isinstance(row.get(column) or "", str):
                raise UserError(
                    f"{where}, row {number}: {column!r} is {type(row[column]).__name__}, not a string"
                )
        if not (row[COLUMNS[needed]] or "").strip():
            empty += 1
            continue
        found.append(_document(row, needed, number))
        splits.append(str(row.get("split") or ""))
    if not found:
        raise UserError(
            f"{where} has no text: {empty} rows, all empty; give at least 3 rows with something in them"
        )
    return found, splits, empty


def corpus(
    name: str, source: str, found: list[Document], named: Sequence[str], empty: int, *, seed: int
) -> Corpus:
    """Documents to a corpus: by the splits the rows name, if all do and all three occur, else 80/10/10.

    Instructions (or prompts) that are equal but for case and spaces stay on one side, unless there are fewer
    than 10 different ones to deal out.
    """
    if set(named) == set(SPLITS):
        splits = {split: tuple(d for d, s in zip(found, named) if s == split) for split in SPLITS}
        return Corpus(name, splits, source, {"split": "given by the rows", EMPTY: empty} | overlaps(splits))
    keys = [instruction_key(d) or d.id for d in found]
    distinct = len(set(keys)) >= FEW
    splits, notes = split_documents(found, seed=seed, keys=keys if distinct else None)
    rule = "80/10/10 by instruction and near-duplicates" if distinct else "80/10/10 by near-duplicates"
    return Corpus(name, splits, source, {"split": rule, EMPTY: empty} | notes)


def instruction_key(document: Document) -> str:
    """What makes two instructions the same one."""
    return " ".join(document.instruction.lower().split())


def _columns(row: dict, where: str, number: int) -> tuple[str, ...]:
    if not isinstance(row, dict):
        raise UserError(
            f"{where}, row {number} is {type(row).__name__}; each row must be an object with named columns"
        )
    for needed in COLUMNS:
        if all(column in row for column in needed):
            return needed
    every = [column for needed in COLUMNS for column in needed]
    hints = (
        f"{given!r} looks like {near[0]!r}"
        for given in map(str, row)
        if given not in every and (near := difflib.get_close_matches(given.lower(), every, n=1, cutoff=0.5))
    )
    hint = next(hints, "rename one")
    raise UserError(
        f"{where}, row {number}: no column 'text', nor 'prompt' and 'response', nor 'instruction' and 'output'; "
        f"found {', '.join(map(repr, row)) or 'none'}: {hint}"
    )


def _document(row: dict, needed: tuple[str, ...], number: int) -> Document:
    common = dict(
        id=str(row.get("id") or number), text=row[COLUMNS[needed]], group=str(row.get("group") or "")
    )
    if "instruction" in needed:
        asked = row["instruction"] or ""
        return Document(**common, prompt=alpaca_prompt(asked, row.get("input") or ""), instruction=asked)
    if "prompt" in needed:
        return Document(**common, prompt=row["prompt"] or "", instruction=row["prompt"] or "")
    return Document(**common)
