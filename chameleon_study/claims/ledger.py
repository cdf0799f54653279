"""The claims, one by one: a verdict is what a rule makes of the records, never something typed.

paper.json + DECIDE + StoredRuns(results, benchmarks) ─▶ one row per claim ─▶ table, CSV, verdicts.json
results/verdicts.json ─▶ scoreboard, the first page of the book
"""

import json
from pathlib import Path

import pandas as pd

from chameleon_lite.errors import DamagedFile, RunFailed, UserError, unknown

from ..records import load_results
from ..released.proofs.store import load_proofs
from ..stored import read, reason, storing
from . import rules
from .continuations import coherent_outputs
from .contrasts import StoredRuns, registered
from .paper import claims
from .rules import UNTESTED, ClaimVerdict, Rule, holds
from .rules_stored import modest_overhead, published_again, without_a_model

OPEN = "not measured yet"
INSTRUCTED = ("alpaca", "docstrings-instructions")  # corpora whose condition is an instruction

DECIDE: dict[int, Rule] = {
    1: holds("R4<R1", "R4<R2"),
    2: without_a_model,
    3: holds("R4<R3", "R4<R7", "R4<R7b", "R4<R8"),
    4: holds("R4<R5", "R4<R18"),
    5: rules.content,
    6: rules.monotone,
    7: rules.slopes,
    8: rules.generalisation,
    9: rules.convergence,
    10: holds("R4<R11"),
    11: modest_overhead,
    12: rules.parameters,
    13: rules.any_model,
    14: rules.half_way_to_the_oracle,
    15: holds("R4-stream<R1"),
    16: coherent_outputs,
    17: holds("R4<R11", "R4<R12", "R4<R20"),
    18: rules.sizes,
    19: rules.fairness,
    20: holds("R4<R3", corpora=INSTRUCTED),
    21: rules.nothing,
    22: published_again,
}
# claim ▶ (what must hold for "confirmed", in words; the rule)
RULES = {c["claim"]: (c["confirmed_if"], DECIDE[c["claim"]]) for c in claims()}


def ledger(
    results: Path, backbone: str = "smollm2", draws: int = 10_000, benchmarks: Path | None = None
) -> dict[int, ClaimVerdict]:
    """The verdict of every claim from a results folder and its timings; "not tested" without records."""
    evidence = StoredRuns(results, backbone, draws, benchmarks)
    return {claim: rule(evidence) for claim, (_, rule) in RULES.items()}


def ledger_frame(verdicts: dict[int, ClaimVerdict]) -> pd.DataFrame:
    """One row per claim: what it says, the rule, the verdict, its number and the corpora's verdicts."""
    rows = []
    for c in claims():
        number, v = c["claim"], verdicts[c["claim"]]
        corpora = ", ".join(f"{name}: {verdict}" for name, verdict in v.corpora.items())
        rows.append((number, c["says"], RULES[number][0], v.verdict, v.number, corpora or "–"))
    columns = ["claim", "says", "confirmed if", "verdict", "number", "by corpus"]
    return pd.DataFrame(rows, columns=columns)


def checked(results: Path, backbone: str, benchmarks: Path | None) -> None:
    """UserError where a folder holds nothing that could decide a claim, or nothing of this backbone."""
    backbones = {r.backbone for r in [*load_results(results), *load_proofs(results)]}
    if not backbones:
        raise UserError(f"no records in {results}/: give the folder that run --results wrote to")
    if backbone not in backbones:
        raise unknown(f"backbone among the records in {results}/", backbone, backbones)
    if benchmarks is not None and not benchmarks.is_dir():
        raise UserError(f"no folder of timings at {benchmarks}: give the one that bench writes to")


def write_verdicts(verdicts: dict[int, ClaimVerdict], path: Path) -> None:
    """The scoreboard's file: tested claims as `claim`, `status`, `number` and the part of it that decided.

    Refused where a claim that has a verdict there would lose it.
    """
    rows = [
        {"claim": claim, "status": v.verdict, "number": v.number, "deciding": v.deciding or v.number}
        for claim, v in verdicts.items()
        if v.verdict != UNTESTED
    ]
    if lost := set(stored_verdicts(path.parent)) - {row["claim"] for row in rows}:
        claim = ", ".join(map(str, sorted(lost)))
        raise RunFailed(f"{path} is kept: these records test no claim {claim}; remove the file to replace it")
    with storing(path) as part:
        part.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def stored_verdicts(results: Path) -> dict[int, dict]:
    """What `write_verdicts` left in a folder, by claim; {} without it, DamagedFile for anything else."""
    path = Path(results) / "verdicts.json"
    if not path.exists():
        return {}
    try:
        rows = json.loads(read(path))
        return {int(row["claim"]): {k: row[k] for k in ("status", "number", "deciding")} for row in rows}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"holds no list of verdicts, {reason(error)}"
        raise DamagedFile(f"{path} {what}: restore it, or remove it and write it again") from error


def scoreboard(results: Path) -> list[dict]:
    """One row per claim: `claim`, `says`, `status` (or OPEN), the deciding `number`, `decided by`."""
    stored, rows = stored_verdicts(results), []
    for c in claims():
        v = stored.get(c["claim"], {"status": OPEN, "deciding": "–"})
        row = {"claim": c["claim"], "says": c["says"], "status": v["status"], "number": v["deciding"]}
        rows.append(row | {"decided by": c["decided_by"]})
    return rows


def predictions(evidence: StoredRuns) -> pd.DataFrame:
    """The registered predictions, each corpus with its result: as expected, or not."""
    rows = []
    for name, p in registered()["predictions"].items():
        for corpus in evidence.corpora:
            if result := _result(evidence, corpus, p):
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
