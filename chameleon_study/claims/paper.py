"""The paper's published numbers and claims (arXiv 2502.04315 v3), and the parts that a claim is decided in."""

import json
from functools import cache
from importlib.resources import files

import yaml

from chameleon_lite.errors import known


@cache
def paper() -> dict:
    """The whole file: `source`, `tables`, `improvements`, `claims` in our words. Treat it as read-only."""
    return json.loads((files(__package__) / "paper.json").read_text(encoding="utf-8"))


def published(table: int, regime: str, field: str) -> float:
    """One published number, e.g. published(1, "R4", "validation_loss"); UserError for a wrong name."""
    tables = {str(t["table"]): t["rows"] for t in paper()["tables"]}
    known("table of the paper", [str(table)], tables)
    rows = {row["regime"]: row for row in tables[str(table)]}
    known(f"regime in the paper's table {table}", [regime], rows)
    known("field", [field], rows[regime])
    return rows[regime][field]


@cache
def rulebook() -> dict[int, dict]:
    """rules.yaml: claim to its parts by letter, `since` version 1 and `reviewed`: what changed. Read-only."""
    return yaml.safe_load((files(__package__) / "rules.yaml").read_text(encoding="utf-8"))


@cache
def parts() -> list[dict]:
    """The claims' parts: `part` ("1a"), `claim`, `asks`, `if` (supported), `over`, `beside`, `rule`, `arguments`."""
    out = []
    for claim, of_claim in rulebook().items():
        for letter, given in of_claim.items():
            if letter in ("since", "reviewed"):
                continue
            part = {"part": f"{claim}{letter}", "claim": claim, "over": "corpora", "beside": ()}
            part["if"] = " and ".join(given.get("names", ())).replace("<", " < ")
            part |= {name: given[name] for name in ("asks", "rule", "if", "over", "beside") if name in given}
            out.append(part | {"arguments": {n: v for n, v in given.items() if n not in part}})
    return out
