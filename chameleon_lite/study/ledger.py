"""The claims, one by one: a verdict is what a rule makes of the records, never something typed.

paper.json (claims) + RULES + Evidence(results, benchmarks) ─▶ one row a claim ─▶ table, CSV, results/verdicts.json
"""

import json
from pathlib import Path

import pandas as pd

from .. import cache
from .evidence import Evidence, registered
from .paper import claims
from .rules import (
    CONFIRMED,
    UNTESTED,
    Finding,
    Rule,
    any_model,
    content,
    convergence,
    fairness,
    generalisation,
    half_way_to_the_oracle,
    holds,
    monotone,
    nothing,
    parameters,
    sizes,
    slopes,
)
from .rules_generation import coherent_outputs
from .rules_released import published_again, without_a_model
from .rules_speed import modest_overhead

INSTRUCTED = ("alpaca", "docstrings-instructions")  # corpora whose condition is an instruction

# claim ▶ (what must hold for "confirmed", in words; the rule)
RULES: dict[int, tuple[str, Rule]] = {
    1: ("R4 < R1 and R4 < R2", holds("R4<R1", "R4<R2")),
    2: ("under the released loss, a predictor without a model does worse than LoRA", without_a_model),
    3: ("R4 < R3, R4 < R7, R4 < R7b and R4 < R8", holds("R4<R3", "R4<R7", "R4<R7b", "R4<R8")),
    4: ("R4 < R5 and R4 < R18", holds("R4<R5", "R4<R18")),
    5: ("clusters agree with the sources in every seed", content),
    6: ("R4 < R6, and the loss falls with every larger group", holds("R4<R6", then=monotone)),
    7: ("half foreign rows cost R4 less than R6", slopes),
    8: ("smaller test − seen gap than R1 and R2, and R4 < R1 on other corpora", generalisation),
    9: ("smaller area under the validation curve than R1 and R3", convergence),
    10: ("R4 < R11, a bank of as many bytes", holds("R4<R11")),
    11: (
        "a batch, and generating, takes at most 10 % more than without adapting, at p50 and p95; waiting is beside",
        modest_overhead,
    ),
    12: ("at most twice R1's trainable parameters", parameters),
    13: ("R4 < R1 on at least two backbones", any_model),
    14: ("mixed stream: R4 beyond half way from R1 to the oracle", half_way_to_the_oracle),
    15: ("rows in order of arrival, nothing waited for: R4-stream < R1", holds("R4-stream<R1")),
    16: ("ROUGE-L of continued prompts: R4 above R1 and above R3, by more than 0.01", coherent_outputs),
    17: ("R4 < R11, R4 < R12 and R4 < R20", holds("R4<R11", "R4<R12", "R4<R20")),
    18: ("no cluster of fewer than 4 rows in any seed", sizes),
    19: ("reading whole rows (R9) does not lower the loss", fairness),
    20: ("conditioning on the instruction: R4 < R3", holds("R4<R3", corpora=INSTRUCTED)),
    21: ("two kinds of text are no range of tasks: out of scope", nothing),
    22: (
        "the paper's data on its backbone: both trained rows' published losses within mean ± 2 sd over seeds",
        published_again,
    ),
}


def ledger(
    results: Path, backbone: str = "smollm2", draws: int = 10_000, benchmarks: Path | None = None
) -> dict[int, Finding]:
    """The finding of every claim from a results folder and its timings; without records all are "not tested"."""
    evidence = Evidence(results, backbone, draws, benchmarks)
    return {c["claim"]: RULES[c["claim"]][1](evidence) for c in claims()}


def ledger_frame(found: dict[int, Finding]) -> pd.DataFrame:
    """One row a claim: what it says, the rule, the verdict, the deciding number and the corpora's verdicts."""
    return pd.DataFrame(
        [
            {
                "claim": c["claim"],
                "says": c["says"],
                "confirmed if": RULES[c["claim"]][0],
                "verdict": found[c["claim"]].verdict,
                "number": found[c["claim"]].number,
                "by corpus": ", ".join(f"{name}: {v}" for name, v in found[c["claim"]].corpora.items())
                or "–",
            }
            for c in claims()
        ]
    )


def write_verdicts(found: dict[int, Finding], path: Path) -> None:
    """The scoreboard's file: tested claims as `claim`, `status`, `number` and the part of it that decided."""
    rows = [
        {"claim": n, "status": f.verdict, "number": f.number, "deciding": f.deciding or f.number}
        for n, f in found.items()
        if f.verdict != UNTESTED
    ]
    with cache.atomic(path) as part:
        part.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def predictions(evidence: Evidence) -> pd.DataFrame:
    """The registered predictions, each corpus with what came of it: as expected, or not."""
    rows = []
    for name, p in registered()["predictions"].items():
        for corpus in evidence.corpora:
            came = _came(evidence, corpus, p)
            if came is not None:
                rows.append({"prediction": name, "says": p["says"], "corpus": corpus, **came})
    return pd.DataFrame(rows)


def _came(evidence: Evidence, corpus: str, p: dict) -> dict | None:
    if "contrast" in p:
        judged = evidence.family(corpus).get(p["contrast"])
        if judged is None:
            return None
        number = f"{p['contrast']} {judged.found.difference:+.4f}"
        return {"found": f"{number}: {judged.verdict}", "as expected": judged.verdict in p["expected"]}
    if "share_of" not in p:
        return None
    worse, control, best = p["share_of"]
    gain, all_of_it = (evidence.contrast(corpus, worse, other) for other in (control, best))
    if gain is None or all_of_it is None:
        return None
    if all_of_it.low <= 0:  # no advantage that could be shared out
        return {
            "found": f"{worse} − {best} {all_of_it.difference:+.4f}: no advantage to explain",
            "as expected": None,
        }
    share = gain.difference / all_of_it.difference
    return {"found": f"{share:.0%} of the advantage", "as expected": share > p["above"]}


__all__ = ["CONFIRMED", "RULES", "ledger", "ledger_frame", "predictions", "write_verdicts"]
