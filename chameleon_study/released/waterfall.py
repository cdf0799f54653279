"""The path from the released to the honest procedure: its stops, and the effect of each mended switch.

    waterfall-*.jsonl ─ walk_frame ─▶ a row per stop, regime and seed ─ steps_frame ─▶ a row per stop

A stop is identified by its resolved protocol, so a switch that is set from the start and mended later is
a step like any other. Some switches change the yardstick: which positions are scored, or how they are
averaged. Losses on the two sides of such a step are means over different things.
"""

import pandas as pd

from ..claims.statistics import interval_text
from ..records import Record
from .protocol import PRESETS

# these switches change what is averaged, so the losses before and after are not comparable
YARDSTICK = ("objective", "ignored", "average", "reads", "split", "reported")


def walk_frame(records: list[Record]) -> pd.DataFrame:
    """One row per stop, regime and seed, in order: the switch just mended, loss and what was scored.

    `scored` counts positions and `rows` rows of the split whose loss is reported, `full rows` those of the
    validation split without padding.
    """
    honest, stops = PRESETS["honest"].model_dump(), {}
    for record in records:
        if switches := record.data.get("protocol"):
            # every step gives one more switch its honest value, so their number is a stop's place in the walk
            place = sum(switches[name] == honest[name] for name in switches)
            stops.setdefault(place, []).append(record)
    rows, before = [], {}
    for step, (_, of_stop) in enumerate(sorted(stops.items())):
        now = of_stop[0].data["protocol"]
        mended = next((name for name in before if now[name] != before[name]), "")
        before, split = now, "test" if now.get("reported") == "test" else "validation"
        for record in of_stop:
            row = {"step": step, "mended": mended, "same yardstick": bool(mended) and mended not in YARDSTICK}
            row |= {"corpus": record.corpus, "backbone": record.backbone}
            row |= {"regime": record.regime, "seed": record.seed, "loss": record.metrics["reported_nll"]}
            row |= {"validation loss": record.metrics["validation_nll"]}
            row |= {"scored": record.data["scored_tokens"][split], "rows": record.data["documents"][split]}
            rows.append(row | {"full rows": record.data["full_rows"]["validation"]})
    frame = pd.DataFrame(rows)
    return frame.sort_values(["step", "regime", "seed"], ignore_index=True) if rows else frame


def steps_frame(walk: pd.DataFrame, regimes: dict[str, str]) -> pd.DataFrame:
    """One row per stop: each regime's mean loss and its change, the last regime minus the first."""
    index = ["step", "mended", "same yardstick", "rows", "scored"]
    table = walk.pivot(index=index, columns=["regime", "seed"], values="loss")
    frame = table.index.to_frame(index=False)
    same = frame["same yardstick"].map({True: "yes", False: "no"})
    frame["same yardstick"] = same.where(frame["mended"] != "", "–")
    for regime, name in regimes.items():
        frame[name] = table[regime].mean(axis=1).round(4).to_numpy()
        frame[f"change of {name}"] = table[regime].diff().apply(_text, axis=1).to_numpy()
    first, *_, last = regimes
    gap = (table[last] - table[first]).apply(_text, axis=1)
    frame[f"{regimes[last]} − {regimes[first]}"] = gap.to_numpy()
    frame["mended"] = frame["mended"].replace("", "(as released)")
    return frame.set_index("step")


def _text(values: pd.Series) -> str:
    """The mean over seeds with a sign, and [lowest, highest] where there are several; a dash for nothing."""
    values = values.dropna()
    if len(values) > 1:
        return interval_text(values.mean(), values.min(), values.max(), "+.4f")
    return f"{values.mean():+.4f}" if len(values) else "–"
