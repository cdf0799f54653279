"""The whole grid on one device: units in a fixed order, each kept as soon as it is done.

OUT/records.jsonl      one line per unit: rates tried, nats per token by order, seconds, bytes
OUT/documents.parquet  a row per document of the stream, a column of nats per method, order and batch size
OUT/statics/           the static heads, 16-bit
results/streams/       what `pack` stores: records, documents and, where it was made, diagram.csv
"""

import fnmatch
import json
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from chameleon_lite import files
from chameleon_lite.app.corpus import Corpus
from chameleon_lite.backbone import Backbone
from chameleon_lite.errors import UserError

from ..provenance import default_command, peak_memory, provenance, reset_peak
from ..records import REFUSED_BACKBONES
from ..stored import read, read_losses, storing
from .material import PROFILES, Material, StreamSettings, prepare
from .methods import METHODS, STATICS
from .rivals import RIVALS, tuned
from .units import BATCH, Reading, robustness, static_nll, streams_of, train_static

SMALL = ((8, "S1"), (8, "S2-hidden-16"), (1, "S1"), (8, "S3"))  # other batch sizes; the longest last
ROBUST = ("S1", "S2-hidden-16", "S3")
ANY = "any"  # the order of a method that orders do not change
COLUMNS = {"document", "source", "tokens"}
FEW_ORDERS = {"knn": 3, "S4": 3, "S4-updated": 3, "S6": 1}  # one order after the other; S6 is a bound only


class Store:
    """A folder of results; what was kept under another key (settings, corpus, backbone) is refused.

    Without a key it is there to be read. DamagedFile where a folder with checksums holds other content.
    """

    def __init__(self, folder: Path, key: str = "", documents: pd.DataFrame | None = None) -> None:
        self.folder, self.key = folder, key
        self.path, self.table = folder / "records.jsonl", folder / "documents.parquet"
        lines = read(self.path).splitlines() if self.path.is_file() else []
        self.records = {r["unit"]: r for r in map(json.loads, lines)}
        if key and (other := {r["key"] for r in self.records.values()} - {key}):
            raise UserError(f"{folder} holds another run ({min(other)}, not {key}): give another --out")
        self.frame = read_losses(self.table, COLUMNS) if self.table.is_file() else documents

    def keep(self, unit: str, record: dict, columns: dict[str, Tensor]) -> None:
        """Add a unit's record and columns (M,); the record last, so that a unit with one is whole."""
        if not columns:
            return self._record(unit, record)
        new = {name: np.round(nll.numpy(), 2).astype(np.float32) for name, nll in columns.items()}
        self.frame = pd.concat([self.frame.drop(columns=[*new], errors="ignore"), pd.DataFrame(new)], axis=1)
        with files.atomic(self.table) as part:
            self.frame.to_parquet(part, index=False, compression="zstd")
        self._record(unit, record)

    def _record(self, unit: str, record: dict) -> None:
        self.records[unit] = {"unit": unit, "key": self.key} | record
        with files.atomic(self.path) as part:
            part.write_text("".join(json.dumps(r) + "\n" for r in self.records.values()), encoding="utf-8")

    def losses(self, batch: int = BATCH) -> dict[tuple[str, str], np.ndarray]:
        """(method, order) to sums of nats (M,); a method without orders is there for each."""
        columns = [c.split("|") for c in self.frame.columns if c.count("|") == 2]
        orders = sorted({order for _, order, size in columns if size == str(batch)} - {ANY})
        out = {}
        for name, order, size in columns:
            if size == str(batch) or order == ANY:
                nll = self.frame[f"{name}|{order}|{size}"].to_numpy(float)
                out |= {(name, o): nll for o in (orders if order == ANY else [order])}
        return out


