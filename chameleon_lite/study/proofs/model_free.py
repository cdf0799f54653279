"""A predictor without a model: certain of padding if the row is padded, else the corpus's token frequencies."""

import torch
from torch import Tensor

from ...training.loop import average
from ..paper import published
from .store import Proof
from .subject import Subject

ADDED = 0.1  # count given to every token beforehand, so that unseen ones keep a probability


def unigram_nll(train_ids: Tensor, targets: Tensor, vocab: int, added: float = ADDED) -> Tensor:
    """−log of the smoothed relative frequency in train_ids (L,) of each target (M,), to (M,) nats, float64."""
    counts = torch.bincount(train_ids.long(), minlength=vocab).double() + added  # (V,)
    return -(counts[targets.long()] / counts.sum()).log()


def prove(subject: Subject) -> Proof:
    """The predictor's loss on the same positions, averaged in the same way, beside the trained heads."""
    material = subject.material
    states, full = material.scored["validation"], material.full("validation")
    nll = torch.zeros(len(full), dtype=torch.float64)
    target = torch.zeros(len(full), dtype=torch.int64)
    target[states.counts.bool()] = states.target.cpu()  # one target a row, where it counts
    train = torch.from_numpy(material.tables["train"].ids)
    nll[full] = unigram_nll(train, target[full], subject.backbone.vocab)
    batches = subject.trained["R1"][1].orders["validation"].steps()
    own = {regime: subject.trained[regime][2]["validation_nll"] for regime in ("R1", "R4")}
    numbers = {
        "model_free_loss": float(average(nll, states.counts, "batch", batches)),
        "model_free_loss_row_mean": float(nll.mean()),
        "unigram_nll_of_full_rows": float(nll[full].mean()) if full.any() else 0.0,
        "LoRA_loss": own["R1"],
        "hyper_network_loss": own["R4"],
        "published_LoRA_loss": published(subject.table, "R1", "validation_loss"),
    }
    return Proof(
        proof="model_free",
        title="A predictor without a language model",
        audit=(1, 2, 8),
        where="compute_loss (mode last)",
        shows=f"Padding for padded rows and token frequencies for the others give {numbers['model_free_loss']:.4f}; "
        f"the trained LoRA head gives {own['R1']:.4f}, the hyper-network {own['R4']:.4f}.",
        numbers=numbers,
    )
