"""L = f · L_full + (1 − f) · L_pad: the released loss taken apart into full rows and padded rows."""

from .store import Proof
from .subject import REGIMES, Subject


def prove(subject: Subject) -> Proof:
    """Score full and padded validation rows apart under the frozen model, LoRA and the hyper-network."""
    numbers: dict[str, float] = {}
    worst = 0.0
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
    numbers |= {
        "f": subject.trained["R1"][2]["full_share_weighted"],
        "full_rows": m["full_rows"],
        "largest_error_of_the_identity": worst,
    }
    return Proof(
        proof="decomposition",
        title="The loss is the share of full rows times their loss",
        audit=(1, 2, 3, 46),
        where="compute_loss (mode last), evaluate",
        shows=f"After training, full rows make {numbers['R1_share_of_loss_from_full_rows']:.1%} of the LoRA loss and "
        f"{numbers['R4_share_of_loss_from_full_rows']:.1%} of the hyper-network's: f = {numbers['f']:.4f} times "
        f"{numbers['R1_full_rows']:.2f} and {numbers['R4_full_rows']:.2f} nats, on {int(m['full_rows'])} rows.",
        numbers=numbers,
    )
