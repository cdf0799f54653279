"""The registered contrasts of the stream study, decided by the rules of `experiments/streams.yaml`."""

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from ..claims.statistics import Contrast, contrast, holm, verdict

REGISTERED = Path(__file__).resolve().parents[2] / "experiments" / "streams.yaml"
WORDS = {"confirmed": "supported", "refuted": "contradicted"}  # of `verdict`; its other words stay
DRAWS = 2_000


def decided(rule: str, c: Contrast, adjusted_p: float, margin: float) -> str:
    """supported, equivalent, contradicted or not decidable here, by the rule "lower" or "equal"."""
    if rule == "lower":
        word = verdict(c, adjusted_p, margin)
        return WORDS.get(word, word)
    if -margin < c.low90 and c.high90 < margin:
        return "equivalent"
    return "contradicted" if c.low > margin or c.high < -margin else "not decidable here"


def verdict_frame(losses: dict[tuple[str, str], np.ndarray], tokens: np.ndarray) -> pd.DataFrame:
    """One row per registered contrast that both methods are there for.

    losses: (method, order) to sums of nats (N,) by document; tokens (N,). Orders that both methods have
    count.
    """
    plan = yaml.safe_load(REGISTERED.read_text(encoding="utf-8"))
    found: dict[str, Contrast] = {}
    for name, c in plan["contrasts"].items():
        orders = [o for m, o in losses if m == c["first"] and (c["second"], o) in losses]
        orders = sorted(o for o in orders if o.startswith(plan["orders"]))
        if orders:
            first, second = (np.stack([losses[c[side], o] for o in orders]) for side in ("first", "second"))
            found[name] = contrast(first, second, tokens, draws=DRAWS)
    adjusted = holm({name: c.p for name, c in found.items()})
    rows = []
    for name, c in found.items():
        said = plan["contrasts"][name]
        word = decided(said["rule"], c, adjusted[name], plan["margin"])
        rows.append({"contrast": name, "first": said["first"], "second": said["second"]} | c.row())
        rows[-1] |= {"low90": c.low90, "high90": c.high90, "adjusted p": adjusted[name]}
        rows[-1] |= {"orders": c.n, "documents": c.documents, "verdict": word}
    return pd.DataFrame(rows)
