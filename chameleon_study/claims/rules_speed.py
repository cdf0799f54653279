"""Claim 11, that adapting costs little: a rule over the stored timings of every machine.

    benchmarks/results/<machine>.json ─ overhead (whole batches, intervals) · B12 (generation) ─▶ verdict per machine

The files are read as data: nothing here runs a benchmark, and no timing is made by the study.
"""

import json

from .contrasts import StoredRuns
from .rules import CONFIRMED, REFUTED, UNDECIDED, ClaimVerdict, combined, worst
from .statistics import interval_text

MODEST = 1.10  # times the plain batch's seconds that still count as modest
ENOUGH = 200  # batches that a 95th percentile is taken over
BESIDE = {"shown", "met", "missed"}  # of rows whose gates hold: a missed goal of ours is still a measurement


def modest_overhead(evidence: StoredRuns) -> ClaimVerdict:
    """An adapted batch takes at most 10 % more than the plain one, at p50 and at p95, and so does generating.

    Each interval must lie below 1.10 for "confirmed", or above for "refuted". A machine with fewer than 200 batches
    shows its numbers and decides nothing. Waiting for a full batch is no work: it is printed as well, never counted.
    """
    parts, decide = {}, []
    for path in sorted(evidence.benchmarks.glob("*.json")):
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        rows = {name: row for name, row in rows.items() if row.get("status") in BESIDE}
        entry = rows.get("overhead")
        if not entry or entry.get("conditions", {}).get("quick"):
            continue
        spans = _spans(entry, rows.get("B12"))
        verdicts = [CONFIRMED if b <= MODEST else REFUTED if a > MODEST else UNDECIDED for a, b in spans]
        parts[path.stem] = worst(verdicts), _text(entry, rows)
        decide += [path.stem] * (entry["batches"] >= ENOUGH)
    return combined(parts, decide, short=False)


def _spans(entry: dict, generating: dict | None) -> list[tuple[float, float]]:
    """Low and high of adapted over plain seconds: batches at p50 and p95, and generation where it was timed."""
    spans = [(entry["ratios"][q]["low"], entry["ratios"][q]["high"]) for q in ("p50", "p95")]
    for c in generating["comparisons"] if generating else []:
        if c["theirs"]:
            spans.append((c["ours"]["low"] / c["theirs"]["high"], c["ours"]["high"] / c["theirs"]["low"]))
    return spans


def _text(entry: dict, rows: dict) -> str:
    ratios = entry["ratios"].items()
    spans = [f"{interval_text(r['ratio'], r['low'], r['high'], '.3f')} at {q}" for q, r in ratios]
    decides = [f"{' and '.join(spans)} of the plain batch's time (n = {entry['batches']})"]
    for c in rows.get("B12", {"comparisons": []})["comparisons"]:
        if c["theirs"]:
            low, high = _spans(entry, {"comparisons": [c]})[-1]
            decides.append(f"generating {interval_text(1 / c['ratio'], low, high, '.3f')}")
    fitting = entry["fitting clusters"]["seconds a batch"] / entry["whole"]["plain"]["p50"]
    beside = [f"k-means fitted anew {fitting:+.1%}"]
    if "over the plain model" in rows.get("B13", {}).get("workload", {}):
        work = rows["B13"]["workload"]
        beside.append(f"{work['clusters']} clusters in one batch {work['over the plain model']:+.1%}")
    waiting = entry["waiting"]
    for way in waiting["batches"]:
        times = " / ".join(_seconds(way[q]) for q in ("p50", "p95", "p99"))
        beside.append(f"waiting for {way['size']} texts {way['batches']} {times} s")
    beside[-1] += f" (p50 / p95 / p99 at {_seconds(waiting['arrivals a second'])} texts a second)"
    return f"{', '.join(decides)}; beside: {', '.join(beside)}"


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
