"""The other loss mode: it fails on Alpaca, and on plain text it is diluted by padding."""

import torch
import torch.nn.functional as F

from ...data.tokens import IGNORED
from .store import Proof
from .subject import Subject

RELEASED_IGNORED = 0


def call_as_released(vocab: int = 8) -> str:
    """Cross-entropy of a row whose prompt is labelled −100, with 0 as the ignored id; returns the error, "" if none."""
    target = torch.tensor([IGNORED, IGNORED, 3, 5])  # two prompt positions, two response tokens
    try:
        F.cross_entropy(torch.zeros(len(target), vocab), target, ignore_index=RELEASED_IGNORED)
    except (IndexError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0].rstrip('.')}"
    return ""


def prove(subject: Subject) -> Proof:
    """Make the call, and measure how many of the positions that mode "full" averages over are text."""
    material, length = subject.material, subject.settings.tokens.max_length
    error = call_as_released()
    table = material.tables["validation"]
    text = float(table.lengths.sum()) / (len(table) * length)
    return Proof(
        proof="full_mode",
        title="The loss over all positions fails on Alpaca",
        audit=(5, 6),
        where="compute_loss (mode full) in main_alpaca.py and main_wikitext.py",
        shows=f"With prompt labels of -100 and an ignored id of 0 the call ends in {error or 'no error'}; so Table 2 "
        f"can only come from mode last. On this corpus mode full would average over {text:.1%} text.",
        numbers={"fails": float(bool(error)), "text_share_of_positions": text},
    )
