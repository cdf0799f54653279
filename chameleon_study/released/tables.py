"""Tables 1 and 2, published rows beside re-derived ones, their controls, and the walk to the honest procedure.

A stop of the walk is identified by its resolved protocol, so a switch that an experiment sets from the start and mends
later (the initialisation on Alpaca) is a step like any other.
"""

import math
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd

from ..claims.paper import paper
from ..claims.statistics import interval_text, mean_and_span
from ..records import Record, load_records
from .protocol import PRESETS

NOT_MEASURED = "not measured yet"
# these switches change what is averaged, so the losses before and after are not comparable
YARDSTICK = ("objective", "ignored", "average", "reads", "split", "reported")
ReleasedTable = namedtuple("ReleasedTable", "table backbone corpus length protocol rows experiment")


def is_released(record: Record) -> bool:
    """Whether a record was made under a protocol, see protocol.py."""
    return "protocol" in record.data


def released_table(record: Record) -> ReleasedTable:
    """The table that a released record belongs to: records that differ in any part of it are no seeds of one.

    A corpus and a part of it may have one name, and other training rows; two experiments may differ in what no other
    part says, such as their validation rows.
    """
    length, rows = record.settings["tokens"]["max_length"], record.data["documents"]["train"]
    of = (table_of(record), record.backbone, record.corpus, length, protocol_label(record))
    return ReleasedTable(*of, rows, record.experiment)


def released_frame(records: list[Record]) -> pd.DataFrame:
    """One row per table (see `released_table`) and regime, the paper's numbers beside ours."""
    groups: dict[tuple, list[Record]] = {}
    for record in filter(is_released, records):
        groups.setdefault((released_table(record), record.regime), []).append(record)
    frame = pd.DataFrame([_row(table, of_row) for (table, _), of_row in groups.items()])
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


def _row(own: ReleasedTable, records: list[Record]) -> dict:
    done, first = [r for r in records if r.status == "done"], records[0]
    published = next(t["rows"] for t in paper()["tables"] if t["table"] == own.table)
    published = {row["regime"]: row for row in published}.get(first.regime, {})
    return {
        **{name: getattr(own, name) for name in ("table", "protocol", "backbone", "corpus", "length")},
        "regime": first.regime,
        "n seeds": len(done),
        "published parameters": published.get("parameters"),
        "parameters": first.trainable_parameters or first.data["backbone_parameters"],
        "published train loss": published.get("train_loss"),
        "train loss": _text(done, "train_nll" if first.regime != "R0" else "train_eval_nll"),
        "published loss": published.get("validation_loss"),
        "loss": _text(done, "reported_nll"),
        "perplexity": f"{math.exp(min(_values(done, 'reported_nll').mean(), 700)):,.4f}" if done else "–",
        "full rows": int(_values(done, "full_rows").mean()) if done else 0,
        "loss of full rows": _text(done, "full_nll", 2),
        "loss of padded rows": _text(done, "padded_nll"),
        "training rows": own.rows,
        "validation rows": first.data["documents"]["validation"],
        "profile": first.profile,
        "command": first.provenance["command"],
    }


def _values(records: list[Record], metric: str) -> np.ndarray:
    return np.array([r.metrics[metric] for r in records if r.metrics.get(metric) is not None])


def _text(records: list[Record], metric: str, digits: int = 4) -> str:
    """Mean ± half of the 95 % t interval over seeds; the mean alone for one seed, a dash for none."""
    if not len(values := _values(records, metric)):
        return "–"
    return " ± ".join([f"{number:.{digits}f}" for number in mean_and_span(values)][: len(values)])


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
    """The table by padded length and training rows: one row per regime, with full rows, loss and its part on these."""
    table = stored_table(results, names)
    if "length" not in table:
        return table
    by, values = ["length", "training rows"], ["full rows", "loss", "loss of full rows"]
    table = table[table["loss"] != NOT_MEASURED].astype(dict.fromkeys(by, int))
    wide = table.pivot(index="regime", columns=by, values=values)
    wide.columns = [f"{what}, {length} tokens, {rows:,} rows" for what, length, rows in wide.columns]
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


def walk_frame(records: list[Record]) -> pd.DataFrame:
    """One row per stop, regime and seed, in order: step number, the switch just mended, loss and what was scored.

    `scored` counts the positions, and `rows` the rows, of the split whose loss is reported; `full rows` those of the
    validation split that have no padding.
    """
    honest, stops = PRESETS["honest"].model_dump(), {}
    for record in records:
        if switches := record.data.get("protocol"):
            # every step gives one more switch its honest value, so their number is a stop's place in the walk
            stops.setdefault(sum(switches[name] == honest[name] for name in switches), []).append(record)
    rows, before = [], {}
    for step, (_, of_stop) in enumerate(sorted(stops.items())):
        now = of_stop[0].data["protocol"]
        mended = next((name for name in before if now[name] != before[name]), "")
        before, split = now, "test" if now.get("reported") == "test" else "validation"
        for record in of_stop:
            row = {"step": step, "mended": mended, "same yardstick": bool(mended) and mended not in YARDSTICK}
            row |= {"corpus": record.corpus, "backbone": record.backbone}
            row |= {"regime": record.regime, "seed": record.seed, "loss": record.metrics["reported_nll"]}
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
        frame[f"change of {name}"] = table[regime].diff().apply(_change, axis=1).to_numpy()
    first, *_, last = regimes
    gap = (table[last] - table[first]).apply(_change, axis=1)
    frame[f"{regimes[last]} − {regimes[first]}"] = gap.to_numpy()
    frame["mended"] = frame["mended"].replace("", "(as released)")
    return frame.set_index("step")


def _change(values: pd.Series) -> str:
    """The mean over seeds with a sign, and [lowest, highest] where there are several; a dash for nothing."""
    values = values.dropna()
    if len(values) > 1:
        return interval_text(values.mean(), values.min(), values.max(), "+.4f")
    return f"{values.mean():+.4f}" if len(values) else "–"
