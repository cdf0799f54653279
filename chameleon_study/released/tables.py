"""Tables 1 and 2: published rows beside re-derived ones, and the controls beside them."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from ..claims.paper import table_rows
from ..claims.statistics import mean_and_span
from ..records import Record, load_records
from .protocol import PRESETS

NOT_MEASURED = "not measured yet"


def is_released(record: Record) -> bool:
    """Whether a record was made under a protocol, see protocol.py."""
    return "protocol" in record.data


def released_frame(records: list[Record]) -> pd.DataFrame:
    """One row per protocol, backbone, corpus, length and regime, the paper's numbers beside ours."""
    groups: dict[tuple, list[Record]] = {}
    for record in filter(is_released, records):
        length = record.settings["tokens"]["max_length"]
        key = (protocol_label(record), record.backbone, record.corpus, length, record.regime)
        groups.setdefault(key, []).append(record)
    frame = pd.DataFrame([_row(key, of_key) for key, of_key in groups.items()])
    return frame.astype({"published parameters": "Int64"}) if len(frame) else frame


def protocol_label(record: Record) -> str:
    """The preset's name, and the switches that differ from it."""
    chosen = record.settings["protocol"]
    switches, base = record.data["protocol"], PRESETS[chosen["preset"]].model_dump()
    changed = [f"{name}={switches[name]}" for name in base if switches[name] != base[name]]
    return " + ".join([chosen["preset"], *changed])


def table_of(record: Record) -> int:
    """Which of the paper's tables a record's corpus belongs to: instructions are Table 2."""
    return 2 if "alpaca" in record.corpus or "instructions" in record.corpus else 1


def _row(key: tuple, records: list[Record]) -> dict:
    protocol, backbone, corpus, length, regime = key
    done, first = [r for r in records if r.status == "done"], records[0]
    paper = {row["regime"]: row for row in table_rows(table_of(first))}.get(regime, {})
    return {
        "table": table_of(first),
        "protocol": protocol,
        "backbone": backbone,
        "corpus": corpus,
        "length": length,
        "regime": regime,
        "n seeds": len(done),
        "published parameters": paper.get("parameters"),
        "parameters": first.trainable_parameters or first.data["backbone_parameters"],
        "published train loss": paper.get("train_loss"),
        "train loss": _text(done, "train_nll" if regime != "R0" else "train_eval_nll"),
        "published loss": paper.get("validation_loss"),
        "loss": _text(done, "reported_nll"),
        "perplexity": f"{math.exp(min(_values(done, 'reported_nll').mean(), 700)):,.4f}" if done else "–",
        "full rows": int(_values(done, "full_rows").mean()) if done else 0,
        "loss of full rows": _text(done, "full_nll", 2),
        "loss of padded rows": _text(done, "padded_nll"),
        "training rows": first.data["documents"]["train"],
        "validation rows": first.data["documents"]["validation"],
        "profile": first.profile,
        "command": first.provenance["command"],
    }


def _values(records: list[Record], metric: str) -> np.ndarray:
    return np.array([r.metrics[metric] for r in records if r.metrics.get(metric) is not None])


def _text(records: list[Record], metric: str, digits: int = 4) -> str:
    """Mean ± half of the 95 % t interval over seeds; the mean alone for one seed, a dash for none."""
    values = _values(records, metric)
    if not len(values):
        return "–"
    texts = [f"{number:.{digits}f}" for number in mean_and_span(values)]
    return " ± ".join(texts[: len(values)])


def _records(results: Path, name: str) -> list[Record]:
    path = Path(results) / f"{name}.jsonl"
    return load_records(path) if path.is_file() else []


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with dashes for what is absent; a whole number stays one where another row has nothing."""
    frame = frame.astype(object)
    return frame.where(frame.notna(), "–")


def stored_table(results: Path, names: list[str]) -> pd.DataFrame:
    """The released tables of named experiments; one that was not run is a row of NOT_MEASURED."""
    frames = []
    for name in names:
        frame = released_frame(_records(results, name))
        frame = frame if len(frame) else pd.DataFrame([{"loss": NOT_MEASURED}])
        frame.insert(0, "experiment", name)
        frames.append(frame.astype(object).dropna(axis=1, how="all"))
    return _shown(pd.concat(frames, ignore_index=True))


def circumstances(results: Path, names: list[str]) -> pd.DataFrame:
    """One row per named experiment: its protocol or NOT_MEASURED, what was read, seeds and command."""
    table = stored_table(results, names)
    columns = "experiment protocol backbone corpus length".split()
    columns += ["training rows", "validation rows", "n seeds", "command"]
    frame = table.reindex(columns=columns).rename(columns={"n seeds": "seeds"})
    frame.loc[table["loss"] == NOT_MEASURED, "protocol"] = NOT_MEASURED
    return _shown(frame.drop_duplicates("experiment"))


def controls_frame(results: Path, names: list[str]) -> pd.DataFrame:
    """The hyper-network's (R4) released loss minus its controls', seed by seed: mean and 95 % t interval.

    R1 and R2 are static, R3 reads a constant: what R4 does not have over them is not its batch's context.
    """
    rows = []
    for name in names:
        loss = _metrics(results, name, "reported_nll")
        for other in ("R1", "R2", "R3"):
            gaps = [loss["R4", s] - loss[other, s] for r, s in loss if r == other and ("R4", s) in loss]
            if len(gaps) > 1:
                mean, span = mean_and_span(gaps)
                low, high = mean - span, mean + span
                order = "lower" if high < 0 else "higher" if low > 0 else "not told apart"
                rows.append((name, f"R4 − {other}", mean, low, high, len(gaps), order))
    columns = ["experiment", "difference", "nats", "low", "high", "n seeds", "R4's loss"]
    return pd.DataFrame(rows, columns=columns)


def _metrics(results: Path, name: str, metric: str) -> dict[tuple[str, int], float]:
    done = [r for r in _records(results, name) if r.status == "done" and metric in r.metrics]
    return {(r.regime, r.seed): r.metrics[metric] for r in done}


def lengths_frame(results: Path, names: list[str]) -> pd.DataFrame:
    """The table by padded length: one row per regime, with full rows, loss and its part on these."""
    table = stored_table(results, names)
    if "length" not in table:
        return table
    table = table[table["loss"] != NOT_MEASURED].astype({"length": int})
    wide = table.pivot(index="regime", columns="length", values=["full rows", "loss", "loss of full rows"])
    wide.columns = [f"{what}, {length} tokens" for what, length in wide.columns]
    wide.insert(0, "published loss", table.groupby("regime")["published loss"].first())
    return wide


def dropout_frame(results: Path, cached: str, live: str) -> pd.DataFrame:
    """The un-cached control beside the cached run of its seed; lowest and highest are over all seeds."""
    rows = []
    epochs = [_metrics(results, name, "best_epoch") for name in (cached, live)]
    for what, metric in (("validation loss", "reported_nll"), ("running training loss", "train_nll")):
        base, controls = (_metrics(results, name, metric) for name in (cached, live))
        for (regime, seed), control in controls.items():
            if (run := base.get((regime, seed))) is not None:
                values = [loss for (r, _), loss in base.items() if r == regime]
                losses = (run, control, control - run, min(values), max(values))
                rows.append((what, regime, seed, *losses, *(int(of[regime, seed]) for of in epochs)))
    columns = ["what", "regime", "seed", "cached", "live", "change", "lowest cached", "highest cached"]
    return pd.DataFrame(rows, columns=[*columns, "epoch, cached", "epoch, live"])
