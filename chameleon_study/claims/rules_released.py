"""Claims that the released tables themselves decide: rules over the stored proofs and the re-derived tables."""

import numpy as np

from ..records import Record, load_records
from ..released.proofs.store import load_proofs
from ..released.tables import is_released, protocol_label, table_of
from .contrasts import StoredRuns
from .paper import paper, published
from .rules import CONFIRMED, REFUTED, UNDECIDED, ClaimVerdict, combined, worst

TABLES = "table*-released*.jsonl"  # experiments that re-derive the published tables
TRAINED = ("R1", "R4")  # the published rows that something was trained for
# by table: tokens a row is padded to, and the released procedure's name; the two scripts initialise differently
RELEASED = {1: (256, "as_released"), 2: (512, "as_released + initialisation=alpaca")}
SPREAD = 2.0  # standard deviations over seeds around the mean that a published number may lie in


def without_a_model(evidence: StoredRuns) -> ClaimVerdict:
    """Claim 2: refuted where a predictor without a language model is as good as the LoRA row."""
    parts = {}
    for proof in load_proofs(evidence.folder):
        if proof.proof == "model_free" and proof.backbone == evidence.backbone:
            free, lora, hyper = (proof.numbers[f"{x}_loss"] for x in ("model_free", "LoRA", "hyper_network"))
            number = f"without a model {free:.4f}, LoRA {lora:.4f}, hyper-network {hyper:.4f}"
            verdict = REFUTED if free <= lora else UNDECIDED
            parts[f"{proof.corpus} ({proof.key[3]} tokens)"] = verdict, number
    return combined(parts, short=False)


def published_again(evidence: StoredRuns) -> ClaimVerdict:
    """Claim 22: the re-derived losses of LoRA and of the hyper-network have the published ones in their spread.

    The spread is mean ± 2 standard deviations over seeds, so two seeds at least. Only the paper's own backbone, data
    and lengths under the released procedure decide; every other record is printed and leaves it open. Both rows of
    a table are needed to confirm it, and one published loss outside refutes.
    """
    groups: dict[tuple, dict[str, list[Record]]] = {}
    for path in sorted(evidence.folder.glob(TABLES)):
        for r in load_records(path):
            if r.status == "done" and is_released(r) and r.regime in TRAINED:
                key = (r.backbone, r.corpus, r.settings["tokens"]["max_length"], protocol_label(r))
                groups.setdefault((table_of(r), key), {}).setdefault(r.regime, []).append(r)
    parts, decide = {}, []
    corpora = {t["table"]: t["corpus"] for t in paper()["tables"]}
    # the tables as the scripts make them before controls and other lengths
    for table, key in sorted(groups, key=lambda group: (group[1][2:] != RELEASED[group[0]], *group)):
        rows = [_row(table, regime, groups[table, key].get(regime, [])) for regime in TRAINED]
        name = ", ".join(map(str, key))
        parts[name] = worst([verdict for verdict, _ in rows]), ", ".join(text for _, text in rows)
        decide += [name] * (key == (paper()["source"]["backbone"], corpora[table], *RELEASED[table]))
    return combined(parts, decide)


def _row(table: int, regime: str, records: list[Record]) -> tuple[str, str]:
    """Whether the published loss is inside the spread, and the row as the ledger prints it."""
    losses = np.array([r.metrics["reported_nll"] for r in records])
    loss = published(table, regime, "validation_loss")
    if not len(losses):
        return UNDECIDED, f"{regime} absent (published {loss})"
    mean, verdict, sd = losses.mean(), UNDECIDED, ""
    if len(losses) > 1:  # one seed has no spread
        spread = SPREAD * losses.std(ddof=1)
        verdict, sd = CONFIRMED if abs(loss - mean) <= spread else REFUTED, f" ± {spread:.4f}"
    return verdict, f"{regime} {mean:.4f}{sd} (published {loss}, n = {len(losses)})"
