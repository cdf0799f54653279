"""Texts scored by a model that learns as it goes: each row is scored first, and learned from afterwards.

    JSONL ─ batches of rows ─ frozen states ─▶ loss frozen, learned ─▶ OUT.part ─ when complete ─▶ OUT
                                   └ the memory steps ─▶ STATE, every so many batches

No training set is needed, and the backbone stays as it is. Memory is one batch and the state, whatever the
file holds. A run that was killed goes on from STATE and ends with the same file and the same state. A model
that learns carries text from one row to the next: do not share one between people who must not read each
other's texts.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import files
from ..backbone import Backbone
from ..errors import UserError
from ..heads import LoraHead
from ..loss import HeadWeight, token_losses
from ..states import ScoredStates, hidden_rows
from ..streams.memory import HEAD, LearnSettings, Memory, fresh_start, start_of
from ..streams.online import LayerStates, OnlineClusters, layer_shapes
from ..text import Document, TokenTable, cumulative, ragged, tokenise
from .rows import Row, jsonl_rows
from .stream import windows

KINDS = ("global", "cluster")
RATES = {"head": 3e-3, "layers": 1e-3}
SAVED_EVERY = 16  # batches
PROMPTS = {"max_length": 256, "prefix_tokens": 16, "min_scored": 8, "condition_on": "prompt"}
SUMS = (
    "rows",
    "failed",
    "tokens",
    "frozen",
    "gap",
    "gap²",
    "gap·tokens",
    "tokens²",
)  # over the rows that were scored


@dataclass(frozen=True)
class LearnSummary:
    """A file of results: nats per token, learned minus frozen with its 95 % interval over rows, seconds."""

    rows: int
    failed: int
    tokens: int
    loss_frozen: float
    gain: float  # learned − frozen: below zero, learning helped
    low: float
    high: float
    skipped: int  # steps whose gradient was not finite
    seconds_scored: float
    seconds_learned: float

    def __str__(self) -> str:
        text = f"{self.rows:,} rows, {self.failed:,} failed; {self.tokens:,} scored tokens, {self.loss_frozen:.4f} nats"
        text += f" per token frozen, learning {self.gain:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"
        ratio = 1 + self.seconds_learned / max(self.seconds_scored, 1e-9)
        return f"{text}; {ratio:.1f} times as long as scoring alone, {self.skipped} steps skipped"


class LearningStream:
    """A frozen backbone and what it has learned so far; a call reads a batch of rows."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        memory: str = "global",
        clusters: int = 16,
        layers: bool = False,
        rank: int = 4,
        rate: float | None = None,
        start: LoraHead | None = None,
        settings: LearnSettings | None = None,
        prompts: dict | None = None,
    ) -> None:
        """memory: "global", or "cluster" for one per online cluster on top of it; start: a trained head.

        Raises UserError for another kind of memory, and for a trained head together with layers.
        """
        if memory not in KINDS:
            raise UserError(f"memory is {' or '.join(KINDS)}, not {memory!r}")
        if start is not None and layers:
            raise UserError("a trained head and layers that learn do not go together: leave one out")
        self.backbone, self.layers, self.prompts = backbone, layers, PROMPTS | (prompts or {})
        self.prompts["max_length"] = min(self.prompts["max_length"], backbone.max_length)
        self.settings, rank = settings or LearnSettings(), len(start.down) if start is not None else rank
        self.weight, shapes = (
            HeadWeight(backbone.head.weight, backbone.head.bias),
            {HEAD: (rank, backbone.width, backbone.vocab)},
        )
        if layers:
            shapes |= layer_shapes(backbone, rank)
        first = fresh_start(shapes, torch.Generator().manual_seed(0)) if start is None else start_of(start)
        slots = 1 + (clusters if memory == "cluster" else 0)
        rate = rate or RATES["layers" if layers else "head"]
        self.memory = Memory(shapes, first.to(backbone.device), torch.full((slots,), rate), self.settings)
        self.clusters = OnlineClusters(clusters, backbone.width) if memory == "cluster" else None
        self.sums, self.seconds = dict.fromkeys(SUMS, 0.0), [0.0, 0.0]  # scored, learned

    def __call__(self, rows: Sequence[Row]) -> list[dict]:
        """Results of a batch: tokens, loss, loss_frozen and cluster, or `error`; then it learns."""
        results = [
            {"row": row.number, "id": row.id, "error": row.error or "no text to score"} for row in rows
        ]
        documents = [
            Document(str(i), r.text, prompt=r.prompt)
            for i, r in enumerate(rows)
            if not r.error and r.text.strip()
        ]
        for d in documents:
            results[int(d.id)]["error"] = "too short: no scored tokens are left"
        try:
            table = tokenise(documents, self.backbone.tokenizer, **self.prompts) if documents else None
        except UserError:  # none is long enough
            table = None
        if table is not None:
            self._read(table, results)
        self.sums["rows"] += len(rows)
        self.sums["failed"] += sum("error" in result for result in results)
        return results

    def _read(self, table: TokenTable, results: list[dict]) -> None:
        started = time.perf_counter()
        table = table.take(np.argsort(table.lengths, kind="stable"))
        states, every = hidden_rows(self.backbone, table, np.arange(len(table))), torch.arange(len(table))
        frozen = ScoredStates(table, states, self.backbone.device)
        h, target, _ = frozen.batch(every)
        counts = frozen.counts.to(h.device)
        before = torch.segment_reduce(
            token_losses(h, target, self.weight, [None])[0].double(), "sum", lengths=counts, axis=0
        ).cpu()
        slots = torch.zeros(len(table), 1, dtype=torch.int64)
        if self.clusters is not None:
            slots = torch.cat([slots, 1 + self.clusters(prefix_vectors(table, states))[:, None]], 1)
        scored = time.perf_counter()
        after = self.memory.read(
            LayerStates(self.backbone, table) if self.layers else frozen, self.weight, every, slots
        ).cpu()
        self.seconds[0] += scored - started
        self.seconds[1] += time.perf_counter() - scored
        for place, name in enumerate(table.names):
            tokens, was, now = int(table.n_scored[place]), float(before[place]), float(after[place])
            result = results[int(name)]
            if not math.isfinite(was) or not math.isfinite(now):
                result["error"] = "loss is not finite"
                continue
            del result["error"]
            result |= {"tokens": tokens, "loss": now / tokens, "loss_frozen": was / tokens}
            result |= {"cluster": int(slots[place, 1]) - 1} if self.clusters is not None else {}
            gap = now - was
            for key, value in zip(SUMS[2:], (tokens, was, gap, gap**2, gap * tokens, tokens**2)):
                self.sums[key] += value

    def summary(self) -> LearnSummary:
        """What learning gained over the rows so far, and what it cost; rows count as independent."""
        _, _, tokens, frozen, gap, gap2, cross, tokens2 = self.sums.values()
        gain = gap / tokens if tokens else 0.0
        spread = gap2 - 2 * gain * cross + gain**2 * tokens2  # of gap − gain · tokens, squared and summed
        half = 1.96 * math.sqrt(max(spread, 0.0)) / tokens if tokens else 0.0
        counted = (int(self.sums[name]) for name in SUMS[:3])
        facts = (frozen / tokens if tokens else 0.0, gain, gain - half, gain + half, self.memory.skipped)
        return LearnSummary(*counted, *facts, *self.seconds)

    def state_dict(self) -> dict:
        """All that later results depend on."""
        own = {"memory": self.memory.state_dict(), "sums": dict(self.sums)}
        return own | ({"clusters": self.clusters.state_dict()} if self.clusters is not None else {})

    def load_state_dict(self, state: dict) -> None:
        """Continue exactly where `state` was taken; UserError for another memory's."""
        if ("clusters" in state) != (self.clusters is not None):
            raise UserError("the state is of a memory of another kind")
        self.memory.load_state_dict(state["memory"])
        self.sums = dict(state["sums"])
        if self.clusters is not None:
            self.clusters.load_state_dict(state["clusters"])


