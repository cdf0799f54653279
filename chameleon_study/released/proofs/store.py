"""A proof's outcome, the file that holds all of them, and what stored ones show beside new ones."""

import math
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from chameleon_lite.errors import UserError

from ...claims.paper import paper, published
from ...records import refuse_unfit
from ...stored import read_lines, store_text

COMMIT = "f163587"  # of the released repository, which every statement about its functions refers to
CLUSTERINGS = 20  # of the validation rows, over which the metric's spread is taken


class Proof(BaseModel, extra="forbid"):
    """One proof's outcome: `numbers` by name, a sentence of what they show, where it was measured."""

    proof: str
    title: str
    audit: tuple[int, ...]  # rows of audit.csv it decides
    where: str  # functions of the released scripts at COMMIT
    shows: str
    numbers: dict[str, float]
    backbone: str = ""
    corpus: str = ""
    profile: str = ""
    settings: dict[str, Any] = {}
    data: dict[str, Any] = {}
    provenance: dict[str, Any] = {}

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Proofs of one key replace each other: name, backbone, corpus, padded length."""
        length = int(self.settings.get("tokens", {}).get("max_length", 0))
        return self.proof, self.backbone, self.corpus, length


def store_proofs(proofs: list[Proof], results: Path) -> Path:
    """Add proofs to a results folder, replacing those of the same key; no smoke runs, no random weights."""
    for p in proofs:
        refuse_unfit(f"proof {p.proof}", p.profile, p.backbone)
        if bad := [name for name, value in p.numbers.items() if not math.isfinite(value)]:
            raise UserError(f"proof {p.proof}: {bad[0]} is not finite")
    stored = {p.key: p for p in [*load_proofs(results), *proofs]}
    lines = [stored[key].model_dump_json() + "\n" for key in sorted(stored)]
    return store_text(Path(results) / "proofs.jsonl", "".join(lines))


def load_proofs(results: Path) -> list[Proof]:
    """The proofs of a results folder, [] where there are none; DamagedFile when the file cannot be read."""
    path = Path(results) / "proofs.jsonl"
    return read_lines(path, Proof) if path.is_file() else []


def stored_sentences(stored: list[Proof], names: Iterable[str]) -> dict[str, str]:
    """What the stored proofs of each name show, after their corpora; "not measured yet." without one."""
    out = {}
    for name in names:
        corpora: dict[str, list[str]] = {}
        for p in stored:
            if p.proof == name:
                corpora.setdefault(p.shows, []).append(f"{p.corpus}, {p.key[3]} tokens")
        sentences = (f"({'; '.join(where)}) {shows}" for shows, where in corpora.items())
        out[name] = " ".join(sentences) or "not measured yet."
    return out


def audit_frame(proofs: Iterable[Proof] = ()) -> pd.DataFrame:
    """The paper's text beside its released scripts, 48 rows (`audit.csv`); `shown` where a given proof decides one."""
    frame = pd.read_csv(files("chameleon_study.released") / "audit.csv").set_index("row")
    shown = {row for proof in proofs for row in proof.audit}
    frame["shown"] = ["yes" if row in shown else "" for row in frame.index]
    frame.attrs["commit"] = COMMIT
    return frame


def early_checks(proofs: dict[str, Proof], vocab: int) -> dict[str, float]:
    """Four cheap checks that show what a loss measures, from one run's proofs, and LoRA's spread."""
    spread, free = proofs["clustering_spread"].numbers, proofs["model_free"].numbers
    return {
        "untrained minus ln V (nats)": spread["R0_mean"] - math.log(vocab),
        "share of targets that are padding": 1 - proofs["padding_share"].numbers["validation_full_share"],
        "loss without a model": free["model_free_loss"],
        "loss of LoRA": free["LoRA_loss"],
        f"its smallest under {CLUSTERINGS} batchings": spread["R1_min"],
        f"its largest under {CLUSTERINGS} batchings": spread["R1_max"],
    }


def checks_frame(proofs: dict[str, Proof], stored: list[Proof], vocab: int) -> pd.DataFrame:
    """One column per source: as published, each stored run of the same backbone with all proofs, this run."""
    own, runs = early_checks(proofs, vocab), {}
    for p in stored:
        runs.setdefault(p.key[1:], {})[p.proof] = p
    lora, frozen = (published(1, regime, "validation_loss") for regime in ("R1", "R0"))
    untrained = frozen - math.log(paper()["source"]["vocabulary"])
    columns = {"published, Table 1": {"untrained minus ln V (nats)": untrained, "loss of LoRA": lora}}
    here = next(iter(proofs.values())).backbone
    for (backbone, corpus, length), run in runs.items():
        if backbone == here and {"clustering_spread", "model_free", "padding_share"} <= set(run):
            columns[f"stored: {corpus}, {length} tokens"] = early_checks(run, vocab)
    frame = pd.DataFrame(columns | {"this run": own}).reindex(list(own))
    return frame.round(3).astype(object).where(frame.notna(), "–")
