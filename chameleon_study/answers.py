"""Does an Instruct model answer with its template, and do trained answers end? Counts on 200 held-out instructions.

    python -m chameleon_study.answers DATA    DATA holds alpaca/alpaca.jsonl

    1,200 records ─ fit, a LoRA head ─▶ adapter ─┬─ the next 200 prompts, continued greedily ─▶ results/answers.json
                     frozen: the same, its update 0 ─┘

Stored are counts, lengths in tokens and a hash of the continuations, no text.
"""

import hashlib
import json
import sys
from pathlib import Path

from torch import nn

from chameleon_lite import Backbone, adapt, fit, load_backbone
from chameleon_lite.app.fit_settings import FitSettings

from .own_texts import ALPACA_ROWS
from .provenance import ROOT, provenance
from .stored import ANSWERS, store_text

PROMPTS, NEW_TOKENS = 200, 128
SHORT = 32  # tokens of a reference that an answer of NEW_TOKENS could easily hold
GOALS = {"non-empty": 0.95, "stopped": 0.9}  # shares: of all prompts, and of those with a short reference
# the candidate that `fit` keeps on these records, see own_texts
SETTINGS = FitSettings(head="lora", rank=133)


def measured(rows: list[dict], backbone: Backbone, settings: FitSettings, prompts: int, limit: int) -> dict:
    """Fit on all rows but the last `prompts`, and continue those by at most `limit` tokens, trained and frozen."""
    given, held_out = rows[:-prompts], rows[-prompts:]
    fitted = fit(given, backbone=backbone, settings=settings, progress=False)
    written = backbone.tokenizer([row["output"] for row in held_out], add_special_tokens=False)
    references = [len(ids) for ids in written["input_ids"]]
    prompted = [{name: row[name] for name in ("instruction", "input")} for row in held_out]
    found = {"trained": counted(adapt(fitted.model, prompted, new_tokens=limit), references, limit)}
    nn.init.zeros_(fitted.model.head.up)  # with an update of 0 it continues as the frozen model does
    found["frozen"] = counted(adapt(fitted.model, prompted, new_tokens=limit), references, limit)
    return {
        "settings": settings.model_dump(mode="json"),
        "chat": fitted.model.config.prompts.get("chat", False),
        "rows": len(given),
        "trained_on": fitted.trained_on,
        "test": {name: getattr(fitted, name) for name in ("before", "after", "low", "high", "held_out")},
        "limit": limit,
        "short": SHORT,
        "reference_tokens": references,
        "continuations": found,
    }


def counted(results: list[dict], references: list[int], limit: int) -> dict:
    """Counts of continuations, their lengths in tokens, and a hash of their texts; a failed one is empty."""
    texts = [result.get("continuation", "") for result in results]
    tokens = [result.get("tokens", limit) for result in results]
    short = [n for n, reference in zip(tokens, references) if reference <= SHORT]
    return {
        "prompts": len(texts),
        "failed": sum("error" in result for result in results),
        "non-empty": sum(bool(text.strip()) for text in texts),
        "short references": len(short),
        "stopped": sum(n < limit for n in short),
        "tokens": tokens,
        "sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
    }


def main(data: str, *, backbone: str = "smollm2", results: Path = ROOT / "results") -> None:
    """Measure on the records of `data` and store the counts in `results`."""
    facts = provenance("cpu", "python -m chameleon_study.answers DATA") | {"backbone": backbone}
    lines = (Path(data) / "alpaca" / "alpaca.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[: ALPACA_ROWS + PROMPTS]]
    record = measured(rows, load_backbone(backbone), SETTINGS, PROMPTS, NEW_TOKENS) | facts | {"goals": GOALS}
    store_text(results / ANSWERS, json.dumps(record, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
