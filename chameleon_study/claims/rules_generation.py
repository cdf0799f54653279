"""Claim 16's rule: what R4 writes agrees better with the references than what R1 and R3 write.

    results/coherence-* ─▶ Generations.family ─▶ Finding

"More coherent outputs across a cluster" names no measure. Agreement with the reference decides, the one thing a text
cannot gain by being short of words; variety, of a document and of its cluster batch, and repetition stand beside.
"""

from .continuations import TITLES, Generations
from .contrasts import StoredRuns
from .rules import Finding, text, worst

BESIDE = ("distinct_2", "repeated", "batch_distinct_2")  # R4's less R1's and R3's, without a verdict


def coherent_outputs(evidence: StoredRuns) -> Finding:
    """R4's ROUGE-L F1 above R1's and above R3's, both by more than 0.01 with the whole 95 % interval, Holm-adjusted.

    Equivalent, refuted and not decidable as in every contrast (`statistics.verdict`), with 0.01 of F1 as the margin;
    both contrasts must hold, on every corpus with continuations. Without such records "not tested".
    """
    generations = Generations(evidence.folder, evidence.backbone, evidence.draws)
    found, numbers, deciding = {}, [], {}
    for corpus in generations.corpora:
        family = generations.family(corpus)
        if not family:
            continue
        verdict = found[corpus] = worst([j.verdict for j in family.values()])
        texts = {name: text(f"ROUGE-L {name}", j.found) for name, j in family.items()}
        deciding.setdefault(
            verdict, f"{corpus}: {next(texts[n] for n in family if family[n].verdict == verdict)}"
        )
        numbers.append(
            f"{corpus}: {', '.join(texts.values())}; beside: {_beside(generations, corpus, family)}"
        )
    if not found:
        return Finding()
    of_all = worst(list(found.values()))
    return Finding(of_all, "; ".join(numbers), found, deciding[of_all])


def _beside(generations: Generations, corpus: str, family) -> str:
    """Differences of the measures that decide nothing, named as the table names them."""
    parts = []
    for column in BESIDE:
        for name in family:
            found = generations.contrast(corpus, *name.split(" − "), column=column)
            parts.append(text(f"{TITLES[column]} {name}", found))
    return ", ".join(parts)
