"""The stored verdicts: what pages and the command show without reading a record.

results/verdicts.json ─ {"evidence": key, "parts": [{claim, part, headline, cells, beside}]}
evidence_key(results) ─ of every stored file, timing, registered contrast and rule: if equal, up to date
"""

import json
import textwrap
from pathlib import Path

import pandas as pd

from chameleon_lite.errors import RunFailed

from ..stored import VERDICTS, content_of, evidence_of, records_and_losses, store_text
from .paper import paper, parts

OPEN = "not measured yet"
FIELDS = ("claim", "part", "headline", "cells", "beside")
WIDTH = 80  # columns of the command's table
HERE = Path(__file__).resolve()
REGISTERED = HERE.parents[2] / "experiments" / "registered.yaml"
RULES = (HERE.parent / "rules.yaml", REGISTERED)


def evidence_key(results: Path, benchmarks: Path, *circumstances: str) -> str:
    """Hex sha256 of all that verdicts are made from; DamagedFile where a stored file is not what was stored."""
    timings = sorted(benchmarks.glob("*.json"))
    return evidence_of([*records_and_losses(results), *timings, *RULES], *circumstances)


def write_verdicts(rows: dict[str, dict], results: Path, key: str = "") -> None:
    """Store the verdicts of all parts; refused where a part that has verdicts there would lose them."""
    path, before = results / VERDICTS, stored_verdicts(results)
    kept = {part for part, row in rows.items() if row["cells"]}
    if lost := sorted({part for part, row in before.items() if row["cells"]} - kept):
        what = f"these records test no claim {', '.join(lost)}"
        raise RunFailed(f"{path} is kept: {what}; remove the file to replace it")
    content = json.dumps({"evidence": key, "parts": [*rows.values()]}, indent=1, ensure_ascii=False)
    store_text(path, content + "\n")


def stored_verdicts(results: Path, key: str | None = None) -> dict[str, dict]:
    """What `write_verdicts` left in a folder, by part ("1a"); {} without it, or where it has another key."""
    path = Path(results) / VERDICTS
    if not path.exists():
        return {}
    with content_of(path, "verdicts") as stored:
        rows = {row["part"]: {name: row[name] for name in FIELDS} for row in stored["parts"]}
        return rows if key in (None, stored["evidence"]) else {}


def board(rows: dict[str, dict]) -> list[dict]:
    """One row per part of a claim: what the paper says, what is asked, `status` (OPEN without a row), the rule."""
    says = {c["claim"]: c for c in paper()["claims"]}
    return [
        {"part": p["part"], "claim": p["claim"], "says": says[p["claim"]]["says"]}
        | {"section": says[p["claim"]]["section"], "asks": p["asks"]}
        | {"status": rows.get(p["part"], {"headline": OPEN})["headline"], "supported if": p["if"]}
        for p in parts()
    ]


def scoreboard(results: Path) -> list[dict]:
    """The board of a folder's stored verdicts."""
    return board(stored_verdicts(results))


def ledger_frame(rows: dict[str, dict]) -> pd.DataFrame:
    """One row per part and corpus: what is claimed and asked, verdict, number, detectable gain, what is beside."""
    cells = [
        {"part": part, "where": where} | cell | {"beside": row["beside"].get(where, "")}
        for part, row in rows.items()
        for where, cell in row["cells"].items()
    ]
    columns = ["part", "where", "verdict", "number", "detectable", "beside"]
    return pd.DataFrame(board(rows)).merge(pd.DataFrame(cells, columns=columns), on="part", how="left")


def as_text(rows: dict[str, dict], wide: bool = False) -> str:
    """The table of the command in 80 columns, claim by claim; `wide` adds the numbers of each corpus."""
    lines, claim = [], 0
    for row in board(rows):
        if row["claim"] != claim:
            claim = row["claim"]
            lines += textwrap.wrap(f"{claim}. {row['says']} ({row['section']})", WIDTH)
        indent = {"initial_indent": f"  {row['part']:<4} ", "subsequent_indent": " " * 7}
        lines += textwrap.wrap(f"{row['status']}: {row['asks']}", WIDTH, **indent)
        for where, cell in rows.get(row["part"], {"cells": {}})["cells"].items() if wide else ():
            size = cell["detectable"]
            least = f" (detectable: {size:.4f})" if size and cell["verdict"] == "equivalent" else ""
            lines.append(f"       {where}: {cell['verdict']}: {cell['number']}{least}")
    return "\n".join(lines)
