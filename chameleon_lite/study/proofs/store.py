"""What a proof leaves behind, and the two files that hold all of them: proofs.jsonl and, flat, proofs.csv."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

from ... import cache
from ...errors import DamagedFile, UserError
from ..records import REFUSED_BACKBONES

COMMIT = "f163587"  # of the released repository, which every statement about its functions refers to


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
        return (
            self.proof,
            self.backbone,
            self.corpus,
            int(self.settings.get("tokens", {}).get("max_length", 0)),
        )


def store_proofs(found: list[Proof], results: Path) -> tuple[Path, Path]:
    """Add proofs to a results folder, replacing those of the same key; refuses smoke runs and random weights."""
    for proof in found:
        if proof.profile == "smoke":
            raise UserError(
                "proofs of the smoke profile are shown, never kept in results: use --profile paper"
            )
        if proof.backbone.startswith(REFUSED_BACKBONES):
            raise UserError(
                f"proofs with {proof.backbone}, whose weights are random, are not kept in results"
            )
        bad = [name for name, value in proof.numbers.items() if not math.isfinite(value)]
        if bad:
            raise UserError(f"proof {proof.proof}: {bad[0]} is not finite")
    kept = {proof.key: proof for proof in [*load_proofs(results), *found]}
    ordered = [kept[key] for key in sorted(kept)]
    jsonl, table = Path(results) / "proofs.jsonl", Path(results) / "proofs.csv"
    with cache.atomic(jsonl) as part:
        part.write_text("".join(p.model_dump_json() + "\n" for p in ordered), encoding="utf-8")
    with cache.atomic(table) as part:
        proof_frame(ordered).to_csv(part, index=False)
    return jsonl, table


def load_proofs(results: Path) -> list[Proof]:
    """The proofs of a results folder, [] where there are none; DamagedFile when the file cannot be read."""
    path = Path(results) / "proofs.jsonl"
    if not path.is_file():
        return []
    try:
        return [
            Proof.model_validate(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()
        ]
    except ValueError as error:
        raise DamagedFile(
            f"{path} is damaged ({str(error).splitlines()[0]}): make the proofs again"
        ) from error


def stored_sentences(kept: list[Proof], names: Iterable[str]) -> dict[str, str]:
    """What the stored proofs of each name show, with corpus and length in front; equal sentences are said once.

    A name without a stored proof says "not measured yet".
    """
    out = {}
    for name in names:
        says: dict[str, list[str]] = {}
        for p in kept:
            if p.proof == name:
                says.setdefault(p.shows, []).append(f"{p.corpus}, {p.key[3]} tokens")
        found = (f"({'; '.join(where)}) {shows}" for shows, where in says.items())
        out[name] = " ".join(found) or "not measured yet."
    return out


def proof_frame(found: list[Proof]) -> pd.DataFrame:
    """One row a number: proof, backbone, corpus, length, what, value."""
    rows = [
        {
            "proof": p.proof,
            "backbone": p.backbone,
            "corpus": p.corpus,
            "length": p.key[3],
            "what": what,
            "value": value,
        }
        for p in found
        for what, value in p.numbers.items()
    ]
    return pd.DataFrame(rows, columns=["proof", "backbone", "corpus", "length", "what", "value"])
