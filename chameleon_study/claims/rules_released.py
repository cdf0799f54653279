"""Claims that the released tables themselves decide: rules over the stored proofs and the re-derived tables."""

import numpy as np

from ..records import Record, load_records
from ..released.proofs.store import load_proofs
from ..released.tables import is_released, protocol_label, table_of
from .contrasts import StoredRuns
from .paper import paper
from .rules import CONFIRMED, REFUTED, UNDECIDED, Finding, worst

TABLES = "table*-released*.jsonl"  # experiments that re-derive the published tables
TRAINED = ("R1", "R4")  # the published rows that something was trained for
# by table: tokens a row is padded to, and the released procedure's name; the two scripts initialise differently
RELEASED = {1: (256, "as_released"), 2: (512, "as_released + initialisation=alpaca")}
SPREAD = 2.0  # standard deviations over seeds around the mean that a published number may lie in


def without_a_model(evidence: StoredRuns) -> Finding:
    """Claim 2: refuted as a statement on language models where a predictor without one is as good as the LoRA row.

    Where it is not, the released loss does not decide the claim: chapter 08 asks it of next tokens.
    """
    found, numbers = {}, []
    for proof in load_proofs(evidence.folder):
        if proof.proof != "model_free" or proof.backbone != evidence.backbone:
            continue
        name, n = f"{proof.corpus} ({proof.key[3]} tokens)", proof.numbers
        found[name] = REFUTED if n["model_free_loss"] <= n["LoRA_loss"] else UNDECIDED
        numbers.append(
            f"{name}: without a model {n['model_free_loss']:.4f}, LoRA {n['LoRA_loss']:.4f}, "
            f"hyper-network {n['hyper_network_loss']:.4f}"
        )
    return Finding(worst(list(found.values())), "; ".join(numbers), found) if found else Finding()


def published_again(evidence: StoredRuns) -> Finding:
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
    found, numbers, decided = {}, [], []
    for key, own in sorted(groups.items(), key=_controls_last):
        table, name = table_of(next(iter(own.values()))[0]), ", ".join(map(str, key))
        rows = {row["regime"]: row["validation_loss"] for row in _table(table)["rows"]}
        judged = worst([_inside(own.get(regime, []), rows[regime]) for regime in TRAINED])
        found[name] = judged if _is_the_papers(table, key) else UNDECIDED
        decided += [judged] if _is_the_papers(table, key) else []
        numbers.append(
            f"{name}: " + ", ".join(_spread(regime, own.get(regime, []), rows[regime]) for regime in TRAINED)
        )
    if not found:
        return Finding()
    verdict = worst(decided) if decided else UNDECIDED
    deciding = next(text for text, judged in zip(numbers, found.values()) if judged == verdict)
    return Finding(verdict, "; ".join(numbers), found, deciding)


def _table(number: int) -> dict:
    return next(t for t in paper()["tables"] if t["table"] == number)


def _is_the_papers(table: int, key: tuple) -> bool:
    """Whether (backbone, corpus, length, procedure) are those of the published table."""
    return key == (paper()["source"]["backbone"], _table(table)["corpus"], *RELEASED[table])


def _controls_last(item: tuple[tuple, dict]) -> tuple[bool, int, tuple]:
    """Sorts the tables as the scripts make them before controls and other lengths."""
    key, own = item
    table = table_of(next(iter(own.values()))[0])
    return key[2:] != RELEASED[table], table, key


def _losses(own: list[Record]) -> np.ndarray:
    return np.array([r.metrics["reported_nll"] for r in own])


def _inside(own: list[Record], published: float) -> str:
    if len(own) < 2:  # one seed has no spread
        return UNDECIDED
    losses = _losses(own)
    return CONFIRMED if abs(published - losses.mean()) <= SPREAD * losses.std(ddof=1) else REFUTED


def _spread(regime: str, own: list[Record], published: float) -> str:
    """A row as the ledger prints it."""
    losses = _losses(own)
    if not len(losses):
        return f"{regime} absent (published {published})"
    sd = f" ± {SPREAD * losses.std(ddof=1):.4f}" if len(losses) > 1 else ""
    return f"{regime} {losses.mean():.4f}{sd} (published {published}, n = {len(losses)})"
