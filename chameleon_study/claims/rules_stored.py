"""Claims that other stored results decide: proofs, re-derived tables, and the timings of every machine.

benchmarks/results/<machine>.json ─ overhead (whole batches), B12 (generation) ─▶ verdict per machine
"""

import json

import numpy as np

from chameleon_lite.errors import DamagedFile

from ..records import Record, load_records
from ..released.proofs.store import load_proofs
from ..released.tables import is_released, protocol_label, table_of
from ..stored import read, reason
from .contrasts import StoredRuns
from .paper import paper, published
from .rules import CONFIRMED, REFUTED, UNDECIDED, ClaimVerdict, combined, worst
from .statistics import interval_text

TABLES = "table*-released*.jsonl"  # experiments that re-derive the published tables
TRAINED = ("R1", "R4")  # the published rows that something was trained for
# by table: tokens of a padded row, the released procedure's name; the two scripts initialise differently
RELEASED = {1: (256, "as_released"), 2: (512, "as_released + initialisation=alpaca")}
SPREAD = 2.0  # standard deviations over seeds around the mean that a published number may lie in
MODEST = 1.10  # times the plain batch's seconds that still count as modest
ENOUGH = 200  # batches that a 95th percentile is taken over
BESIDE = {"shown", "met", "missed"}  # of rows whose gates hold: a missed goal of ours is still a measurement


def without_a_model(evidence: StoredRuns) -> ClaimVerdict:
    """Claim 2: refuted where a predictor without a language model is as good as the LoRA row."""
    parts = {}
    for proof in load_proofs(evidence.folder):
        if proof.proof == "model_free" and proof.backbone == evidence.backbone:
            free, lora, hyper = (proof.numbers[f"{x}_loss"] for x in ("model_free", "LoRA", "hyper_network"))
            number = f"without a model {free:.4f}, LoRA {lora:.4f}, hyper-network {hyper:.4f}"
            verdict = REFUTED if free <= lora else UNDECIDED
            parts[f"{proof.corpus} ({proof.key[3]} tokens)"] = verdict, number
    return combined(parts, short=False)


def published_again(evidence: StoredRuns) -> ClaimVerdict:
    """Claim 22: the re-derived losses of both trained rows have the published ones in their spread.

    The spread is mean ± 2 standard deviations over seeds, so two seeds at least. Only the paper's backbone,
    data and lengths under the released procedure decide; every other record is printed. Both rows of a table
    are needed to confirm it, and one published loss outside refutes.
    """
    groups: dict[tuple, dict[str, list[Record]]] = {}
    for path in sorted(evidence.folder.glob(TABLES)):
        for r in load_records(path):
            if r.status == "done" and is_released(r) and r.regime in TRAINED:
                key = (r.backbone, r.corpus, r.settings["tokens"]["max_length"], protocol_label(r))
                groups.setdefault((table_of(r), key), {}).setdefault(r.regime, []).append(r)
    parts, decide = {}, []
    corpora = {t["table"]: t["corpus"] for t in paper()["tables"]}
    # the tables as the scripts make them before controls and other lengths
    for table, key in sorted(groups, key=lambda group: (group[1][2:] != RELEASED[group[0]], *group)):
        rows = [_row(table, regime, groups[table, key].get(regime, [])) for regime in TRAINED]
        name = ", ".join(map(str, key))
        parts[name] = worst([verdict for verdict, _ in rows]), ", ".join(text for _, text in rows)
        decide += [name] * (key == (paper()["source"]["backbone"], corpora[table], *RELEASED[table]))
    return combined(parts, decide)


def _row(table: int, regime: str, records: list[Record]) -> tuple[str, str]:
    """Whether the published loss is inside the spread, and the row as the ledger prints it."""
    losses = np.array([r.metrics["reported_nll"] for r in records])
    loss = published(table, regime, "validation_loss")
    if not len(losses):
        return UNDECIDED, f"{regime} absent (published {loss})"
    mean, verdict, sd = losses.mean(), UNDECIDED, ""
    if len(losses) > 1:  # one seed has no spread
        spread = SPREAD * losses.std(ddof=1)
        verdict, sd = CONFIRMED if abs(loss - mean) <= spread else REFUTED, f" ± {spread:.4f}"
    return verdict, f"{regime} {mean:.4f}{sd} (published {loss}, n = {len(losses)})"


def modest_overhead(evidence: StoredRuns) -> ClaimVerdict:
    """An adapted batch takes at most 10 % more than the plain one, at p50 and at p95, and so does generating.

    Each interval must lie below 1.10 for "confirmed", or above for "refuted". A machine with fewer than 200
    batches decides nothing. Waiting for a full batch is no work: it is printed as well, never counted.
    """
    parts, decide = {}, []
    for path in sorted(evidence.benchmarks.glob("*.json")):
        try:
            rows = json.loads(read(path))["rows"]
            rows = {name: row for name, row in rows.items() if row.get("status") in BESIDE}
            entry = rows.get("overhead")
            if not entry or entry.get("conditions", {}).get("quick"):
                continue
            spans = _spans(entry, rows.get("B12"))
            verdicts = [CONFIRMED if b <= MODEST else REFUTED if a > MODEST else UNDECIDED for a, b in spans]
            parts[path.stem] = worst(verdicts), _text(entry, rows)
            decide += [path.stem] * (entry["batches"] >= ENOUGH)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            what = f"holds no timings that can be read, {reason(error)}"
            raise DamagedFile(f"{path} {what}: restore it, or take it away and run bench again") from error
    return combined(parts, decide, short=False)


def _spans(entry: dict, generating: dict | None) -> list[tuple[float, float]]:
    """Low and high of adapted over plain seconds: batches at p50 and p95, and generation."""
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
