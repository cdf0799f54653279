"""How a claim is decided: rules that turn stored runs into a verdict (`ledger.py` lists which has which).

    StoredRuns ── rule ─▶ ClaimVerdict(verdict, number, by corpus)

A claim about the method in general must hold on every corpus it was tested on: `worst` combines verdicts.
Where the records a rule needs are absent the verdict is "not tested".
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps

import numpy as np

from ..records import TRANSFER
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
class ClaimVerdict:
    """A claim's verdict, its numbers as text, and the verdict of each corpus (or model, or machine).

    `deciding` is the part of `number` that a short table shows.
    """

    verdict: str = UNTESTED
    number: str = "–"
    corpora: dict[str, str] = field(default_factory=dict)
    deciding: str = ""


Rule = Callable[[StoredRuns], ClaimVerdict]
Part = tuple[str, ...]  # verdict, numbers as text, and the deciding part of these if it is not all of them
NO_DATA: Part = (UNTESTED, "")


def worst(verdicts: Collection[str]) -> str:
    """One verdict of several that must all hold: refuted, equivalent, undecided, then confirmed."""
    if not verdicts or UNTESTED in verdicts:
        return UNTESTED
    return next((v for v in (REFUTED, EQUIVALENT, UNDECIDED) if v in verdicts), CONFIRMED)


def combined(parts: dict[str, Part], decide: Collection[str] | None = None, short=True) -> ClaimVerdict:
    """One verdict from those of corpora, models or machines; untested ones are left out.

    decide: the names that may decide (all by default); without any of them the claim is not decidable here.
    short: whether a short table shows the deciding part alone.
    """
    parts = {name: part for name, part in parts.items() if part[0] != UNTESTED}
    if not parts:
        return ClaimVerdict()
    may = {name for name in parts if decide is None or name in decide}
    verdicts = {name: part[0] if name in may else UNDECIDED for name, part in parts.items()}
    final = worst([verdicts[name] for name in parts if name in may] or [UNDECIDED])
    number = "; ".join(f"{name}: {part[1]}" for name, part in parts.items())
    deciding = next(f"{name}: {part[-1]}" for name, part in parts.items() if verdicts[name] == final)
    return ClaimVerdict(final, number, verdicts, deciding if short else "")


def weighed(contrasts: dict[str, Contrast], verdicts: dict[str, str]) -> Part:
    """The verdict of contrasts that must all hold, all as text, and the first with that verdict."""
    final = worst(list(verdicts.values()))
    texts = {name: f"{name} {c.text()}" for name, c in contrasts.items()}
    return final, ", ".join(texts.values()), next(texts[name] for name in texts if verdicts[name] == final)


def on_each_corpus(part: Callable[[StoredRuns, str], Part]) -> Rule:
    """Decorator: the verdict on one corpus becomes a rule over all of them."""

    @wraps(part)
    def rule(evidence: StoredRuns) -> ClaimVerdict:
        return combined({corpus: part(evidence, corpus) for corpus in evidence.corpora})

    return rule


def unregistered(make: Callable[[StoredRuns, str], dict[str, Contrast | None]]) -> Rule:
    """Decorator: contrasts made for one claim become a rule; without a family their own p decides."""

    @on_each_corpus
    @wraps(make)
    def part(evidence: StoredRuns, corpus: str) -> Part:
        contrasts = make(evidence, corpus)
        if None in contrasts.values():
            return NO_DATA
        return weighed(contrasts, {name: verdict(c, c.p) for name, c in contrasts.items()})

    return part


def registered_part(evidence: StoredRuns, corpus: str, *names: str) -> Part:
    """The verdict on a corpus of registered contrasts that must all hold."""
    family = evidence.family(corpus)
    if any(name not in family for name in names):
        return NO_DATA
    contrasts = {name: family[name].contrast for name in names}
    return weighed(contrasts, {name: family[name].verdict for name in names})


def holds(*names: str, corpora: Collection[str] | None = None) -> Rule:
    """The rule that all named registered contrasts are confirmed, on the named corpora or on all."""

    @on_each_corpus
    def part(evidence: StoredRuns, corpus: str) -> Part:
        asked = corpora is None or corpus in corpora
        return registered_part(evidence, corpus, *names) if asked else NO_DATA

    return part


@on_each_corpus
def monotone(evidence: StoredRuns, corpus: str) -> Part:
    """R4 < R6, confirmed only if the mean loss falls with every larger conditioning group."""
    decided, *texts = registered_part(evidence, corpus, "R4<R6")
    records = [evidence.runs(corpus, name) for name in SIZES]
    if not all(records):
        return NO_DATA
    means = [float(np.mean([r.metrics["test_nll"] for r in of_size])) for of_size in records]
    falls = all(a > b for a, b in zip(means, means[1:]))
    return decided if falls or decided != CONFIRMED else UNDECIDED, *texts


@unregistered
def slopes(evidence: StoredRuns, corpus: str) -> dict:
    """What half foreign rows cost R4, minus what they cost R6, on the same clean rows."""
    half, clean = "foreign-50", "test"
    signs = {("R4", half): 1.0, ("R4", clean): -1.0, ("R6", half): -1.0, ("R6", clean): 1.0}
    cost = evidence.with_foreign(corpus).sum_of([(corpus, *what, sign) for what, sign in signs.items()])
    return {"cost of 50 % foreign rows, R4 − R6": cost}


@unregistered
def generalisation(evidence: StoredRuns, corpus: str) -> dict:
    """R4's gap of test and seen documents below R1's and R2's, its loss on other corpora below R1's."""

    def gap(r):
        return r.metrics["test_nll"] - r.metrics["seen_nll"] if "seen_nll" in r.metrics else None

    gaps = {f"gap R4 − {other}": evidence.over_seeds(corpus, gap, "R4", other) for other in ("R1", "R2")}
    readings = sorted({reading for _, reading in evidence.losses if reading.startswith(TRANSFER)})
    moved = {f"{reading} R4 − R1": evidence.contrast(corpus, "R4", "R1", reading) for reading in readings}
    return gaps | {name: c for name, c in moved.items() if c is not None}


def area(record) -> float | None:
    """Mean validation loss over the epochs of the settings; after an early stop the best counts on."""
    if not record.curve:
        return None
    epochs = record.settings["train"]["epochs"]
    points = [(p["epoch"], p["validation_nll"]) for p in record.curve]
    points.append((float(epochs), min(v for _, v in points)))
    at, values = zip(*points)
    return float(np.trapezoid(values, at) / epochs)


@unregistered
def convergence(evidence: StoredRuns, corpus: str) -> dict:
    """The area under the validation curve, each regime at its best rate: R4 below R1 and below R3."""
    return {f"area R4 − {name}": evidence.over_seeds(corpus, area, "R4", name) for name in ("R1", "R3")}


@on_each_corpus
def half_way_to_the_oracle(evidence: StoredRuns, corpus: str) -> Part:
    """In the mixed stream R4 lies below the middle between R1 and the LoRA of the row's true source."""
    room = evidence.contrast(corpus, "R12-oracle", "R1")
    weights = {"R4": 1.0, "R1": -0.5, "R12-oracle": -0.5}
    half = evidence.sum_of([(corpus, regime, "test", w) for regime, w in weights.items()])
    if corpus != "mixed" or room is None or half is None:
        return NO_DATA
    number = f"oracle − R1 {room.text()}, R4 − middle {half.text()}"
    if room.high >= 0:
        return UNDECIDED, number + " (being told the source gains nothing here)"
    return (CONFIRMED if half.high < 0 else REFUTED if half.low > 0 else UNDECIDED), number


