"""Which validation rows the Alpaca script has trained on."""

from ..protocol import preset
from ..released_material import documents_by_split
from .store import Proof
from .subject import Subject


def prove(subject: Subject) -> Proof | None:
    """Share of validation rows that are training rows, as released and disjoint; None without instructions."""
    if not subject.prompts:
        return None
    numbers = {}
    for name in ("as_released", "honest"):
        protocol = preset(name)
        splits = documents_by_split(subject.settings, protocol, subject.material.corpus)
        rows = {split: {(d.prompt, d.text) for d in part} for split, part in splits.items()}
        instructions = {split: {d.prompt for d in part} for split, part in splits.items()}
        inside, validation = rows["train"] & rows["validation"], rows["validation"]
        numbers |= {
            f"{name}_validation_rows": float(len(splits["validation"])),
            f"{name}_rows_also_trained_on": len(inside) / len(validation),
            f"{name}_prompts_also_trained_on": len(instructions["train"] & instructions["validation"])
            / len(instructions["validation"]),
        }
    return Proof(
        proof="alpaca_overlap",
        title="Alpaca is validated on rows that were trained on",
        audit=(23,),
        where="the loading of the data in main_alpaca.py",
        shows=f"{numbers['as_released_rows_also_trained_on']:.0%} of the released validation rows are training rows; "
        f"{numbers['honest_rows_also_trained_on']:.0%} under the disjoint split.",
        numbers=numbers,
    )
