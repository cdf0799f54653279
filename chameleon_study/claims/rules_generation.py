"""Claim 16's rule: what R4 writes agrees better with the references than what R1 and R3 write.

    results/coherence-* ─▶ Generations.family ─▶ ClaimVerdict

"More coherent outputs across a cluster" names no measure. Agreement with the reference decides, the one thing a text
cannot gain by being short of words; variety, of a document and of its cluster batch, and repetition are printed too.
"""

from .continuations import TITLES, Generations
from .contrasts import StoredRuns
from .rules import NO_DATA, ClaimVerdict, Part, combined, weighed

BESIDE = ("distinct_2", "repeated", "batch_distinct_2")  # R4's minus R1's and R3's, without a verdict


def coherent_outputs(evidence: StoredRuns) -> ClaimVerdict:
    """R4's ROUGE-L F1 above R1's and above R3's, both by more than 0.01 with the whole 95 % interval, Holm-adjusted.

    Equivalent, refuted and not decidable as in every contrast (`statistics.verdict`), with 0.01 of F1 as the margin;
    both contrasts must hold, on every corpus with continuations. Without such records "not tested".
    """
    generations = Generations(evidence.folder, evidence.backbone, evidence.draws)
    return combined({corpus: _part(generations, corpus) for corpus in generations.corpora})


def _part(generations: Generations, corpus: str) -> Part:
    """A corpus's verdict with its numbers, then those of the measures that decide nothing."""
    family = generations.family(corpus)
    if not family:
        return NO_DATA
    named = {f"ROUGE-L {name}": member for name, member in family.items()}
    verdicts = {name: m.verdict for name, m in named.items()}
    verdict, number, deciding = weighed({name: m.contrast for name, m in named.items()}, verdicts)
    others = []
    for column, name in ((column, name) for column in BESIDE for name in family):
        contrast = generations.contrast(corpus, *name.split(" − "), column=column)
        others.append(f"{TITLES[column]} {name} {contrast.text()}")
    return verdict, f"{number}; beside: {', '.join(others)}", deciding
