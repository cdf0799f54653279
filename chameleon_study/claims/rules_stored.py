"""Claims that other stored results decide: proofs, re-derived tables, and the timings of every machine.

benchmarks/results/<machine>.json ─ overhead (whole batches), B12 (generation) ─▶ verdict per machine
"""

import numpy as np

from ..records import Record, load_records
from ..released.proofs.store import load_proofs
from ..released.tables import ReleasedTable, is_released, released_table
from ..stored import content_of
from .contrasts import StoredRuns
from .paper import paper, published
from .rules import Cell, Cells, worst
from .statistics import CONTRADICTED, SUPPORTED, UNDECIDED, interval_text, mean_and_span

TABLES = "table*-released*.jsonl"  # experiments that re-derive the published tables
TRAINED = ("R1", "R4")  # the published rows that something was trained for
# by table: tokens of a padded row, the released procedure's name; the two scripts initialise differently
RELEASED = {1: (256, "as_released"), 2: (512, "as_released + initialisation=alpaca")}
SPREAD = 2.0  # standard deviations over seeds around the mean that a published number may lie in
MODEST = 1.10  # times the plain batch's seconds that still count as modest
ENOUGH, MACHINES = 200, 3  # batches of a machine that a 95th percentile is taken over, and machines
SHOWN = {"shown", "met", "missed"}  # rows whose gates hold: a missed goal of ours is still a measurement
Table = dict[str, dict[int, Record]]  # regime to its records by seed


def limits(evidence: StoredRuns, proofs: list[dict]) -> Cells:
    """A proof's number, or its ratio to another, beyond the limit of "supported" or that of "contradicted"."""
    cells, stored = {}, load_proofs(evidence.folder)
    for limit in proofs:
        for proof in stored:
            own = proof.proof == limit["proof"] and proof.backbone in ("", evidence.backbone)
            if not own or limit["number"] not in proof.numbers:
                continue
            below = limit.get("over", 1.0)
            value = proof.numbers[limit["number"]] / proof.numbers.get(below, below)
            sign = 1.0 if limit["supported"] > limit["contradicted"] else -1.0
            good, bad = (sign * (value - limit[word]) for word in ("supported", "contradicted"))
            verdict = SUPPORTED if good >= 0 else CONTRADICTED if bad <= 0 else UNDECIDED
            place = limit["place"].format(corpus=proof.corpus, length=proof.key[3])
            cells[place] = Cell(verdict, limit["text"].format(value=value))
    return cells


def direction(evidence: StoredRuns) -> Cells:
    """R4 below R1 under the released loss: the paired t interval over seeds."""
    cells = {}
    for name, (_, _, table) in _tables(evidence).items():
        if len(losses := _paired(table)):
            (r1, r4), n = losses.T, len(losses)
            mean, half = mean_and_span(r4 - r1)
            low, high = mean - half, mean + half
            verdict = UNDECIDED if n < 2 or low <= 0 <= high else SUPPORTED if high < 0 else CONTRADICTED
            number = f"R4 − R1 {interval_text(mean, low, high, '+.4f')}, {mean / r1.mean():+.1%} (n = {n})"
            cells[name] = Cell(verdict, number)
    return cells


def published_gain(evidence: StoredRuns) -> Cells:
    """How much lower R4 is than R1, with a t interval over seeds that holds the published share, or not."""
    cells = {}
    for name, (number, decides, table) in _tables(evidence).items():
        if len(losses := _paired(table)):
            mean, half = mean_and_span(1 - losses[:, 1] / losses[:, 0])
            loss = [published(number, regime, "validation_loss") for regime in TRAINED]
            gain, n = 1 - loss[1] / loss[0], len(losses)
            inside = SUPPORTED if half <= gain / 2 else UNDECIDED  # a wide interval holds anything
            verdict = inside if abs(gain - mean) <= half else CONTRADICTED
            text = f"{mean:.1%} ± {half:.1%} (published {gain:.2%}, n = {n})"
            cells[name] = Cell(verdict if decides and n > 1 else UNDECIDED, text)
    return cells


def published_again(evidence: StoredRuns) -> Cells:
    """The re-derived losses of both trained rows have the published ones in their spread, mean ± 2 sd over seeds.

    Only the paper's backbone, data and lengths under the released procedure decide. Both rows are needed to
    support a table, and one published loss outside contradicts it.
    """
    cells = {}
    for name, (number, decides, table) in _tables(evidence).items():
        rows = [_row(number, regime, [*table.get(regime, {}).values()]) for regime in TRAINED]
        verdict = worst([verdict for verdict, _ in rows]) if decides else UNDECIDED
        cells[name] = Cell(verdict, ", ".join(text for _, text in rows))
    return cells


