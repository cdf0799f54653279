"""How a claim is decided: rules that turn evidence into a finding (`ledger.py` says which claim has which).

    StoredRuns ── rule ─▶ Finding(verdict, number, by corpus)

A claim about the method in general must hold on every corpus it was tested on: `worst` says how verdicts combine.
Where the records a rule needs are absent the verdict is "not tested".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..names import TRANSFER
from .contrasts import StoredRuns
from .statistics import Contrast, verdict

CONFIRMED, EQUIVALENT, REFUTED = "confirmed", "equivalent", "refuted"
UNDECIDED, UNTESTED = "not decidable here", "not tested"
VERDICTS = (CONFIRMED, EQUIVALENT, REFUTED, UNDECIDED, UNTESTED)
# conditioning groups of 1, 2, … 32 rows of a cluster
SIZES = ("R6", "R4-g2", "R4-g4", "R4-g8", "R4-g16", "R4")
FEW = 2.0  # times the baseline's parameters that still count as few (claim 12)
AGREES = 0.1  # adjusted mutual information with the source above which clusters follow content (claim 5)
MINIMUM = 4  # rows of a cluster large enough for a mean (claim 18)


@dataclass(frozen=True)
class Finding:
    """What a rule found: the verdict, its numbers as text, and the verdict of each corpus.

    Where a rule asks models or machines, `corpora` holds the verdict of each of those. `deciding` is the part
    of `number` that a short table shows: of the first corpus with the final verdict.
    """

    verdict: str = UNTESTED
    number: str = "–"
    corpora: dict[str, str] = field(default_factory=dict)
    deciding: str = ""


Rule = Callable[[StoredRuns], Finding]


def worst(verdicts: Sequence[str]) -> str:
    """One verdict of several that must all hold: refuted before equivalent before undecided before confirmed."""
    if not verdicts or UNTESTED in verdicts:
        return UNTESTED
    return next((v for v in (REFUTED, EQUIVALENT, UNDECIDED) if v in verdicts), CONFIRMED)


def text(name: str, found: Contrast) -> str:
    """A contrast as the ledger prints it."""
    return f"{name} {found.text()}"


def _over(
    evidence: StoredRuns, corpora: Sequence[str] | None, judge: Callable[[str], tuple[str, ...]]
) -> Finding:
    """The finding of `judge(corpus) ─▶ (verdict, number[, deciding part])` over the corpora that have what it needs."""
    found = {c: judge(c) for c in evidence.corpora if corpora is None or c in corpora}
    found = {c: f for c, f in found.items() if f[0] != UNTESTED}
    if not found:
        return Finding()
    numbers = "; ".join(f"{corpus}: {f[1]}" for corpus, f in found.items())
    verdict_of_all = worst([f[0] for f in found.values()])
    deciding = next(f"{corpus}: {f[-1]}" for corpus, f in found.items() if f[0] == verdict_of_all)
    return Finding(verdict_of_all, numbers, {c: f[0] for c, f in found.items()}, deciding)


def lower(evidence: StoredRuns, *names: str, corpora=None, then: Callable | None = None) -> Finding:
    """All named registered contrasts hold; `then(evidence, corpus, verdict)` may still change a corpus's verdict."""

    def judge(corpus: str) -> tuple[str, ...]:
        family = evidence.family(corpus)
        if any(name not in family for name in names):
            return UNTESTED, ""
        of_all = worst([family[name].verdict for name in names])
        deciding = next(name for name in names if family[name].verdict == of_all)
        found = then(evidence, corpus, of_all) if then else of_all
        numbers = {name: text(name, family[name].found) for name in names}
        return found, ", ".join(numbers.values()), numbers[deciding]

    return _over(evidence, corpora, judge)


