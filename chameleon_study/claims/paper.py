"""The paper's published numbers (arXiv 2502.04315 v3), read from the one file that holds them."""

import json
from functools import cache
from importlib.resources import files

from chameleon_lite.errors import unknown


@cache
def paper() -> dict:
    """The whole file: `source`, `tables`, `improvements`, `claims`. Treat it as read-only."""
    return json.loads((files(__package__) / "paper.json").read_text(encoding="utf-8"))


def published(table: int, regime: str, field: str) -> float:
    """One published number, e.g. published(1, "R4", "validation_loss"); UserError for a wrong name."""
    tables = {str(t["table"]): t["rows"] for t in paper()["tables"]}
    rows = {row["regime"]: row for row in _named("table of the paper", str(table), tables)}
    return _named("field", field, _named(f"regime in the paper's table {table}", regime, rows))


def _named(kind: str, name: str, items: dict):
    if name not in items:
        raise unknown(kind, name, items)
    return items[name]


def published_parameters() -> dict[str, int]:
    """The parameter column of both tables, under the names of `model.parameters.parameter_table`."""
    parts = {"R0": "total", "R1": "lora_head", "R4": "hyper_head"}
    return {part: int(published(1, regime, "parameters")) for regime, part in parts.items()}


def claims() -> list[dict]:
    """The ledger's questions: `claim` (number), `says` (our short form), `confirmed_if`, `decided_by`."""
    return paper()["claims"]