def _tables(evidence: StoredRuns) -> dict[str, tuple[int, bool, Table]]:
    """Name of a re-derived table to its number, whether it is the paper's own setting, and its records."""
    groups: dict[ReleasedTable, Table] = {}
    for path in sorted(evidence.folder.glob(TABLES)):
        for r in load_records(path):
            if r.status == "done" and is_released(r) and r.regime in TRAINED:
                groups.setdefault(released_table(r), {}).setdefault(r.regime, {})[r.seed] = r
    model, corpora = paper()["source"]["backbone"], {t["table"]: t["corpus"] for t in paper()["tables"]}
    # the tables as the scripts make them before controls and other lengths
    order = sorted(groups, key=lambda key: ((key.length, key.protocol) != RELEASED[key.table], *key))
    own = {n: (model, corpora[n], *RELEASED[n]) for n in RELEASED}
    out = {}
    for key in order:
        n, *words, rows, experiment = key
        alone = sum(other[:-1] == key[:-1] for other in order) == 1  # else its experiment names it too
        name = ", ".join([*map(str, words), f"{rows:,} rows", *([] if alone else [experiment])])
        out[name] = (n, tuple(words) == own[n], groups[key])
    return out


def _paired(table: Table) -> np.ndarray:
    """The reported losses of R1 and R4 (S, 2) under the seeds that both have."""
    seeds = sorted(set.intersection(*(set(table.get(regime, {})) for regime in TRAINED)))
    return np.array([[table[r][s].metrics["reported_nll"] for r in TRAINED] for s in seeds])


def _row(table: int, regime: str, records: list[Record]) -> tuple[str, str]:
    """Whether the published loss is inside the spread, and the row as the ledger prints it."""
    losses = np.array([r.metrics["reported_nll"] for r in records])
    loss = published(table, regime, "validation_loss")
    if not len(losses):
        return UNDECIDED, f"{regime} absent (published {loss})"
    mean, verdict, sd = losses.mean(), UNDECIDED, ""
    if len(losses) > 1:  # one seed has no spread
        spread = SPREAD * losses.std(ddof=1)
        verdict, sd = SUPPORTED if abs(loss - mean) <= spread else CONTRADICTED, f" ± {spread:.4f}"
    return verdict, f"{regime} {mean:.4f}{sd} (published {loss}, n = {len(losses)})"


def machines(evidence: StoredRuns) -> Cells:
    """An adapted batch takes at most 10 % more than the plain one, at p50 and at p95: paired ratios of a machine.

    Both intervals must lie below 1.10 for "supported", one above contradicts. Fewer than 200 batches decide
    nothing, nor do fewer than 3 machines that have them. Waiting for a full batch is no work: it is printed.
    """
    cells, enough = {}, set()
    for path in sorted(evidence.benchmarks.glob("*.json")):
        with content_of(path, "timings that can be read", "take it away and run bench again") as stored:
            rows = {name: row for name, row in stored["rows"].items() if row.get("status") in SHOWN}
            entry = rows.get("overhead")
            if not entry or entry.get("conditions", {}).get("quick"):
                continue
            spans = [(entry["ratios"][q]["low"], entry["ratios"][q]["high"]) for q in ("p50", "p95")]
            below, above = (high <= MODEST for _, high in spans), (low > MODEST for low, _ in spans)
            verdict = CONTRADICTED if any(above) else SUPPORTED if all(below) else UNDECIDED
            cells[path.stem] = Cell(verdict, _text(entry, rows))
            enough |= {path.stem} if entry["batches"] >= ENOUGH else set()
    for name in cells.keys() - (enough if len(enough) >= MACHINES else set()):
        cells[name] = cells[name]._replace(verdict=UNDECIDED)
    return cells


def _text(entry: dict, rows: dict) -> str:
    ratios = entry["ratios"].items()
    spans = [f"{interval_text(r['ratio'], r['low'], r['high'], '.3f')} at {q}" for q, r in ratios]
    decides = f"{' and '.join(spans)} of the plain batch's time (n = {entry['batches']})"
    fitting = entry["fitting clusters"]["seconds a batch"] / entry["whole"]["plain"]["p50"]
    beside = [f"k-means fitted anew {fitting:+.1%}"]
    if "over the plain model" in rows.get("B13", {}).get("workload", {}):
        work = rows["B13"]["workload"]
        against = f"{work['over the plain model']:+.1%} against transformers' own generate"
        beside.append(f"{work['clusters']} clusters in one batch {against}")
    waiting = entry["waiting"]
    for way in waiting["batches"]:
        times = " / ".join(_seconds(way[q]) for q in ("p50", "p95", "p99"))
        beside.append(f"waiting for {way['size']} texts {way['batches']} {times} s")
    beside[-1] += f" (p50 / p95 / p99 at {_seconds(waiting['arrivals a second'])} texts a second)"
    return f"{decides}; beside: {', '.join(beside)}"


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
