"""The claims, one by one: a verdict is what a rule makes of the records, never something typed.

paper.json (claims) + RULES + StoredRuns(results, benchmarks) ─▶ one row per claim ─▶ table, CSV, results/verdicts.json
results/verdicts.json ─▶ scoreboard, the first page of the book
"""

import json
import re
from pathlib import Path

import pandas as pd

from chameleon_lite import files
from chameleon_lite.errors import DamagedFile

from ..regimes import REGIMES
from . import rules
from .contrasts import StoredRuns, registered
from .paper import claims
from .rules import UNTESTED, ClaimVerdict, Rule, holds
from .rules_generation import coherent_outputs
from .rules_released import published_again, without_a_model
from .rules_speed import modest_overhead

OPEN = "not measured yet"
INSTRUCTED = ("alpaca", "docstrings-instructions")  # corpora whose condition is an instruction

# claim ▶ (what must hold for "confirmed", in words; the rule)
RULES: dict[int, tuple[str, Rule]] = {
    1: ("R4 < R1 and R4 < R2", holds("R4<R1", "R4<R2")),
    2: ("under the released loss, a predictor without a model does worse than LoRA", without_a_model),
    3: ("R4 < R3, R4 < R7, R4 < R7b and R4 < R8", holds("R4<R3", "R4<R7", "R4<R7b", "R4<R8")),
    4: ("R4 < R5 and R4 < R18", holds("R4<R5", "R4<R18")),
    5: ("clusters agree with the sources in every seed", rules.content),
    6: ("R4 < R6, and the loss falls with every larger group", holds("R4<R6", then=rules.monotone)),
    7: ("half foreign rows cost R4 less than R6", rules.slopes),
    8: ("smaller test − seen gap than R1 and R2, and R4 < R1 on other corpora", rules.generalisation),
    9: ("smaller area under the validation curve than R1 and R3", rules.convergence),
    10: ("R4 < R11, a bank of as many bytes", holds("R4<R11")),
    11: (
        "a batch, and generating, takes at most 10 % more than without adapting, at p50 and p95; waiting is beside",
        modest_overhead,
    ),
    12: ("at most twice R1's trainable parameters", rules.parameters),
    13: ("R4 < R1 on at least two backbones", rules.any_model),
    14: ("mixed stream: R4 beyond half way from R1 to the oracle", rules.half_way_to_the_oracle),
    15: ("rows in order of arrival, nothing waited for: R4-stream < R1", holds("R4-stream<R1")),
    16: ("ROUGE-L of continued prompts: R4 above R1 and above R3, by more than 0.01", coherent_outputs),
    17: ("R4 < R11, R4 < R12 and R4 < R20", holds("R4<R11", "R4<R12", "R4<R20")),
    18: ("no cluster of fewer than 4 rows in any seed", rules.sizes),
    19: ("reading whole rows (R9) does not lower the loss", rules.fairness),
    20: ("conditioning on the instruction: R4 < R3", holds("R4<R3", corpora=INSTRUCTED)),
    21: ("two kinds of text are no range of tasks: out of scope", rules.nothing),
    22: (
        "the paper's data on its backbone: both trained rows' published losses within mean ± 2 sd over seeds",
        published_again,
    ),
}


def ledger(
    results: Path, backbone: str = "smollm2", draws: int = 10_000, benchmarks: Path | None = None
) -> dict[int, ClaimVerdict]:
    """The verdict of every claim from a results folder and its timings; without records all are "not tested"."""
    evidence = StoredRuns(results, backbone, draws, benchmarks)
    return {c["claim"]: RULES[c["claim"]][1](evidence) for c in claims()}


def ledger_frame(verdicts: dict[int, ClaimVerdict]) -> pd.DataFrame:
    """One row per claim: what it says, the rule, the verdict, the deciding number and the corpora's verdicts."""
    rows = []
    for c in claims():
        v = verdicts[c["claim"]]
        corpora = ", ".join(f"{name}: {verdict}" for name, verdict in v.corpora.items())
        rows.append((c["claim"], c["says"], RULES[c["claim"]][0], v.verdict, v.number, corpora or "–"))
    columns = ["claim", "says", "confirmed if", "verdict", "number", "by corpus"]
    return pd.DataFrame(rows, columns=columns)


def write_verdicts(verdicts: dict[int, ClaimVerdict], path: Path) -> None:
    """The scoreboard's file: tested claims as `claim`, `status`, `number` and the part of it that decided."""
    tested = {claim: v for claim, v in verdicts.items() if v.verdict != UNTESTED}
    rows = [
        {"claim": claim, "status": v.verdict, "number": v.number, "deciding": v.deciding or v.number}
        for claim, v in tested.items()
    ]
    with files.atomic(path) as part:
        part.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def stored_verdicts(results: Path) -> dict[int, dict]:
    """What `write_verdicts` left in a results folder, by claim number; {} where there is nothing.

    Raises DamagedFile for any other content: a scoreboard must not quietly show less than was measured.
    """
    path = Path(results) / "verdicts.json"
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {int(row["claim"]): {k: row[k] for k in ("status", "number", "deciding")} for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path} holds no list of verdicts ({error}): write it again") from error


def scoreboard(results: Path) -> list[dict]:
    """One row per claim: `claim`, `says`, `status`, `number`, `decided by`; OPEN and a dash where nothing is stored.

    `number` is the deciding one, nats per token with its 95 % interval where it is a difference; the ledger has all.
    """
    stored, unknown = stored_verdicts(results), {"status": OPEN, "deciding": "–"}
    return [
        {"claim": c["claim"], "says": c["says"]}
        | {"status": v["status"], "number": v["deciding"], "decided by": c["decided_by"]}
        for c in claims()
        for v in [stored.get(c["claim"], unknown)]
    ]


def regimes_named(board: list[dict]) -> list[dict]:
    """One row per regime that the board's `number` or `decided by` names, in the study's order: `regime`, `is`.

    A name that only stands for its variants (R19 for R19-R1 and R19-R2) brings those.
    """
    texts = (row[key] for row in board for key in ("number", "decided by"))
    words = {word for text in texts for word in re.findall(r"[\w-]+", text)}
    words |= {name for name in REGIMES if name.split("-")[0] in words - set(REGIMES)}
    return [{"regime": name, "is": regime.title} for name, regime in REGIMES.items() if name in words]


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
    """What the records show of a prediction, and whether it is as expected (None where nothing could be expected)."""
    if "contrast" in p:
        member = evidence.family(corpus).get(p["contrast"])
        if member is None:
            return None
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
