"""The best of several candidates: each trained within the same budget, the lowest loss on validation texts kept.

    candidates ─ train ─▶ validation nats, frozen and adapted, with an interval ─▶ table ─▶ the one kept, and why

The test part is not read here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..backbone import Backbone, copied
from ..cluster import Clustering
from ..errors import RunFailed
from ..processes import Processes
from ..train import Member
from .candidates import Cohort, candidates_of, name_of, seconds_of_layers, tries_layers
from .fit_settings import FitSettings
from .fitted import compared, span
from .parts import Parts


@dataclass(frozen=True, eq=False)
class Outcome:
    """A trained candidate, and the validation texts' nats (2, N), frozen and adapted."""

    settings: FitSettings  # with which `fit` trains this one alone
    model: Any  # the adapter
    member: Member
    cohort: Cohort
    nll: np.ndarray
    row: dict  # of the table


@dataclass(frozen=True)
class Choice:
    """All outcomes, the one with the lowest validation loss, why, and what else could be tried, with its price."""

    outcomes: list[Outcome]
    kept: Outcome
    why: str
    offer: str

    @property
    def table(self) -> pd.DataFrame:
        """One row per candidate; nats per token of the validation part."""
        return pd.DataFrame([one.row | {"kept": one is self.kept} for one in self.outcomes])


def choose(
    settings: FitSettings,
    backbone: Backbone,
    parts: Parts,
    clustering: Clustering,
    processes: Processes,
    *,
    keep: bool = True,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Choice:
    """Train every candidate and choose. keep: the backbone stays as it is, also where layers are trained alone.

    A candidate that fails is left out where others are there; else RunFailed, or whatever it was.
    """
    candidates, outcomes, failures = candidates_of(settings, backbone), [], []
    # heads are trained together, and one by one those with LoRA in the layers
    heads = [one for one in candidates if not one.lora_rank]
    together = [heads] * bool(heads) + [[one] for one in candidates if one.lora_rank]
    for candidates in together:
        names = ", ".join(map(name_of, candidates))
        say(f"training {names}" + " side by side" * (len(candidates) > 1))
        try:
            own = copied(backbone) if candidates[0].lora_rank and (keep or len(together) > 1) else backbone
            cohort = Cohort(candidates, own, parts, clustering, processes, progress)
            cohort.train()
        except (RunFailed, torch.OutOfMemoryError) as error:
            if len(together) == 1 or processes.count > 1:
                raise
            failures.append(error)
            say(f"{names}: {str(error).splitlines()[0]}")
            continue
        outcomes += _outcomes(cohort, parts, settings.seed)
        cohort.states = {"test": cohort.states["test"]}  # the memory of the others is needed
    if not outcomes:
        raise failures[0]
    ranked = sorted(outcomes, key=_order)
    offered = settings.head == "auto" and settings.layers is None and not tries_layers(settings, backbone)
    offer = _offer(settings, backbone, parts, outcomes) if offered else ""
    return Choice(outcomes, ranked[0], _why(ranked, parts, settings.seed), offer)


def _outcomes(cohort: Cohort, parts: Parts, seed: int) -> list[Outcome]:
    counts, found = parts.tables["validation"].n_scored, []
    frozen, *adapted = cohort.nats("validation", cohort.members)
    for settings, model, member, own in zip(cohort.candidates, cohort.models, cohort.members, adapted):
        nll = np.stack([frozen, own])
        row = {"candidate": member.name} | compared(nll, counts, seed)
        row |= {"parameters": member.head.trainable_parameters(), "seconds": cohort.seconds}
        found.append(Outcome(settings, model, member, cohort, nll, row))
    return found


def _order(outcome: Outcome) -> tuple[float, int]:
    """What the best candidate has least of: loss, and where losses are equal parameters."""
    loss = outcome.row["after"]
    return (loss if np.isfinite(loss) else np.inf), outcome.row["parameters"]


def _why(ranked: list[Outcome], parts: Parts, seed: int) -> str:
    """Which candidate is kept, and how far the next one is; beside a hyper-network the next static one."""
    kept, *others = ranked
    if not others:
        return ""
    static = [one for one in others if one.settings.head != "hyper"]
    other = static[0] if kept.settings.head == "hyper" and static else others[0]
    table = parts.tables["validation"]
    gap = compared(np.stack([kept.nll[1], other.nll[1]]), table.n_scored, seed)
    text = f"kept: {kept.member.name}, with the lowest loss on {len(table)} validation texts; "
    text += f"{other.member.name} has {gap['after'] - gap['before']:.4f} nats per token more ({span(gap)})"
    if round(gap["low"], 4) > 0:
        return text
    text += ", which these texts do not tell from none"
    if kept.settings.head == "hyper" and not other.settings.lora_rank:
        text += f"; it is the simpler one, one update for all texts: --head lora --rank {other.settings.rank}"
    return text


def _offer(settings: FitSettings, backbone: Backbone, parts: Parts, outcomes: list[Outcome]) -> str:
    """What LoRA in the layers would take here, from one piece of a step and what one head took."""
    one = outcomes[0].cohort
    seconds = seconds_of_layers(backbone, parts, settings) + one.seconds / len(one.members)
    time = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1, seconds):.0f} s"
    return f"LoRA in the layers is not among them: --layers tries it too, an estimated {time} more on this machine"
