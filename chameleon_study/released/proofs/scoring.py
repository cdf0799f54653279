"""Proofs about what is scored: padding, the loss taken apart, no model at all, the other mode."""

import torch
import torch.nn.functional as F
from torch import Tensor

from chameleon_lite.text import IGNORED
from chameleon_lite.train import average

from ...claims.paper import published
from ..states import IGNORED_BY_RELEASED
from .subject import REGIMES, Shown, Subject

ADDED = 0.1  # count given to every token beforehand, so that unseen ones keep a probability


def padding_share(subject: Subject) -> Shown:
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
    return numbers, {"padding": 1 - numbers["validation_full_share"]}


def decomposition(subject: Subject) -> Shown:
    """L = f · L_full + (1 − f) · L_pad under the frozen model, LoRA and the hyper-network."""
    numbers, worst = {}, 0.0
    for regime in REGIMES:
        m = subject.trained[regime][2]
        f, loss = m["full_share_weighted"], m["validation_nll"]
        full, padded = m.get("full_nll", 0.0), m.get("padded_nll", 0.0)
        worst = max(worst, abs(loss - (f * full + (1 - f) * padded)))
        numbers |= {
            f"{regime}_loss": loss,
            f"{regime}_full_rows": full,
            f"{regime}_padded_rows": padded,
            f"{regime}_share_of_loss_from_full_rows": f * full / loss if loss else 0.0,
        }
    numbers |= {"f": f, "full_rows": m["full_rows"], "largest_error_of_the_identity": worst}
    return numbers, {}


def unigram_nll(train_ids: Tensor, targets: Tensor, vocab: int, added: float = ADDED) -> Tensor:
    """−log of the smoothed share in train_ids (L,) of each target (M,): (M,) nats, float64."""
    counts = torch.bincount(train_ids.long(), minlength=vocab).double() + added  # (V,)
    return -(counts[targets.long()] / counts.sum()).log()


def model_free(subject: Subject) -> Shown:
    """Padding for padded rows, the corpus's token frequencies for the others: the same positions' loss."""
    material = subject.material
    states, full = material.scored["validation"], material.full("validation")
    nll = torch.zeros(len(full), dtype=torch.float64)
    target = torch.zeros(len(full), dtype=torch.int64)
    target[states.counts.bool()] = states.target.cpu()  # one target per row that has one
    train = torch.from_numpy(material.tables["train"].ids)
    nll[full] = unigram_nll(train, target[full], subject.backbone.vocab)
    batches = subject.trained["R1"][1]["validation"].steps()
    return {
        "model_free_loss": float(average(nll, states.counts, "batch", batches)),
        "model_free_loss_row_mean": float(nll.mean()),
        "unigram_nll_of_full_rows": float(nll[full].mean()) if full.any() else 0.0,
        "LoRA_loss": subject.trained["R1"][2]["validation_nll"],
        "hyper_network_loss": subject.trained["R4"][2]["validation_nll"],
        "published_LoRA_loss": published(subject.table, "R1", "validation_loss"),
    }, {}


def call_as_released() -> str:
    """The error of cross-entropy with prompt labels of −100 and 0 as the ignored id, or ""."""
    target = torch.tensor([IGNORED, IGNORED, 3, 5])  # two prompt positions, two response tokens
    try:
        F.cross_entropy(torch.zeros(len(target), 8), target, ignore_index=IGNORED_BY_RELEASED)
    except (IndexError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0].rstrip('.')}"
    return ""


def full_mode(subject: Subject) -> Shown:
    """The call with prompt labels, and how many of the positions that mode "full" averages over are text."""
    error = call_as_released()
    table = subject.material.tables["validation"]
    text = float(table.lengths.sum()) / (len(table) * subject.settings.tokens.max_length)
    return {"fails": float(bool(error)), "text_share_of_positions": text}, {"error": error or "no error"}
