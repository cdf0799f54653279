"""The rows by name, from rows.yaml: ROWS are compared with peers and mostly have goals, EXTRAS show something else.

name ─ its function ─▶ samples by quantity, gates, workload, profile ─ its goals ─▶ row
"""

from importlib import import_module
from pathlib import Path

import yaml

from .measure import row
from .workload import short

TABLE: dict[str, dict] = yaml.safe_load(Path(__file__).with_name("rows.yaml").read_text(encoding="utf-8"))
ROWS, ON_REQUEST = TABLE["rows"], TABLE["on request"]
EXTRAS = TABLE["extras"] | ON_REQUEST


def measured(name: str, bench) -> dict:
    """The row of that name, measured on a Bench; raises what its function raises."""
    about = dict((ROWS | EXTRAS)[name])
    file, function = about.pop("run").split(".")
    # what none of these peers could do is not loaded for the others
    found = getattr(import_module(f".{file}", __package__), function)(bench)
    samples, absent = found.pop("samples", {}), found.pop("absent", {})
    named = {q.format(fast=short(bench.fast)): peers for q, peers in about.pop("goals", {}).items()}
    comparisons = []
    for quantity, peers in named.items():
        goals = {peer: bench.goal(*pair) for peer, pair in peers.items()}
        comparisons += samples[quantity].against(goals, quantity, absent)
    return row(comparisons=comparisons, **about | found)