def prefix_vectors(table: TokenTable, states: np.ndarray) -> Tensor:
    """Mean hidden state (N, C) of each document's prefix, of length 1: known before a token is scored."""
    flat = states[ragged(table.offsets[:-1], table.prefix)].astype(np.float32)
    means = np.add.reduceat(flat, cumulative(table.prefix)[:-1]) / table.prefix[:, None]
    return torch.nn.functional.normalize(torch.from_numpy(means), dim=1)


def learn_file(
    backbone: Backbone,
    source: Path | str,
    out: Path | str,
    *,
    state: Path | str | None = None,
    resume: bool = False,
    **how,
) -> LearnSummary:
    """Score the rows of a JSONL file into another, learning from them as they pass, in bounded memory.

    state: where what is learned is kept, by default OUT.state; one that is there, of a finished run, is where
    learning begins; how: fields of `LearningStream`. With `resume` an interrupted run goes on, to the same
    file and state, bit for bit. Raises UserError for a missing input and for a part written with other
    settings or another input.
    """
    source, out = Path(source), Path(out)
    state, part = Path(state or out.with_name(out.name + ".state")), out.with_name(out.name + ".part")
    stream, marker = LearningStream(backbone, **how), out.with_name(out.name + ".part.state")
    if resume and out.is_file() and state.is_file() and not part.is_file():  # it is complete
        stream.load_state_dict(_loaded(state))
        return stream.summary()
    key, rows, size = _key(stream, source, how), 0, 0
    if resume and marker.is_file() and part.is_file():
        kept = _loaded(marker)
        if kept["key"] != key:
            raise UserError(f"{part} is of other settings or another input: leave out resume to start anew")
        rows, size = kept["rows"], kept["size"]
        stream.load_state_dict(kept["state"])
    elif state.is_file():
        stream.load_state_dict(_loaded(state) | {"sums": stream.sums})
    if not size:
        marker.unlink(missing_ok=True)  # of a run that is given up: its rows would not be in the part
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(part, "r+b" if size else "wb") as file:
        file.truncate(size)
        file.seek(size)
        batches = windows(islice(jsonl_rows(source), rows, None), stream.settings.batch_rows)
        for number, window in enumerate(batches, start=1):
            for result in stream(window):
                file.write((json.dumps(result, ensure_ascii=False) + "\n").encode())
            rows += len(window)
            if number % SAVED_EVERY == 0:
                file.flush()
                _save(marker, dict(key=key, rows=rows, size=file.tell(), state=stream.state_dict()))
    _save(state, stream.state_dict())
    os.replace(part, out)
    marker.unlink(missing_ok=True)
    return stream.summary()


def _loaded(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def _save(path: Path, value: dict) -> None:
    with files.atomic(path) as part:
        torch.save(value, part)


def _key(stream: LearningStream, source: Path, how: dict) -> str:
    """Hex name of everything that a result depends on; UserError for a missing input."""
    if not source.is_file():
        raise UserError(f"no file at {source}; give a .jsonl file with one object or string per line")
    settings = {name: value for name, value in how.items() if name not in ("settings", "start")}
    settings |= {
        "prompts": stream.prompts,
        "learn": stream.settings.model_dump(),
        "backbone": stream.backbone.hash,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(stream.memory.start.cpu().numpy().tobytes())
    digest.update(files.sha256(source).encode())
    return digest.hexdigest()
