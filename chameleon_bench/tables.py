"""What was timed, as tables: every number of the chapters on speed comes from here.

benchmarks/results/<machine>.json ─ load ─▶ {machine: file} ─ goals_frame, tried_frame, … ─▶ data frames
"""

import json
from pathlib import Path

import pandas as pd

from chameleon_lite.errors import RunFailed
from chameleon_study.claims.statistics import interval_text

from .measure import ROWS, USUAL

SUMMARY = {"met": "goal met", "missed": "goal missed", "gate failed": "not correct"}
SUMMARY |= {"shown": "shown, without a goal"}
ELSEWHERE = "could not be run here"


def load(folder: Path) -> dict[str, dict]:
    """The results files of a folder by machine, quick runs left out."""
    paths = sorted(Path(folder).glob("*.json"))
    return {path.stem: stored_file(path) for path in paths if not path.stem.endswith("-quick")}


def stored_file(path: Path) -> dict:
    """The content of a results file, {machine, rows}; RunFailed, with the path, for anything else."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if all("status" in row for row in stored["rows"].values()) and "device" in stored["machine"]:
            return stored
        reason = "its rows have no status"
    except (ValueError, RecursionError):
        reason = "it is no JSON, or cut short"
    except (TypeError, KeyError, AttributeError):
        reason = "it has no machine and rows"
    what = f"{path} is no file of `chameleon-lite bench`: {reason}"
    raise RunFailed(f"{what}; move it away or name another") from None


def with_goals(results: dict[str, dict]) -> dict[str, dict]:
    """The machines that measured rows with goals; a file of several GPUs may hold none."""
    return {name: stored for name, stored in results.items() if stored["rows"].keys() & ROWS.keys()}


def entry(results: dict[str, dict], name: str, prefer: str = "") -> tuple[str, dict] | None:
    """(machine, entry) of a row, if possible from a machine whose name contains `prefer`; None if nowhere."""
    pairs = [(machine, stored["rows"].get(name)) for machine, stored in results.items()]
    pairs = sorted((p for p in pairs if usable(p[1])), key=lambda pair: prefer not in pair[0])
    return pairs[0] if pairs else None


def usable(row: dict | None) -> bool:
    """Whether a row was measured."""
    return row is not None and row["status"] not in ("failed", "not available")


def missing(stored: dict) -> list[str]:
    """The rows that a machine's file does not hold, but for those about several GPUs."""
    return [name for name in USUAL if name not in stored["rows"]]


def commits(stored: dict) -> pd.DataFrame:
    """The rows of a machine by the commit of their code, + for one with later changes, and the highest load."""
    made = pd.DataFrame({name: row["conditions"] for name, row in stored["rows"].items()}).T
    together = {"rows": ", ".join, "load average": "max"}  # jobs that ran or waited for a core
    return made.rename_axis("rows").reset_index().groupby("commit", sort=False).agg(together)


def not_yet(stored: dict) -> str:
    """The missing rows in words, empty where there are none."""
    return f"not measured on this machine yet: {', '.join(missing(stored))}" if missing(stored) else ""


def summary_frame(results: dict[str, dict]) -> pd.DataFrame:
    """How many comparisons met and missed their goals, a column per machine; last, rows not measured."""
    out = {}
    for machine, stored in results.items():
        counts = goals_frame(stored)["verdict"].map(SUMMARY).fillna(ELSEWHERE).value_counts()
        out[machine] = counts.reindex([*SUMMARY.values(), ELSEWHERE], fill_value=0)
        out[machine]["rows not measured yet"] = len(missing(stored))
    return pd.DataFrame(out)


def goals_frame(stored: dict) -> pd.DataFrame:
    """One line per comparison of a machine: what (once), peer, times better (with its spread), goal, met."""
    columns, lines = ["row", "what", "against", "quantity", "times better", "goal", "verdict"], []
    for name, row in ((name, stored["rows"][name]) for name in ROWS if name in stored["rows"]):
        for i, c in enumerate(row["comparisons"] or [None]):
            line = {"row": name, "what": "" if i else row["what"], "verdict": row["status"]}
            if c:
                line |= {"against": c["peer"], "quantity": c["quantity"], "goal": c["goal"]}
                line["times better"] = _times(c)
                if row["status"] != "gate failed":
                    line["verdict"] = {True: "met", False: "missed"}.get(c["met"]) or c["absent"] or "shown"
            lines.append(line)
    return pd.DataFrame(lines, columns=columns)


def _times(c: dict) -> str:
    """The ratio and its spread: worst against best repetition of both, and the other way round."""
    if not c["theirs"]:
        return "–"
    ours, theirs = c["ours"], c["theirs"]
    return interval_text(c["ratio"], theirs["low"] / ours["high"], theirs["high"] / ours["low"], ".3g")


def missed_frame(results: dict[str, dict]) -> pd.DataFrame:
    """Every missed goal of every machine with its reason, and every gate that failed."""
    lines = [
        {"machine": machine, "row": name, "what": row["what"], "reason": row["reason"] or row["unavailable"]}
        for machine, stored in results.items()
        for name, row in stored["rows"].items()
        if name in ROWS and row["status"] in ("missed", "gate failed", "failed")
    ]
    return pd.DataFrame(lines, columns=["machine", "row", "what", "reason"])


def tried_frame(stored: dict) -> pd.DataFrame:
    """Ideas with their gain on one machine."""
    frame = pd.DataFrame(stored["rows"]["tried"]["tried"])[["idea", "gain", "kept", "why"]]
    gain = frame["gain"].map(lambda gain: f"{gain:.0f} ×" if gain >= 10 else f"{gain:.2g} ×")
    return frame.assign(gain=gain, kept=frame["kept"].map({True: "yes", False: "no"}))


def many_texts_frame(results: dict[str, dict]) -> pd.DataFrame:
    """What `adapt` took for B16's texts, per machine: minutes, rows per second, peak and limit in GB."""
    lines = []
    for stored in results.values():
        if usable(row := stored["rows"].get("B16")):
            work = row["workload"]
            memory = next(c for c in row["comparisons"] if c["quantity"] == "memory")
            line = {
                "machine": stored["machine"]["device"],
                **{name: work[name] for name in ("threads", "rows", "scored tokens")},
                "minutes": work["s"] / 60,
                "processor minutes": work["processor s"] / 60,
                "rows/s": work["rows/s"],
                "peak, one row (GB)": work["peak bytes, one row"] / 1e9,
                "peak (GB)": memory["ours"]["median"] / 1e9,
                "limit (GB)": memory["theirs"]["median"] / 1e9,
                "verdict": row["status"],
            }
            lines.append(line)
    return pd.DataFrame(lines)


def growth_frame(row: dict) -> pd.DataFrame:
    """Slopes beside the slopes expected."""
    curves = pd.DataFrame(row["curves"])
    frame = curves.assign(**{"from": curves["sizes"].str[0], "to": curves["sizes"].str[-1]})
    frame["slope"] = frame["slope"].round(2) + 0.0  # no minus before a zero
    return frame[["stage", "against", "from", "to", "slope", "expected"]]