class Run:
    """The units of a run and what they share."""

    def __init__(self, material: Material, store: Store) -> None:
        self.material, self.store = material, store
        self.statics: dict[str, Tensor] = {}

    def units(self) -> Iterator[tuple[str, Callable[[], tuple[dict, dict]]]]:
        """(name, work) in the order of the run: what the registered contrasts need first."""
        heads = [m for m in METHODS.values() if m.kind == "head"]
        layers = [m for m in METHODS.values() if m.kind == "layers"]
        for name in (*STATICS, "frozen", "frozen-live"):
            yield f"static {name}", partial(self._static, name)
        for method in (*heads, *layers):
            yield f"stream {method.name}", partial(self._method, method, BATCH)
        for name in RIVALS:
            yield f"stream {name}", partial(self._rival, name)
        for name in ROBUST:
            yield f"robust {name}", partial(self._robust, METHODS[name])
        for batch, name in SMALL:
            yield f"batches of {batch} {name}", partial(self._method, METHODS[name], batch)

    def static(self, name: str) -> Tensor:
        """A trained static head (1, P), from the store's folder where it is there."""
        path = self.store.folder / "statics" / f"{name}.safetensors"
        if name not in self.statics:
            if not path.is_file():
                start, record = train_static(self.material, name)
                with files.atomic(path) as part:
                    save_file({"head": start.cpu().contiguous()}, part)
                self.store.keep(f"training {name}", record, {})
            self.statics[name] = load_file(path)["head"].to(self.material.backbone.device)
        return self.statics[name]

    def _static(self, name: str) -> tuple[dict, dict]:
        statics = {name: self.static(name)} if name in STATICS else {}
        nll = static_nll(self.material, name, statics)
        return {"method": name, "batch": BATCH}, {f"{name}|{ANY}|{BATCH}": nll}

    def _method(self, method, batch: int) -> tuple[dict, dict]:
        names = [name for name in (method.start, method.base) if name]
        reading = Reading(self.material, method, {name: self.static(name) for name in names})
        tried = reading.tune(batch)
        rate = float(min(tried, key=tried.get))
        orders = streams_of(self.material)
        if batch != BATCH:
            orders = {name: rows for name, rows in orders.items() if name.startswith("random")}
        nll, memory = reading.read("stream", [*orders.values()], [rate] * len(orders), batch)
        slots = len(memory.values) // len(orders)
        record = {"method": method.name, "batch": batch, "rate": rate, "rates": tried}
        record |= {"at_edge": rate in (method.rates[0], method.rates[-1]), "slots": slots}
        record |= {
            "bytes_per_memory": memory.bytes_per_slot,
            "skipped": memory.skipped,
            "failed": memory.failed,
        }
        if batch == BATCH:
            record["seconds_per_1000_tokens"] = reading.cost(rate)
        return record, {f"{method.name}|{o}|{batch}": self._placed(orders[o], n) for o, n in zip(orders, nll)}

    def _rival(self, name: str) -> tuple[dict, dict]:
        settings, tried = tuned(self.material, name, BATCH)
        part, columns = self.material.parts["stream"], {}
        started = time.perf_counter()
        count = min(FEW_ORDERS.get(name, 99), self.material.settings.orders)
        for seed in range(count):
            order = part.order("random", seed)
            nll = RIVALS[name](self.material, part, order, BATCH, settings or None)[settings]
            columns[f"{name}|random-{seed}|{BATCH}"] = self._placed(order, nll)
        tokens = self.material.facts["tokens"]["stream"] * count
        seconds = (time.perf_counter() - started) / tokens * 1_000
        record = {"method": name, "batch": BATCH, "settings": settings, "rates": tried}
        return record | {"seconds_per_1000_tokens": seconds}, columns

    def _robust(self, method) -> tuple[dict, dict]:
        reading = Reading(self.material, method, {})
        rate = self.store.records.get(f"stream {method.name}", {}).get("rate")
        if rate is None:
            tried = reading.tune()
            rate = float(min(tried, key=tried.get))
        return {"method": method.name, "rate": rate, "nats": robustness(self.material, reading, rate)}, {}

    def _placed(self, order: Tensor, nll: Tensor) -> Tensor:
        """Sums in an order (n,) to sums by document (M,)."""
        out = torch.full((self.material.parts["stream"].scored,), torch.nan, dtype=torch.float64)
        out[order] = nll
        return out


def run_streams(
    settings: StreamSettings,
    backbone: Backbone,
    corpus: Corpus,
    out: Path,
    only: list[str] | None = None,
    seconds: float | None = None,
    say: Callable[[str], None] = print,
) -> Store:
    """Every unit that is not kept yet and matches a pattern of `only`; none is begun after `seconds`."""
    began = time.perf_counter()
    material = prepare(settings, backbone, corpus, say)
    part = material.parts["stream"]
    table = part.table.take(np.arange(part.scored))
    documents = pd.DataFrame({"document": table.names, "source": table.groups, "tokens": table.n_scored})
    documents = documents.astype({"source": "category", "tokens": np.int32})
    key = f"{settings.key()}-{corpus.hash[:8]}-{backbone.hash[:8]}"
    store = Store(Path(out), key, documents)
    store.folder.mkdir(parents=True, exist_ok=True)
    run, device = Run(material, store), backbone.device
    for unit, work in run.units():
        wanted = only is None or any(fnmatch.fnmatchcase(unit, pattern) for pattern in only)
        if unit in store.records or not wanted:
            continue
        if seconds is not None and time.perf_counter() - began > seconds:
            say(f"{unit} and what follows are left for another run")
            break
        reset_peak(device)
        started = time.perf_counter()
        record, columns = work()
        tokens = float(documents["tokens"].sum())
        nats = {name.split("|")[1]: float(nll.sum()) / tokens for name, nll in columns.items()}
        took = {"seconds": time.perf_counter() - started, "peak_memory_bytes": peak_memory(device)}
        facts = material.facts | {
            "settings": settings.model_dump(mode="json"),
            "preparation": material.seconds,
        }
        origin = {"data": facts, "provenance": provenance(str(device), default_command())}
        store.keep(unit, record | {"nats_per_token": nats} | took | origin, columns)
        say(f"{took['seconds']:7.1f} s  {unit}  " + " ".join(f"{o} {v:.4f}" for o, v in nats.items()))
    return store


def pack(folder: Path, results: Path) -> None:
    """Store a finished run's files in `results` with their checksums.

    UserError for what pages may not show: the smoke profile, and backbones of random weights.
    """
    facts = [r["data"] for r in Store(folder).records.values() if "data" in r]
    smoke = PROFILES["smoke"].model_dump(mode="json")
    if any(f["settings"] == smoke or f["backbone"].startswith(REFUSED_BACKBONES) for f in facts):
        raise UserError(f"{folder} is of the smoke profile or a random backbone: no result to be stored")
    results.mkdir(parents=True, exist_ok=True)
    for name in ("records.jsonl", "documents.parquet", "diagram.csv"):
        if (folder / name).is_file():
            with storing(results / name) as part:
                shutil.copyfile(folder / name, part)
