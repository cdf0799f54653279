"""Corpora with a known signal: what a condition can gain is planted, so a head that takes none of it has failed.

    group g ─▶ prompt: words of g's theme ─▶ scored: markers drawn independently from p(marker | g)

    planted            eight markers, I(marker; group) = 1 nat each: p(· | g) differs between the groups
    planted-few        as many markers as a head of the paper has ranks, half a nat each, and fewer of them scored
    planted-null, planted-few-null   the same prompts, all groups' markers from the mean p: nothing to gain

Few markers, for a head of rank R can set the output rows of R words to anything: what it then misses is not for want
of rank. With eight, it cannot undo all that the frozen model says about them, and a condition may help it with that
where it tells nothing about the markers. Few are scored, because those drawn before give the group away as well.

No predictor has a lower expected loss than p(· | g), and without the group none a lower one than the mean. The
notes hold the losses of both on the very documents of each split, in nats per marker; a marker is one token.
"""

from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import yaml

from chameleon_lite.app.corpus import Corpus, overlaps
from chameleon_lite.text import Document

PROMPT = (16, 24)  # words, from the first to before the second
NULL = "-null"  # how the name of a corpus without the signal ends
_WORDS = yaml.safe_load((files(__package__) / "planted.yaml").read_text(encoding="utf-8"))
THEMES = {group: text.split() for group, text in _WORDS["themes"].items()}  # G, the words of each


@dataclass(frozen=True)
class Design:
    """What is scored: M markers, `information` nats each about the group, from scored[0] to below scored[1]."""

    markers: tuple[str, ...]
    information: float
    scored: tuple[int, int]
    documents: dict[str, int]  # by split, equally many of each group


DESIGNS = {
    name: Design(tuple(d["markers"].split()), d["information"], tuple(d["scored"]), d["documents"])
    for name, d in _WORDS["designs"].items()
}
NAMES = [name + end for name in DESIGNS for end in ("", NULL)]


def distributions(design: Design, seed: int = 0) -> np.ndarray:
    """p(marker | group) (G, M): random tilts of the uniform distribution, as strong as the design asks for."""
    tilt = np.random.default_rng(seed).random((len(THEMES), len(design.markers)))  # (G, M)
    weak, strong = 0.0, 100.0
    for _ in range(60):  # halving: the information grows with the strength
        strength = (weak + strong) / 2
        p = np.exp(strength * (tilt - 1))
        p /= p.sum(1, keepdims=True)
        weak, strong = (strength, strong) if information(p) < design.information else (weak, strength)
    return p


def information(p: np.ndarray) -> float:
    """I(marker; group) in nats for p(marker | group) (G, M) without zeros and equally likely groups."""
    return float((p * np.log(p / p.mean(0))).sum(1).mean())


def build(name: str, *, data_dir=None, seed: int = 0) -> Corpus:
    """A corpus of a design, or its null, drawn with the seed; it has no files, so `data_dir` changes nothing."""
    design = DESIGNS[name.removesuffix(NULL)]
    conditional = distributions(design, seed)  # (G, M)
    marginal = np.broadcast_to(conditional.mean(0), conditional.shape)
    drawn = marginal if name.endswith(NULL) else conditional
    prompts, spans = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    splits, losses = {}, {"marginal_nll": {}, "conditional_nll": {}}
    for split, count in design.documents.items():
        documents, places = [], []
        for i in range(count):
            g = i % len(THEMES)
            group, own = list(THEMES.items())[g]
            prompt = [own[int(u * len(own))] for u in _uniform(prompts, PROMPT)]
            scored = np.searchsorted(drawn[g].cumsum(), _uniform(spans, design.scored))
            scored = scored.clip(max=len(design.markers) - 1)  # a sum may end below 1
            text = "".join(f" {design.markers[m]}" for m in scored)
            documents.append(Document(f"{split}-{i}", text, group, "".join(f" {word}" for word in prompt)))
            places += [(g, m) for m in scored]
        places = tuple(np.array(places).T)  # groups and markers
        splits[split] = tuple(documents)
        losses["marginal_nll"][split] = float(-np.log(marginal[places]).mean())
        losses["conditional_nll"][split] = float(-np.log(drawn[places]).mean())
    notes = {"split": "drawn apart", "mutual_information": information(drawn), **losses}
    source = f"made: {len(THEMES)} groups, {len(design.markers)} markers, seed {seed}"
    return Corpus(name, splits, source, notes | overlaps(splits))


def _uniform(generator: np.random.Generator, count: tuple[int, int]) -> np.ndarray:
    """Between `count` numbers in [0, 1), how many is drawn too."""
    low, high = count
    return generator.random(low + int(generator.random() * (high - low)))