def fairness(evidence: StoredRuns) -> ClaimVerdict:
    """A leak that pays, reversed: an evaluation that reads whole rows, and gains by it, is not fair."""
    turned = {CONFIRMED: REFUTED, REFUTED: CONFIRMED}
    leak = holds("R9<R4")(evidence)
    by_corpus = {corpus: turned.get(v, v) for corpus, v in leak.corpora.items()}
    return replace(leak, verdict=worst(list(by_corpus.values())), corpora=by_corpus)


def _clusterings(evidence: StoredRuns, corpus: str) -> list[dict]:
    return [c for r in evidence.runs(corpus, "R4") if (c := r.data.get("clusters"))]


def _limited(above: Sequence[bool]) -> str:
    return CONFIRMED if all(above) else UNDECIDED if any(above) else REFUTED


@on_each_corpus
def content(evidence: StoredRuns, corpus: str) -> Part:
    """Clusters of prefixes agree with the documents' sources beyond chance, in every seed."""
    qualities = _clusterings(evidence, corpus)
    values = [v for c in qualities if (v := c["adjusted_mutual_information"]) is not None]
    if not values:
        return NO_DATA
    length = np.mean([c["length_variance_explained"] for c in qualities])
    agreement = f"adjusted mutual information {min(values):.2f} … {max(values):.2f}"
    number = f"{agreement}, length variance explained {length:.2f} (n = {len(values)})"
    return _limited([v > AGREES for v in values]), number, agreement


@on_each_corpus
def sizes(evidence: StoredRuns, corpus: str) -> Part:
    """The smallest cluster that k-means with K = N // 32 leaves, before small ones are merged."""
    of_seeds = [c["sizes"] for c in _clusterings(evidence, corpus)]
    if not of_seeds:
        return NO_DATA
    least, median = [s["min"] for s in of_seeds], np.median([s["median"] for s in of_seeds])
    number = f"smallest {min(least)} … {max(least)} rows, median {median:.0f}"
    return _limited([v >= MINIMUM for v in least]), number


def parameters(evidence: StoredRuns) -> ClaimVerdict:
    """Trainable parameters of R4 as a multiple of R1's."""
    records = [evidence.runs(c, r) for c in evidence.corpora[:1] for r in ("R4", "R1")]
    if not records or not all(records):
        return ClaimVerdict()
    hyper, lora = (of_regime[0].trainable_parameters for of_regime in records)
    number = f"{hyper:,} against {lora:,}: {hyper / lora:.1f} times"
    return ClaimVerdict(CONFIRMED if hyper / lora <= FEW else REFUTED, number)


def any_model(evidence: StoredRuns) -> ClaimVerdict:
    """R4 below R1 on more than one backbone; one alone cannot decide it."""
    parts = {}
    for name in sorted({r.backbone for r in evidence.all_records}):
        found = holds("R4<R1")(StoredRuns(evidence.folder, name, evidence.draws)).verdict
        parts[name] = found, found
    both = combined(parts, short=False)
    return replace(both, verdict=UNDECIDED) if len(both.corpora) == 1 else both


def nothing(evidence: StoredRuns) -> ClaimVerdict:
    """No experiment of the study decides this claim."""
    return ClaimVerdict()
