"""How much of what the released scripts score is padding: shares of positions and of scored positions."""

import torch

from .store import Proof
from .subject import Subject


def prove(subject: Subject) -> Proof:
    """Count positions, padding, full rows and tokens of the ignored id 0, in training and validation."""
    material, length = subject.material, subject.settings.tokens.max_length
    numbers: dict[str, float] = {"length": float(length)}
    for split, table in material.tables.items():
        full = material.full(split)
        numbers |= {
            f"{split}_rows": float(len(table)),
            f"{split}_full_rows": float(full.sum()),
            f"{split}_full_share": float(full.double().mean()),
            f"{split}_padding_share_of_positions": 1 - float(table.lengths.sum()) / (len(table) * length),
            f"{split}_tokens_of_ignored_id": float((torch.from_numpy(table.ids) == 0).sum()),
        }
    scored = 1 - numbers["validation_full_share"]
    return Proof(
        proof="padding_share",
        title="What is scored is mostly padding",
        audit=(1, 3, 4, 5, 9),
        where="compute_loss (mode last), collate_fn",
        shows=f"{scored:.1%} of the scored validation positions are padding; "
        f"the loss rests on {int(numbers['validation_full_rows'])} tokens of text; "
        f"the ignored id 0 occurs {int(numbers['validation_tokens_of_ignored_id'])} times in it.",
        numbers=numbers,
    )
