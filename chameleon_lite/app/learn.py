"""Texts scored by a model that learns as it goes: each row is scored first, and learned from afterwards.

    rows of a batch ─ states ─┬─▶ nats without learning: the backbone, or an adapter on it, as it is
                              └─ memory ─▶ nats with what earlier batches left ─ only then ─▶ a step

No training set is needed, and the weights stay as they are. Memory is one batch and the state, whatever has passed. A
model that learns carries text from one row to the next: do not share one between people who must not read each
other's texts.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..backbones.adapters import Writing
from ..conditions import grouped
from ..embed import mean_embeddings, normalise
from ..errors import RunFailed, UserError, unknown
from ..heads import HeadUpdate
from ..loss import HeadWeight, token_losses
from ..settings import TokenSettings
from ..states import ScoredStates, hidden_rows
from ..streams.memory import HEAD, LearnSettings, Memory, fresh_start
from ..streams.online import LayerStates, OnlineClusters, layer_shapes
from ..text import TokenTable, cumulative, ragged, tokenise
from .chat import Writer, document_of, tail
from .rows import Row
from .score import LONGEST_TOKEN, cuts_of

KINDS = ("global", "cluster")
RATES = {False: 3e-3, True: 1e-3}  # of a head alone, and with layers: the best of a tuning stream
OVERFLOW = "its hidden states are not finite"
SUMS = "rows failed tokens without gap gap² gap·tokens tokens²".split()  # of scored rows, but "failed"


@dataclass(frozen=True)
class LearnSummary:
    """What learning gained: nats per token, with minus without and its 95 % interval over paired rows, seconds.

    The interval takes rows as independent.
    """

    rows: int
    failed: int
    tokens: int
    loss_without: float
    gain: float  # below zero, learning helped
    low: float
    high: float
    skipped: int  # steps whose numbers were not finite
    seconds_scored: float
    seconds_learned: float
    first_error: str = ""

    def __str__(self) -> str:
        first = f" (first: {self.first_error})" if self.first_error else ""
        text = f"{self.rows:,} rows, {self.failed:,} failed{first}; {self.tokens:,} scored tokens, "
        text += f"{self.loss_without:.4f} nats per token without learning, {self.loss_without + self.gain:.4f} with it "
        text += f"({self.gain:+.4f}, 95 % interval {self.low:+.4f} to {self.high:+.4f})"
        if both := self.seconds_scored + self.seconds_learned:  # none where nothing was left to do
            text += f"; {both:.1f} s, {both / self.seconds_scored:.1f} times as long as scoring alone"
        return text + (f"; {self.skipped:,} steps that were not finite are skipped" if self.skipped else "")


class LearningStream:
    """A backbone, or a saved adapter's model, and what has been learned on top of it; a call reads a batch of rows."""

    def __init__(
        self,
        model,
        *,
        memory: str = "global",
        clusters: int = 16,
        layers: bool = False,
        rank: int = 4,
        rate: float | None = None,
        settings: LearnSettings | None = None,
    ) -> None:
        """memory: "global", or "cluster" for one per online cluster of hidden states on top of it, else UserError.

        rate: how far a step moves a number, about; layers: learn factors in every layer too, which takes longer.
        """
        if memory not in KINDS:
            raise unknown("memory", memory, KINDS)
        self.adapter, self.backbone = (model, model.backbone) if hasattr(model, "backbone") else (None, model)
        self.settings = settings or LearnSettings()
        self.how = {"memory": memory, "clusters": clusters, "layers": layers, "rank": rank}
        prompts = self.adapter.config.prompts if self.adapter else {}
        self.writer = Writer(self.backbone.tokenizer, Writing(**prompts))
        cuts = TokenSettings(**cuts_of(prompts))
        longest = min(cuts.max_length, self.backbone.max_length)
        self.prompts = cuts.model_dump() | {"max_length": longest}
        head = self.backbone.head
        self.weight = HeadWeight(head.weight, head.bias)
        shapes = {HEAD: (rank, self.backbone.width, self.backbone.vocab)}
        shapes |= layer_shapes(self.backbone, rank) if layers else {}
        start = fresh_start(shapes, torch.Generator().manual_seed(0)).to(self.backbone.device)
        slots = 1 + (clusters if memory == "cluster" else 0)
        rates = torch.full((slots,), RATES[layers] if rate is None else rate)
        self.memory = Memory(shapes, start, rates, self.settings)
        self.clusters = OnlineClusters(clusters, self.backbone.width) if memory == "cluster" else None
        self.sums, self.seconds, self.first_error = dict.fromkeys(SUMS, 0.0), [0.0, 0.0], ""

    def __call__(self, rows: Sequence[Row]) -> list[dict]:
        """Results of a batch: tokens, loss, loss_without and cluster, or `error`; then it learns."""
        errors, limit, documents = {}, LONGEST_TOKEN * self.prompts["max_length"], []
        for i, row in enumerate(rows):
            errors[i] = row.error or "no text to score"
            if not row.error and row.text.strip():
                try:
                    d = self.writer.document(document_of(row, str(i)))
                except UserError as error:  # of the chat template
                    errors[i] = str(error)
                    continue
                documents.append(replace(d, text=d.text[:limit], prompt=tail(d.prompt, limit)))
                errors[i] = f"too short: fewer than {self.prompts['min_scored']} scored tokens are left"
        scored: dict[int, dict] = {}
        try:
            table = tokenise(documents, self.writer, **self.prompts) if documents else None
        except UserError:  # none is long enough
            table = None
        if table is not None:
            scored = self._read(table, errors)
        results = [scored.get(i, {"error": errors[i]}) for i in range(len(rows))]
        self.sums["rows"] += len(rows)
        self.sums["failed"] += len(rows) - len(scored)
        failed = [f"row {row.number}: {r['error']}" for row, r in zip(rows, results) if "error" in r]
        self.first_error = self.first_error or next(iter(failed), "")
        return [{"row": row.number, "id": row.id} | result for row, result in zip(rows, results)]

    @torch.no_grad()
    def _read(self, table: TokenTable, errors: dict[int, str]) -> dict[int, dict]:
        """Facts of each row of the table that could be scored, by its place in the batch, once it is learned from."""
        started = time.perf_counter()
        table, states = self._states(table, errors)
        if not len(table):
            return {}
        # clusters must not depend on lengths, which scored tokens change
        arrival = np.argsort([int(name) for name in table.names])
        rows, data = torch.from_numpy(arrival), ScoredStates(table, states, self.backbone.device)
        below = self._below(table)
        below = below and (below[0], below[1].cpu()[rows])
        h, target, row = data.batch(rows)
        groups = [None] if below is None or below[0].groups == 1 else [below[1][row]]
        each = token_losses(h, target, self.weight, [below and below[0]], groups)[0]
        lengths = data.counts[rows]
        before = torch.segment_reduce(each.double().cpu(), "sum", lengths=lengths, axis=0)  # (B,)
        slots = torch.zeros(len(rows), 1, dtype=torch.int64)
        if self.clusters is not None:
            slots = torch.cat([slots, 1 + self.clusters(prefix_vectors(table, states)[rows])[:, None]], 1)
        scored = time.perf_counter()
        if self.how["layers"]:
            data = LayerStates(self.backbone, table)
            data.learning_pass = None  # a recording would be made anew for every batch
        after = self.memory.read(data, self.weight, rows, slots, below=below).cpu()
        self.seconds[0] += scored - started
        self.seconds[1] += time.perf_counter() - scored
        out = {}
        numbers = zip(arrival, lengths.tolist(), before.tolist(), after.tolist(), slots[:, -1].tolist())
        for place, tokens, was, now, slot in numbers:
            name = int(table.names[place])
            if not math.isfinite(was) or not math.isfinite(now):
                errors[name] = "its loss is not finite"
                continue
            out[name] = {"tokens": tokens, "loss": now / tokens, "loss_without": was / tokens}
            out[name] |= {"cluster": slot - 1} if self.clusters is not None else {}
            gap = now - was
            for key, value in zip(SUMS[2:], (tokens, was, gap, gap**2, gap * tokens, tokens**2)):
                self.sums[key] += value
        return out

    def _states(self, table: TokenTable, errors: dict[int, str]) -> tuple[TokenTable, np.ndarray]:
        """The table by length and its states (L, C), without the rows whose states are not finite."""
        table = table.take(np.argsort(table.lengths, kind="stable"))
        try:
            return table, hidden_rows(self.backbone, table, np.arange(len(table)))
        except RunFailed:
            if len(table) == 1:
                errors[int(table.names[0])] = OVERFLOW
                return table.take(np.arange(0)), np.empty((0, self.backbone.width), np.float16)
        parts = [self._states(table.take(np.array([i])), errors) for i in range(len(table))]
        good = np.array([i for i, (part, _) in enumerate(parts) if len(part)], dtype=np.int64)
        return table.take(good), np.concatenate([states for _, states in parts])

    def _below(self, table: TokenTable) -> tuple[HeadUpdate, Tensor] | None:
        """The adapter's updates of G groups and each row's group (B,): of the nearest stored centroid, or its own.

        Neither depends on the other rows, so that no later row changes an earlier one's loss.
        """
        if self.adapter is None:
            return None
        vectors, mode = mean_embeddings(table, self.backbone.embedding), "centroid"
        groups = grouped(vectors, self.adapter.centroids, mode if len(self.adapter.centroids) else "row")
        update = self.adapter.update_for(groups.condition)
        group = groups.group if update.groups > 1 else torch.zeros_like(groups.group)
        return HeadUpdate(update.down, update.up * self.adapter.config.scale), group

    def summary(self) -> LearnSummary:
        """What learning gained over the rows so far, in nats per token, and what it cost in seconds of this process."""
        _, _, tokens, without, gap, gap2, cross, tokens2 = self.sums.values()
        gain = gap / tokens if tokens else 0.0
        spread = gap2 - 2 * gain * cross + gain**2 * tokens2  # of gap − gain · tokens, squared and summed
        half = 1.96 * math.sqrt(max(spread, 0.0)) / tokens if tokens else 0.0
        counted = (int(self.sums[name]) for name in SUMS[:3])
        facts = (without / tokens if tokens else 0.0, gain, gain - half, gain + half, self.memory.skipped)
        return LearnSummary(*counted, *facts, *self.seconds, self.first_error)

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors that later results depend on, as copies."""
        parts = {"memory": self.memory, "clusters": self.clusters}
        states = {name: part.state_dict() for name, part in parts.items() if part is not None}
        return {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state` was taken; UserError for another memory's."""
        parts = {"memory": self.memory, "clusters": self.clusters}
        if self.state_dict().keys() != state.keys():
            raise UserError("the state is of a memory of another kind")
        for name, part in parts.items():
            if part is not None:
                mine = {key.partition(".")[2]: x for key, x in state.items() if key.startswith(f"{name}.")}
                part.load_state_dict(mine)


def prefix_vectors(table: TokenTable, states: np.ndarray) -> Tensor:
    """Mean hidden state (N, C) of each document's prefix, of length 1: known before a token is scored."""
    flat = states[ragged(table.offsets[:-1], table.prefix)].astype(np.float32)
    means = np.add.reduceat(flat, cumulative(table.prefix)[:-1]) / table.prefix[:, None]
    return normalise(torch.from_numpy(means))
