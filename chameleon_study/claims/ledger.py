"""The claims, part by part: a verdict is what a rule makes of the records, never something typed.

rules.yaml + StoredRuns(results, benchmarks) ─▶ cells by corpus ─▶ headline ─▶ table, CSV, verdicts.json
"""

import json
from pathlib import Path

import pandas as pd

from chameleon_lite.errors import UserError, known

from ..records import load_results
from ..released.proofs.store import load_proofs
from ..stored import read
from . import continuations, rules, rules_stored
from .contrasts import StoredRuns, registered
from .paper import paper, parts, rulebook
from .rules import PLANTED, headline, members_of
from .scoreboard import OPEN, ledger_frame, scoreboard, stored_verdicts, write_verdicts
from .statistics import UNTESTED

__all__ = ["OPEN", "ledger", "ledger_frame", "scoreboard", "stored_verdicts", "write_verdicts"]


def ledger(
    results: Path, backbone: str = "smollm2", draws: int = 10_000, benchmarks: Path | None = None
) -> dict[str, dict]:
    """The verdicts of every part from a results folder and its timings, by part, as `stored_verdicts` has them."""
    evidence = StoredRuns(results, backbone, draws, benchmarks)
    return {part["part"]: decided(evidence, part) for part in parts()}


def decided(evidence: StoredRuns, part: dict) -> dict:
    """The row of one part: `claim`, `part`, `headline`, `cells` by corpus, and the contrasts `beside`."""
    modules = (rules, rules_stored, continuations)
    rule = next(getattr(module, part["rule"]) for module in modules if hasattr(module, part["rule"]))
    cells, beside = rule(evidence, **part["arguments"]), {}
    for corpus in evidence.corpora:
        if texts := [text for name in part["beside"] for text in _texts(evidence, corpus, name)]:
            beside[corpus] = ", ".join(texts)
    verdicts = [cell.verdict for cell in cells.values()]
    row = {"claim": part["claim"], "part": part["part"], "headline": headline(verdicts, part["over"])}
    return row | {"cells": {where: cell._asdict() for where, cell in cells.items()}, "beside": beside}


def _texts(evidence: StoredRuns, corpus: str, name: str) -> list[str]:
    if name in registered()["exploratory"]:  # named after the runs: an interval, no verdict
        return [f"{key} {c.text()} (exploratory)" for key, c in evidence.measured(corpus, name).items()]
    return [f"{key} {m.contrast.text()}" for key, m in members_of(evidence, corpus, [name]).items()]


def changes_frame(results: Path) -> pd.DataFrame:
    """One row per claim: its verdict in version 1, the headlines of its parts now, and why it changed."""
    stored = json.loads(read(results / "v1" / "verdicts.json"))
    old, now, rows = {row["claim"]: row["status"] for row in stored}, _headlines(results), []
    for c in paper()["claims"]:
        row = {"claim": c["claim"], "says": c["says"], "version 1": old.get(c["claim"], UNTESTED)}
        rows.append(row | {"now": now[c["claim"]], "why": rulebook()[c["claim"]]["since"]})
    return pd.DataFrame(rows)


def review_frame(results: Path) -> pd.DataFrame:
    """One row per claim whose rule was changed after its verdicts were seen: what and why, and its parts now."""
    changed = {claim: given["reviewed"] for claim, given in rulebook().items() if "reviewed" in given}
    frame = pd.DataFrame(changed.items(), columns=["claim", "changed"])
    return frame.assign(now=frame["claim"].map(_headlines(results)))


def _headlines(results: Path) -> pd.Series:
    """The stored verdicts of a claim's parts in words, by claim."""
    now = pd.DataFrame(scoreboard(results))
    return (now["part"] + ": " + now["status"]).groupby(now["claim"]).agg("; ".join)


def checked(results: Path, backbone: str, benchmarks: Path | None) -> None:
    """UserError where a folder holds nothing that could decide a claim, or nothing of this backbone."""
    backbones = {r.backbone for r in [*load_results(results), *load_proofs(results)]}
    if not backbones:
        raise UserError(f"no records in {results}/: give the folder that run --results wrote to")
    known(f"backbone among the records in {results}/", [backbone], backbones)
    if benchmarks is not None and not benchmarks.is_dir():
        raise UserError(f"no folder of timings at {benchmarks}: give the one that bench writes to")


def predictions(evidence: StoredRuns) -> pd.DataFrame:
    """The registered predictions, each corpus with its result: as expected, or not."""
    rows, planted = [], evidence.beside(PLANTED)
    for name, p in registered()["predictions"].items():
        for corpus, runs in [(c, runs) for runs in (evidence, planted) for c in runs.corpora]:
            applies = corpus in p["only"] if "only" in p else runs is evidence
            if applies and (result := _result(runs, corpus, p)):
                row = {"prediction": name, "says": p["says"], "corpus": corpus}
                rows.append(row | {"found": result[0], "as expected": result[1]})
    return pd.DataFrame(rows)


def _result(evidence: StoredRuns, corpus: str, p: dict) -> tuple[str, bool | None] | None:
    if member := evidence.family(corpus).get(p.get("contrast")):
        number = f"{p['contrast']} {member.contrast.difference:+.4f}"
        return f"{number}: {member.verdict}", member.verdict in p["expected"]
    if "share_of" not in p:
        return None
    worse, control, best = p["share_of"]
    gain, whole = (evidence.contrast(corpus, worse, other) for other in (control, best))
    if gain is None or whole is None:
        return None
    if whole.low <= 0:  # no advantage to divide
        return f"{worse} − {best} {whole.difference:+.4f}: no advantage to explain", None
    share = gain.difference / whole.difference
    return f"{share:.0%} of the advantage", share > p["above"]
