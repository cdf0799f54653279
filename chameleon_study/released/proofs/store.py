"""A proof's outcome, the two files that hold all of them (proofs.jsonl and, flat, proofs.csv), and their sentences."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

from chameleon_lite import files
from chameleon_lite.errors import DamagedFile, UserError

from ...claims.paper import paper, published
from ...records import refuse_unfit

COMMIT = "f163587"  # of the released repository, which every statement about its functions refers to
CLUSTERINGS = 20  # of the validation rows, over which the metric's spread is taken
UNTRAINED = "untrained minus ln V (nats)"
PADDING, FREE, LORA = "share of targets that are padding", "loss without a model", "loss of LoRA"
LEAST, MOST = (f"its {end} under {CLUSTERINGS} batchings" for end in ("smallest", "largest"))


class Proof(BaseModel):
    """One proof's outcome: `numbers` by name, `shows` what they show in a sentence, and where it was measured."""

    model_config = ConfigDict(extra="forbid")

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


def store_proofs(proofs: list[Proof], results: Path) -> tuple[Path, Path]:
    """Add proofs to a results folder, replacing those of the same key; refuses smoke runs and random weights."""
    for p in proofs:
        refuse_unfit(f"proof {p.proof}", p.profile, p.backbone)
        if bad := [name for name, value in p.numbers.items() if not math.isfinite(value)]:
            raise UserError(f"proof {p.proof}: {bad[0]} is not finite")
    stored = {p.key: p for p in [*load_proofs(results), *proofs]}
    ordered = [stored[key] for key in sorted(stored)]
    jsonl, table = Path(results) / "proofs.jsonl", Path(results) / "proofs.csv"
    with files.atomic(jsonl) as part:
        part.write_text("".join(p.model_dump_json() + "\n" for p in ordered), encoding="utf-8")
    with files.atomic(table) as part:
        proof_frame(ordered).to_csv(part, index=False)
    return jsonl, table


def load_proofs(results: Path) -> list[Proof]:
    """The proofs of a results folder, [] where there are none; DamagedFile when the file cannot be read."""
    path = Path(results) / "proofs.jsonl"
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [Proof.model_validate(json.loads(line)) for line in lines]
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise DamagedFile(f"{path} is damaged ({reason}): make the proofs again") from error


def stored_sentences(stored: list[Proof], names: Iterable[str]) -> dict[str, str]:
    """What the stored proofs of each name show, with corpora and lengths in front; equal sentences appear once.

    A name without a stored proof gets "not measured yet."
    """
    out = {}
    for name in names:
        corpora: dict[str, list[str]] = {}
        for p in stored:
            if p.proof == name:
                corpora.setdefault(p.shows, []).append(f"{p.corpus}, {p.key[3]} tokens")
        sentences = (f"({'; '.join(where)}) {shows}" for shows, where in corpora.items())
        out[name] = " ".join(sentences) or "not measured yet."
    return out


def proof_frame(proofs: list[Proof]) -> pd.DataFrame:
    """One row per number: proof, backbone, corpus, length, what, value."""
    rows = [(*p.key, what, value) for p in proofs for what, value in p.numbers.items()]
    return pd.DataFrame(rows, columns=["proof", "backbone", "corpus", "length", "what", "value"])


def early_checks(proofs: dict[str, Proof], vocab: int) -> dict[str, float]:
    """Four cheap checks that show what a loss measures, from the proofs of one run, by name, and LoRA's spread."""
    spread, free = proofs["clustering_spread"].numbers, proofs["model_free"].numbers
    return {
        UNTRAINED: spread["R0_mean"] - math.log(vocab),
        PADDING: 1 - proofs["padding_share"].numbers["validation_full_share"],
        FREE: free["model_free_loss"],
        LORA: free["LoRA_loss"],
        LEAST: spread["R1_min"],
        MOST: spread["R1_max"],
    }


def checks_frame(proofs: dict[str, Proof], stored: list[Proof], vocab: int) -> pd.DataFrame:
    """One column per source: as published, each stored run of the same backbone with all proofs, this run."""
    lora, frozen = (published(1, regime, "validation_loss") for regime in ("R1", "R0"))
    untrained = frozen - math.log(paper()["source"]["vocabulary"])
    columns = {"published, Table 1": {UNTRAINED: untrained, LORA: lora}}
    runs: dict[tuple, dict[str, Proof]] = {}
    for p in stored:
        runs.setdefault(p.key[1:], {})[p.proof] = p
    needed = {"clustering_spread", "model_free", "padding_share"}
    here = next(iter(proofs.values())).backbone
    for (backbone, corpus, length), run in runs.items():
        if backbone == here and needed <= set(run):
            columns[f"stored: {corpus}, {length} tokens"] = early_checks(run, vocab)
    columns["this run"] = early_checks(proofs, vocab)
    frame = pd.DataFrame(columns).reindex([UNTRAINED, PADDING, FREE, LORA, LEAST, MOST])
    return frame.round(3).astype(object).where(frame.notna(), "–")
