"""What the training column and the choice of the epoch are made of: live dropout, and the lowest of ten losses."""

import copy

import torch

from ...batches import Arrangement
from ...training.dropout import live_dropout
from ...training.loop import average, evaluate
from ...training.padded import LiveStates
from ..released_material import scoring_of
from .store import Proof
from .subject import Subject

ROWS = {"cuda": 512, "cpu": 64}  # training rows read again with the backbone's dropout on


def prove(subject: Subject) -> Proof:
    """Running training loss against the same heads re-read; last epoch against the lowest; live against cached."""
    numbers: dict[str, float] = {}
    for regime in ("R1", "R4"):
        m = subject.trained[regime][2]
        numbers |= {
            f"{regime}_running_training_loss": m["train_nll"],
            f"{regime}_training_loss_re_read": m["train_eval_nll"],
            f"{regime}_validation_loss": m["validation_nll"],
            f"{regime}_lowest_minus_last_epoch": m["validation_nll"] - m["validation_last_epoch_nll"],
        }
    numbers |= _backbone_dropout(subject)
    applies = bool(numbers["backbone_dropout_applies"])
    own = numbers["R4_running_training_loss"] - numbers["R4_training_loss_re_read"]
    live = numbers.get("R1_dropout_on", 0.0) - numbers.get("R1_dropout_off", 0.0)
    return Proof(
        proof="dropout_and_selection",
        title="What dropout and the choice of the epoch are worth",
        audit=(10, 33, 37),
        where="train_lm, evaluate",
        shows=f"The hyper-network's running training loss differs by {own:+.4f} from the same head re-read; reporting "
        f"the lowest epoch is worth {numbers['R4_lowest_minus_last_epoch']:+.4f}; "
        + (
            f"the backbone's dropout changes the LoRA loss by {live:+.4f}."
            if applies
            else "this backbone has no dropout to switch on."
        ),
        numbers=numbers,
    )


def _backbone_dropout(subject: Subject) -> dict[str, float]:
    """The LoRA head on some training rows, states computed anew: cached, live, and live with dropout on."""
    material = subject.material
    backbone = copy.deepcopy(subject.backbone)
    found = live_dropout(backbone.lm)
    out = {
        "backbone_dropout_applies": float(found["applies"]),
        "backbone_dropout_configured": found["configured"],
        "backbone_dropout_set": float(found["set"] or found["configured"]),
    }
    table = material.tables["train"]
    rows = torch.randperm(len(table), generator=torch.Generator().manual_seed(subject.seed))
    rows = rows[: ROWS.get(backbone.device.type, ROWS["cpu"])].sort().values
    table, order = table.take(rows), Arrangement(torch.arange(len(rows)))
    head = [(subject.trained["R1"][0].head, None)]
    for name, train_mode in (("R1_dropout_off", False), ("R1_dropout_on", True)):
        states = LiveStates(
            backbone,
            table,
            scoring_of(material.settings, material.protocol),
            dtype=getattr(torch, material.feature_dtype),
            train_mode=train_mode,
        )
        with torch.random.fork_rng():
            torch.manual_seed(subject.seed)
            nll = evaluate(head, states, order, material.weight, rows=32)[0].cpu()
        out[name] = float(average(nll, states.counts))
    return out