def unregistered(
    evidence: StoredRuns, make: Callable[[str], dict[str, Contrast | None]], corpora=None
) -> Finding:
    """Contrasts made for one claim alone: no family, so their own p decides."""

    def judge(corpus: str) -> tuple[str, ...]:
        found = make(corpus)
        if not found or any(c is None for c in found.values()):
            return UNTESTED, ""
        verdicts = {name: verdict(c, c.p) for name, c in found.items()}
        of_all = worst(list(verdicts.values()))
        deciding = next(name for name, v in verdicts.items() if v == of_all)
        return of_all, ", ".join(text(name, c) for name, c in found.items()), text(deciding, found[deciding])

    return _over(evidence, corpora, judge)


def monotone(evidence: StoredRuns, corpus: str, found: str) -> str:
    """Confirmed only if the mean loss falls with every larger conditioning group."""
    records = [evidence.records.get((corpus, name)) for name in SIZES]
    if not all(records):
        return UNTESTED
    means = [float(np.mean([r.metrics["test_nll"] for r in own])) for own in records]
    falls = all(a > b for a, b in zip(means, means[1:]))
    return found if falls or found != CONFIRMED else UNDECIDED


def slopes(evidence: StoredRuns) -> Finding:
    """What half foreign rows cost R4, less what they cost R6, on the same clean rows."""

    def make(corpus: str):
        terms = [
            (corpus, r, reading, w * sign)
            for r, w in (("R4", 1.0), ("R6", -1.0))
            for reading, sign in (("foreign-50", 1.0), ("test", -1.0))
        ]
        return {"cost of 50 % foreign rows, R4 − R6": evidence.with_foreign(corpus).sum_of(terms)}

    return unregistered(evidence, make)


def generalisation(evidence: StoredRuns) -> Finding:
    """R4's gap between test and seen documents below R1's and R2's, and its loss on other corpora below R1's."""

    def gap(r):
        return r.metrics["test_nll"] - r.metrics["seen_nll"] if "seen_nll" in r.metrics else None

    def make(corpus: str):
        out = {
            f"gap R4 − {other}": evidence.over_seeds(corpus, gap, {"R4": 1, other: -1})
            for other in ("R1", "R2")
        }
        others = sorted({s for _, s in evidence.losses if s.startswith(TRANSFER)})
        moved = {f"{s} R4 − R1": evidence.contrast(corpus, "R4", "R1", s) for s in others}
        return out | {name: c for name, c in moved.items() if c is not None}

    return unregistered(evidence, make)


def area(record) -> float | None:
    """Mean validation loss over the epochs of the settings; after an early stop the best counts on."""
    if not record.curve:
        return None
    epochs = record.settings["train"]["epochs"]
    points = [(p["epoch"], p["validation_nll"]) for p in record.curve]
    points.append((float(epochs), min(v for _, v in points)))
    at, values = zip(*points)
    return float(np.trapezoid(values, at) / epochs)


def convergence(evidence: StoredRuns) -> Finding:
    """The area under the validation curve, each regime at its best rate: R4 below R1 and below R3."""
    return unregistered(
        evidence,
        lambda corpus: {
            f"area R4 − {other}": evidence.over_seeds(corpus, area, {"R4": 1, other: -1})
            for other in ("R1", "R3")
        },
    )


def half_way_to_the_oracle(evidence: StoredRuns) -> Finding:
    """In the mixed stream R4 lies below the middle between R1 and the LoRA that is told the source."""

    def judge(corpus: str) -> tuple[str, str]:
        room = evidence.contrast(corpus, "R12-oracle", "R1")
        half = evidence.combination(corpus, {"R4": 1.0, "R1": -0.5, "R12-oracle": -0.5})
        if room is None or half is None:
            return UNTESTED, ""
        number = f"{text('oracle − R1', room)}, {text('R4 − middle', half)}"
        if room.high >= 0:
            return UNDECIDED, number + " (being told the source gains nothing here)"
        return (CONFIRMED if half.high < 0 else REFUTED if half.low > 0 else UNDECIDED), number

    return _over(evidence, ("mixed",), judge)


