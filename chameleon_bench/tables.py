"""What was timed, as tables: every number of the chapters on speed comes from here.

benchmarks/results/<machine>.json ─ load ─▶ {machine: file} ─ goals_frame, tried_frame, … ─▶ data frames
"""

import json
from pathlib import Path

import pandas as pd

from chameleon_study.claims.statistics import interval_text

from .report import EXTRAS, ON_REQUEST, ROWS


def load(folder: Path) -> dict[str, dict]:
    """The results files of a folder by machine, quick runs left out."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))}
    return {name: kept for name, kept in found.items() if not name.endswith("-quick")}


def with_goals(found: dict[str, dict]) -> dict[str, dict]:
    """The machines that measured rows with goals; a file of several GPUs may hold none."""
    return {name: kept for name, kept in found.items() if any(row in kept["rows"] for row in ROWS)}


def entry(found: dict[str, dict], name: str, prefer: str = "") -> tuple[str, dict] | None:
    """(machine, entry) of a row, from the machine whose name holds `prefer` where there is one; None if nowhere."""
    holding = [
        (machine, kept["rows"][name]) for machine, kept in found.items() if usable(kept["rows"].get(name))
    ]
    return next((pair for pair in holding if prefer and prefer in pair[0]), holding[0] if holding else None)


def usable(row: dict | None) -> bool:
    """Whether a row was measured."""
    return row is not None and row["status"] not in ("failed", "not available")


def missing(kept: dict) -> list[str]:
    """The rows that a machine's file does not hold, but for those about several GPUs."""
    return [name for name in (*ROWS, *EXTRAS) if name not in ON_REQUEST and name not in kept["rows"]]


def not_yet(kept: dict) -> str:
    """The missing rows in words, empty where there are none."""
    return f"not measured on this machine yet: {', '.join(missing(kept))}" if missing(kept) else ""


def summary_frame(found: dict[str, dict]) -> pd.DataFrame:
    """How many comparisons met and missed their goals, a column a machine; last, the rows it has not measured."""
    names = {
        "met": "goal met",
        "missed": "goal missed",
        "gate failed": "not correct",
        "shown": "shown, without a goal",
    }
    out = {}
    for machine, kept in found.items():
        kinds = goals_frame(kept)["verdict"].map(names).fillna("could not be run here").value_counts()
        out[machine] = kinds.reindex([*names.values(), "could not be run here"], fill_value=0)
        out[machine]["rows not measured yet"] = len(missing(kept))
    return pd.DataFrame(out)


def goals_frame(kept: dict) -> pd.DataFrame:
    """One line a comparison of a machine: what, peer, times better (with its spread), goal, met."""
    lines = []
    for name in ROWS:
        row = kept["rows"].get(name)
        if row is None:
            continue
        if not row["comparisons"]:
            lines.append({"row": name, "what": row["what"], "verdict": row["status"]})
        for c in row["comparisons"]:
            verdict = {True: "met", False: "missed"}.get(c["met"])
            if row["status"] == "gate failed":
                verdict = "gate failed"
            lines.append(
                {
                    "row": name,
                    "what": row["what"],
                    "against": c["peer"],
                    "quantity": c["quantity"],
                    "times better": _times(c),
                    "goal": c["goal"],
                    "verdict": verdict or c["absent"] or "shown",
                }
            )
    return pd.DataFrame(lines)


def _times(c: dict) -> str:
    """The ratio and its spread: worst against best repetition of both, and the other way round."""
    if not c["theirs"]:
        return "–"
    ours, theirs = c["ours"], c["theirs"]
    return interval_text(c["ratio"], theirs["low"] / ours["high"], theirs["high"] / ours["low"], ".3g")


def missed_frame(found: dict[str, dict]) -> pd.DataFrame:
    """Every missed goal of every machine with its reason, and every gate that failed."""
    lines = [
        {"machine": machine, "row": name, "what": row["what"], "reason": row["reason"] or row["unavailable"]}
        for machine, kept in found.items()
        for name, row in kept["rows"].items()
        if name in ROWS and row["status"] in ("missed", "gate failed", "failed")
    ]
    return pd.DataFrame(lines, columns=["machine", "row", "what", "reason"])


def tried_frame(kept: dict) -> pd.DataFrame:
    """Ideas with their gain on one machine."""
    lines = [
        {"idea": t["idea"], "gain": _gain(t["gain"]), "kept": "yes" if t["kept"] else "no", "why": t["why"]}
        for t in kept["rows"]["tried"]["tried"]
    ]
    return pd.DataFrame(lines)


def _gain(gain: float) -> str:
    return f"{gain:.0f} ×" if gain >= 10 else f"{gain:.2g} ×"


def many_texts_frame(found: dict[str, dict]) -> pd.DataFrame:
    """What `adapt` took for B16's texts, a line a machine: minutes, rows a second, gigabytes at most, and the limit."""
    lines = []
    for kept in found.values():
        row = kept["rows"].get("B16")
        if usable(row):
            work, (memory,) = row["workload"], row["comparisons"]
            lines.append(
                {
                    "machine": kept["machine"]["device"],
                    "threads": work["threads"],
                    "rows": work["rows"],
                    "scored tokens": work["scored tokens"],
                    "minutes": work["s"] / 60,
                    "processor minutes": work["processor s"] / 60,
                    "rows/s": work["rows/s"],
                    "peak, one row (GB)": work["peak bytes, one row"] / 1e9,
                    "peak (GB)": memory["ours"]["median"] / 1e9,
                    "limit (GB)": memory["theirs"]["median"] / 1e9,
                    "verdict": row["status"],
                }
            )
    return pd.DataFrame(lines)


def growth_frame(row: dict) -> pd.DataFrame:
    """Slopes beside the slopes expected."""
    curves = pd.DataFrame(row["curves"])
    sizes = {"from": curves["sizes"].str[0], "to": curves["sizes"].str[-1]}
    frame = curves[["stage", "against"]].assign(**sizes, slope=curves["slope"].round(2) + 0.0)
    return frame.assign(expected=curves["expected"])
