"""The tables of a results folder, kept beside the records they come from, and shown in 80 columns.

results/tables.json ─ {"evidence": key, "rows": [one per regime and experiment, the released tables' first]}

The key covers every stored record and loss; a change of the code needs `--write`.
"""

import json
import textwrap
from itertools import groupby
from pathlib import Path

from .stored import NOT_RECORDS, TABLES, content_of, evidence_of, records_and_losses, store_text

WIDTH = 80  # columns
NONE = "–"
# what a block's heading names before its command
RELEASED = ("table", "protocol", "backbone", "corpus", "length", "training rows", "validation rows")
HONEST = ("experiment", "backbone", "corpus", "documents", "training tokens")
LINE_RELEASED = "{:<6} {:>2} {:>10} {:>17} {:>12} {:>15} {:>10}"
LINE_HONEST = "{:<12} {:<27} {:>2} {:>7} {:>26}"


def stored_rows(results: Path) -> list[dict]:
    """What `write_rows` left in a folder; [] without it, or where records or losses are others now."""
    path = Path(results) / TABLES
    if not path.exists():
        return []
    with content_of(path, "tables") as stored:
        rows = [dict(row) for row in stored["rows"]]
        return rows if stored["evidence"] == _evidence(results) else []


def write_rows(rows: list[dict], results: Path) -> Path:
    """Store the rows beside their records."""
    content = {"evidence": _evidence(results), "rows": rows}
    return store_text(results / TABLES, json.dumps(content, indent=0, ensure_ascii=False) + "\n")


def _evidence(results: Path) -> str:
    return evidence_of([path for path in records_and_losses(results) if path.stem not in NOT_RECORDS])


def as_text(rows: list[dict]) -> str:
    """Both kinds of table in 80 columns, one block per table or experiment under its circumstances."""
    lines = []
    for released, of_kind in groupby(rows, lambda row: "protocol" in row):
        names, line = (RELEASED, _released) if released else (HONEST, _honest)
        for _, block in groupby(of_kind, lambda row: [row.get(name) for name in (*names, "command")]):
            block = list(block)
            lines += ["", *_heading(block[0], names), *line(block)]
    return "\n".join(lines[1:])


def _heading(row: dict, names: tuple[str, ...]) -> list[str]:
    counts = ("table", "length", "documents", "training tokens", "training rows", "validation rows")
    about = [f"{name} {row[name]}" if name in counts else str(row[name]) for name in names if row.get(name)]
    indent = {"subsequent_indent": "    ", "break_on_hyphens": False}
    paragraphs = (" · ".join(about), f"$ {row['command']}")
    return [line for text in paragraphs for line in textwrap.wrap(text, WIDTH, **indent)]


def _released(rows: list[dict]) -> list[str]:
    names = ("regime", "n seeds", "published loss", "loss", "perplexity", "loss of full rows", "padded")
    titles = ("regime", "n", "published", "our loss", "perplexity", "full rows", "of padding")
    lines = [LINE_RELEASED.format(*titles)]
    for row in rows:
        row = row | {"padded": str(row.get("loss of padded rows", NONE)).split(" ±")[0]}
        lines.append(LINE_RELEASED.format(*[str(row.get(name, NONE)) for name in names]))
    return lines


def _honest(rows: list[dict]) -> list[str]:
    lines = [LINE_HONEST.format("regime", "nats per token of test texts", "n", "mean", "minus R0 [95 %]")]
    for row in rows:
        what = textwrap.shorten(row.get("what", ""), 27, placeholder=" …")
        mean, difference = str(row["test nll"]).split(" [")[0], row.get("difference from R0", NONE)
        if not row["n seeds"]:
            lines.append(f"{row['regime']:<12} {mean}")  # diverged
        else:
            lines.append(LINE_HONEST.format(row["regime"], what, row["n seeds"], mean, difference))
    return lines