def fairness(evidence: StoredRuns) -> Finding:
    """A leak that pays, reversed: if reading whole rows lowers the loss, an evaluation that does so is not fair."""
    turned = {CONFIRMED: REFUTED, REFUTED: CONFIRMED}
    found = lower(evidence, "R9<R4")
    by_corpus = {corpus: turned.get(v, v) for corpus, v in found.corpora.items()}
    return replace(found, verdict=worst(list(by_corpus.values())), corpora=by_corpus)


def _clusterings(evidence: StoredRuns, corpus: str) -> list[dict]:
    """The clusterings' qualities by seed, from R4's records."""
    records = evidence.records.get((corpus, "R4"), [])
    return [r.data["clusters"] for r in records if r.data.get("clusters")]


def _limited(values: Sequence[float], above: Callable[[float], bool]) -> str:
    """Confirmed where every value is above a limit, refuted where none is."""
    return CONFIRMED if all(map(above, values)) else UNDECIDED if any(map(above, values)) else REFUTED


def content(evidence: StoredRuns) -> Finding:
    """Clusters of prefixes agree with the documents' sources beyond chance in every seed, where sources are known."""

    def judge(corpus: str) -> tuple[str, ...]:
        own = _clusterings(evidence, corpus)
        values = [c["adjusted_mutual_information"] for c in own]
        values = [v for v in values if v is not None]
        if not values:
            return UNTESTED, ""
        length = np.mean([c["length_variance_explained"] for c in own])
        agreement = f"adjusted mutual information {min(values):.2f} … {max(values):.2f}"
        number = f"{agreement}, length variance explained {length:.2f} (n = {len(values)})"
        return _limited(values, lambda v: v > AGREES), number, agreement

    return _over(evidence, None, judge)


def sizes(evidence: StoredRuns) -> Finding:
    """The smallest cluster that k-means with K = N // 32 leaves, before small ones are merged."""

    def judge(corpus: str) -> tuple[str, str]:
        own = [c["sizes"] for c in _clusterings(evidence, corpus)]
        if not own:
            return UNTESTED, ""
        least, median = [s["min"] for s in own], np.median([s["median"] for s in own])
        number = f"smallest {min(least)} … {max(least)} rows, median {median:.0f}"
        return _limited(least, lambda v: v >= MINIMUM), number

    return _over(evidence, None, judge)


def parameters(evidence: StoredRuns) -> Finding:
    """Trainable parameters of R4 as a multiple of R1's."""
    own = [evidence.records.get((c, r)) for c in evidence.corpora[:1] for r in ("R4", "R1")]
    if not own or not all(own):
        return Finding()
    hyper, lora = (records[0].trainable_parameters for records in own)
    number = f"{hyper:,} against {lora:,}: {hyper / lora:.1f} times"
    return Finding(CONFIRMED if hyper / lora <= FEW else REFUTED, number)


def any_model(evidence: StoredRuns) -> Finding:
    """R4 below R1 on more than one backbone; one alone cannot decide it."""
    names = sorted({r.backbone for r in evidence.all_records})
    found = {n: lower(StoredRuns(evidence.folder, n, evidence.draws), "R4<R1") for n in names}
    found = {n: f for n, f in found.items() if f.verdict != UNTESTED}
    if not found:
        return Finding()
    number = "; ".join(f"{n}: {f.verdict}" for n, f in found.items())
    verdicts = {n: f.verdict for n, f in found.items()}
    return Finding(worst(list(verdicts.values())) if len(found) > 1 else UNDECIDED, number, verdicts)


def nothing(evidence: StoredRuns) -> Finding:
    """No experiment of the study decides this claim."""
    return Finding()


def holds(*names: str, **options) -> Rule:
    """The rule that all named registered contrasts are confirmed."""
    return lambda evidence: lower(evidence, *names, **options)
