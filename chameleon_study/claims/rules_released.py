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
    """Claim 2: refuted as a statement on language models where a predictor without one is as good as the LoRA row.

    Where it is not, the released loss does not decide the claim: the honest study asks it of next tokens.
    """
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
                groups.setdefault(key, {}).setdefault(r.regime, []).append(r)
    parts, decide = {}, []
    for key, by_regime in sorted(groups.items(), key=_controls_last):
        table, name = table_of(next(iter(by_regime.values()))[0]), ", ".join(map(str, key))
        rows = [(r, by_regime.get(r, []), published(table, r, "validation_loss")) for r in TRAINED]
        judged = worst([_inside(records, loss) for _, records, loss in rows])
        parts[name] = judged, ", ".join(_spread(*row) for row in rows)
        decide += [name] * _is_the_papers(table, key)
    return combined(parts, decide)


def _is_the_papers(table: int, key: tuple) -> bool:
    """Whether (backbone, corpus, length, procedure) are those of the published table."""
    corpora = {t["table"]: t["corpus"] for t in paper()["tables"]}
    return key == (paper()["source"]["backbone"], corpora[table], *RELEASED[table])


def _controls_last(item: tuple[tuple, dict]) -> tuple[bool, int, tuple]:
    """Sorts the tables as the scripts make them before controls and other lengths."""
    key, by_regime = item
    table = table_of(next(iter(by_regime.values()))[0])
    return key[2:] != RELEASED[table], table, key


def _losses(records: list[Record]) -> np.ndarray:
    return np.array([r.metrics["reported_nll"] for r in records])


def _inside(records: list[Record], published: float) -> str:
    if len(records) < 2:  # one seed has no spread
        return UNDECIDED
    losses = _losses(records)
    return CONFIRMED if abs(published - losses.mean()) <= SPREAD * losses.std(ddof=1) else REFUTED


def _spread(regime: str, records: list[Record], published: float) -> str:
    """A row as the ledger prints it."""
    losses = _losses(records)
    if not len(losses):
        return f"{regime} absent (published {published})"
    sd = f" ± {SPREAD * losses.std(ddof=1):.4f}" if len(losses) > 1 else ""
    return f"{regime} {losses.mean():.4f}{sd} (published {published}, n = {len(losses)})"
