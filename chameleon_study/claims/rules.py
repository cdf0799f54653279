"""How a part of a claim is decided: rules that turn stored runs into verdicts, one for each corpus.

    rules.yaml: parts ── rule(evidence, arguments) ─▶ {corpus: Cell(verdict, number, detectable)} ─▶ headline

A rule never makes one verdict of several corpora: the headline counts them. What a rule has no records for
is left out, and a part without any cell is "not tested".
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from ..released.proofs.store import load_proofs
from .contrasts import FamilyMember, StoredRuns, judge
from .statistics import CONTRADICTED, EQUIVALENT, MARGIN, SUPPORTED, UNDECIDED, UNTESTED, interval_text

# conditioning groups of 1, 2, … 32 rows of a cluster
SIZES = ("R6", "R4-g2", "R4-g4", "R4-g8", "R4-g16", "R4")
PLANTED = "planted"  # how experiments on texts whose gain is known are named
GAINED = 0.8  # of the known gain, from which a head can read its condition
CHANCE = 0.05  # p of the permutation test below which clusters are more homogeneous than chance
FEW, MANY = 0.01, 0.05  # shares of the rows (claim 18)
# measures in which clusters made again must agree with a run's to be taken for them, and how closely: another
# processor's rounding may move a few rows
SAME = ("clusters", "empty", "inertia", "adjusted_mutual_information", "length_variance_explained")
CLOSE = 1e-2


class Cell(NamedTuple):
    """A verdict on one corpus (table, machine, model), its numbers as text, the smallest detectable gain in nats."""

    verdict: str
    number: str
    detectable: float | None = None


Cells = dict[str, Cell]  # by corpus, or whatever the verdicts of a part are counted over


def worst(verdicts: Collection[str]) -> str:
    """One verdict of contrasts that must all hold: contradicted, undecided, equivalent, then supported.

    So "equivalent" says that no contrast is open, and at least one shows no gain.
    """
    return next((v for v in (CONTRADICTED, UNDECIDED, EQUIVALENT, SUPPORTED) if v in verdicts), UNTESTED)


def conjunction(members: dict[str, FamilyMember]) -> Cell:
    """The cell of contrasts that must all hold; each with its own word where they differ."""
    differ = len({m.verdict for m in members.values()}) > 1
    words = {name: f" ({m.verdict})" if differ else "" for name, m in members.items()}
    number = ", ".join(f"{name} {m.contrast.text()}{words[name]}" for name, m in members.items())
    detectable = max(m.contrast.detectable() for m in members.values())
    return Cell(worst([m.verdict for m in members.values()]), number, detectable)


def members_of(evidence: StoredRuns, corpus: str, names: Sequence[str]) -> dict[str, FamilyMember]:
    """The named registered contrasts on a corpus, {} unless all are there."""
    family = evidence.family(corpus)
    found = [{k: m for k, m in family.items() if k == n or k.startswith(f"{n} on ")} for n in names]
    return {k: m for part in found for k, m in part.items()} if all(found) else {}


def contrasts(evidence: StoredRuns, names: Sequence[str], only: Collection[str] | None = None) -> Cells:
    """All named registered contrasts must hold on a corpus; on those of `only`, or on all."""
    corpora = [c for c in evidence.corpora if only is None or c in only]
    found = {corpus: members_of(evidence, corpus, names) for corpus in corpora}
    return {corpus: conjunction(members) for corpus, members in found.items() if members}


def any_size(evidence: StoredRuns) -> Cells:
    """A group of some size is below the row's own condition, Holm-adjusted over sizes; else R4 < R6 decides."""
    cells = contrasts(evidence, ["R4<R6"])
    for corpus, cell in cells.items():
        judged = judge({f"{n}<R6": c for n in SIZES[1:] if (c := evidence.contrast(corpus, n, "R6"))})
        won = any(member.verdict == SUPPORTED for member in judged.values())
        verdict = SUPPORTED if won else cell.verdict
        cells[corpus] = cell._replace(verdict=verdict, number=conjunction(judged).number)
    return cells


def robustness(evidence: StoredRuns) -> Cells:
    """Half foreign rows cost the clean rows of R4 nothing; undecided where it ignores its condition.

    A row's own condition (R6) and LoRA (R19-R1) read no other row, so their cost is zero by construction. R4
    ignores its condition where even another cluster's (R7) costs less than the margin.
    """
    cells = {}
    for corpus in evidence.corpora:
        cost, wrong = evidence.foreign_cost(corpus, "R4"), evidence.contrast(corpus, "R7", "R4")
        if cost and wrong:
            word = UNDECIDED if wrong.high90 < MARGIN else judge({"cost": cost})["cost"].verdict
            number = f"cost {cost.text()}, of another cluster's vector {wrong.text()}"
            cells[corpus] = Cell(word, number, cost.detectable())
    return cells


def assay(evidence: StoredRuns, signal: str) -> Cells:
    """On planted text R4-best takes 80 % of the known gain and is below a constant input; without, equivalent to it.

    The share alone decides nothing: where hidden states give the group away, heads without a condition reach it.
    """
    planted, cells = evidence.beside(PLANTED), {}
    for corpus in sorted({signal, f"{signal}-null"} & set(planted.corpora)):
        runs, loss = planted.runs(corpus, "R4-best"), planted.sum_of([(corpus, "R4-best", "test", 1.0)])
        member = planted.family(corpus).get("R4-best<R3-best")
        reads = f"R4-best<R3-best {member.contrast.text()}" if member else ""
        if corpus != signal and member:
            known = {EQUIVALENT: SUPPORTED, SUPPORTED: CONTRADICTED}
            cells[corpus] = Cell(known.get(member.verdict, UNDECIDED), reads, member.contrast.detectable())
        elif corpus == signal and loss and "marginal_nll" in (notes := runs[0].data["notes"]):
            top, bottom = (notes[f"{kind}_nll"]["test"] for kind in ("marginal", "conditional"))
            value, high, low = ((top - x) / (top - bottom) for x in (loss.difference, loss.low, loss.high))
            verdict = SUPPORTED if low >= GAINED else CONTRADICTED if high < GAINED else UNDECIDED
            verdict = worst([verdict, *([member.verdict] if member else [])])
            number = f"{interval_text(value, low, high, '.1%')} of the known gain"
            for control in (c for c in ("R3-best", "R2") if planted.runs(corpus, c)):
                nats = np.mean([r.metrics["test_nll"] for r in planted.runs(corpus, control)])
                number += f", {control} without a condition {(top - nats) / (top - bottom):.1%}"
            cells[corpus] = Cell(verdict, f"{number}, {reads}" if reads else number)
    return cells


