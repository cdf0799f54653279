"""The rows by name, from rows.yaml: ROWS are compared with peers and mostly have goals, EXTRAS show something else.

name ─ its function ─▶ samples by quantity, gates, workload, profile ─ its goals ─▶ row
"""

from importlib import import_module
from pathlib import Path

import yaml

from .bench import Bench
from .measure import compared, row
from .workload import short

TABLE: dict[str, dict] = yaml.safe_load(Path(__file__).with_name("rows.yaml").read_text(encoding="utf-8"))
ROWS, EXTRAS = TABLE["rows"], TABLE["extras"] | TABLE["on request"]
USUAL = [*ROWS, *TABLE["extras"]]  # what is measured when nothing is named


def measured(name: str, bench: Bench) -> dict:
    """The row of that name; raises what its function raises."""
    about = (ROWS | EXTRAS)[name]
    file, function = about["run"].split(".")
    module = import_module(f".{file}", __package__)  # the other rows' files are not loaded
    sizes = {size: bench.size(*values) for size, values in about.get("sizes", {}).items()}
    found = getattr(module, function)(bench, **sizes, **about.get("options", {}))
    workload = {size.replace("_", " "): value for size, value in sizes.items()} | found.pop("workload", {})
    samples, comparisons = found.pop("samples", {}), []
    peers_of = {q.format(fast=short(bench.fast)): peers for q, peers in about.get("goals", {}).items()}
    for quantity, peers in peers_of.items():
        # quick runs are too small for any goal
        goals = {peer: None if bench.quick else pair[bench.gpu] for peer, pair in peers.items()}
        comparisons += compared(samples[quantity], goals, quantity)
        beside = samples[quantity].drop(columns=["ours", *peers], errors="ignore").median()
        workload |= {f"s, {contender}": seconds for contender, seconds in beside.items()}
    return row(about["what"], comparisons, limit=about.get("limit", ""), workload=workload, **found)
