"""Four cheap checks that show what a loss measures, read from the proofs of one run and from the published tables."""

import math

import pandas as pd

from ..paper import paper, published
from .clustering_spread import CLUSTERINGS
from .store import Proof

UNTRAINED = "untrained minus ln V (nats)"
PADDING, FREE, LORA = "share of targets that are padding", "loss without a model", "loss of LoRA"
LEAST, MOST = (f"its {end} under {CLUSTERINGS} batchings" for end in ("smallest", "largest"))


def early_checks(found: dict[str, Proof], vocab: int) -> dict[str, float]:
    """The checks by name from the proofs of one run, by theirs, on a backbone of `vocab` tokens."""
    spread, free = found["clustering_spread"].numbers, found["model_free"].numbers
    return {
        UNTRAINED: spread["R0_mean"] - math.log(vocab),
        PADDING: 1 - found["padding_share"].numbers["validation_full_share"],
        FREE: free["model_free_loss"],
        LORA: free["LoRA_loss"],
        LEAST: spread["R1_min"],
        MOST: spread["R1_max"],
    }


def checks_frame(found: dict[str, Proof], kept: list[Proof], vocab: int) -> pd.DataFrame:
    """One column a source: as published, each stored run of the same backbone with all proofs, this run."""
    lora, frozen = (published(1, regime, "validation_loss") for regime in ("R1", "R0"))
    columns = {
        "published, Table 1": {UNTRAINED: frozen - math.log(paper()["source"]["vocabulary"]), LORA: lora}
    }
    runs: dict[tuple, dict[str, Proof]] = {}
    for proof in kept:
        runs.setdefault(proof.key[1:], {})[proof.proof] = proof
    needed = {"clustering_spread", "model_free", "padding_share"}
    here = next(iter(found.values())).backbone
    for (backbone, corpus, length), own in runs.items():
        if backbone == here and needed <= set(own):
            columns[f"stored: {corpus}, {length} tokens"] = early_checks(own, vocab)
    columns["this run"] = early_checks(found, vocab)
    frame = pd.DataFrame(columns).reindex([UNTRAINED, PADDING, FREE, LORA, LEAST, MOST])
    return frame.round(3).astype(object).where(frame.notna(), "–")