def half_way(evidence: StoredRuns, regime: str, base: str) -> Cells:
    """In the mixed stream a regime lies below the middle of its base and the LoRA of the row's true source."""
    room = evidence.contrast("mixed", "R12-oracle", base)
    weights = {regime: 1.0, base: -0.5, "R12-oracle": -0.5}
    half = evidence.sum_of([("mixed", name, "test", w) for name, w in weights.items()])
    if room is None or half is None:
        return {}
    verdict = SUPPORTED if half.high < 0 else CONTRADICTED if half.low > 0 else UNDECIDED
    number = f"R12-oracle − {base} {room.text()}, {regime} − middle {half.text()}"
    return {"mixed": Cell(UNDECIDED if room.high >= 0 else verdict, number)}


def _clusterings(evidence: StoredRuns, key: str) -> dict[str, list[dict]]:
    """Corpus to the quality of its batching clusterings, one for each seed, where all have `key`.

    Records that came before a measure take it from the proof that made the same clusters again (`study_clusters`).
    """
    found: dict[str, list[dict]] = {}
    again = {p.corpus: p.numbers for p in load_proofs(evidence.folder) if p.proof == "study_clusters"}
    for corpus in evidence.corpora:
        for record in evidence.runs(corpus, "R4"):
            quality, place = record.data.get("clusters") or {}, f"seed{record.seed}_"
            numbers = again.get(corpus, {}).items()
            made = {name.removeprefix(place): x for name, x in numbers if name.startswith(place)}
            same = [name for name in SAME if name in quality and quality[name] is not None]
            if made and all(math.isclose(quality[n], made.get(n, math.nan), rel_tol=CLOSE) for n in same):
                quality = made | quality
            found.setdefault(corpus, []).append(quality)
    return {c: of for c, of in found.items() if all(q.get(key) is not None for q in of)}


def _in_every_seed(holds: Sequence[bool], fails: Sequence[bool]) -> str:
    return SUPPORTED if all(holds) else CONTRADICTED if all(fails) else UNDECIDED


def content(evidence: StoredRuns) -> Cells:
    """Clusters of prefixes are more homogeneous in their documents' sources than chance, in every seed."""
    cells = {}
    for corpus, of in _clusterings(evidence, "homogeneity").items():
        p = [q["homogeneity_p"] for q in of]
        value, chance, most = (
            np.mean([q[f"homogeneity{kind}"] for q in of]) for kind in ("", "_by_chance", "_attainable")
        )
        number = f"homogeneity {value:.3f}, by chance {chance:.3f}, attainable {most:.3f}, p ≤ {max(p):.3f}"
        verdict = _in_every_seed([x < CHANCE for x in p], [x >= CHANCE for x in p])
        cells[corpus] = Cell(verdict, f"{number} (n = {len(of)})")
    return cells


def small_clusters(evidence: StoredRuns, below: int) -> Cells:
    """Few rows lie in clusters of fewer than `below` rows, before small clusters are merged."""
    cells = {}
    for corpus, of in _clusterings(evidence, f"share_below_{below}").items():
        shares = [q[f"share_below_{below}"] for q in of]
        median = np.median([q["sizes"]["median"] for q in of])
        number = f"{min(shares):.1%} … {max(shares):.1%} of the rows, median cluster {median:.0f}"
        verdict = _in_every_seed([s <= FEW for s in shares], [s > MANY for s in shares])
        cells[corpus] = Cell(verdict, f"{number} (n = {len(of)})")
    return cells


def backbones(evidence: StoredRuns) -> Cells:
    """R4 below LoRA in equal order on all corpora of a backbone; one backbone alone decides nothing."""
    cells = {}
    for name in sorted({r.backbone for r in evidence.all_records}):
        own = evidence if name == evidence.backbone else evidence.beside(evidence.experiments, name)
        if found := contrasts(own, ["R4<R19-R1"]):
            verdicts = [cell.verdict for cell in found.values()]
            cells[name] = Cell(worst(verdicts), headline(verdicts, "corpora"))
    return cells if len(cells) > 1 else {n: Cell(UNDECIDED, cell.number) for n, cell in cells.items()}


def untested(evidence: StoredRuns) -> Cells:
    """No experiment of the study decides this part."""
    return {}


def headline(verdicts: Sequence[str], over: str) -> str:
    """The verdicts as a count, the most frequent first; the bare word where there is one verdict alone."""
    counts = sorted({v: list(verdicts).count(v) for v in verdicts}.items(), key=lambda item: -item[1])
    if len(verdicts) < 2:
        return verdicts[0] if verdicts else UNTESTED
    (first, most), *others = counts
    share = f"{most} of {len(verdicts)}"
    if most == len(verdicts):
        share = "both" if most == 2 else f"all {most}"
    return ", ".join([f"{first} on {share} {over}", *(f"{n} {verdict}" for verdict, n in others)])
