"""B8, B9 and the ladder: training, from the released way to ours."""

import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from chameleon_lite.batches import Arrangement
from chameleon_lite.embed import mean_embeddings
from chameleon_lite.heads import Head, HyperHead, LoraHead
from chameleon_lite.loss import HeadWeight
from chameleon_lite.settings import TrainSettings
from chameleon_lite.states import ScoredStates, hidden_states
from chameleon_lite.train import Member, train_heads
from chameleon_study.sources import BatchMean

from . import baselines
from .measure import Comparison, Gate, Row, sample, scaled, synchronise, timed
from .workload import LENGTH, Bench, random_table, row_lengths

EPOCHS, LEARNING_RATE = 5, 5e-4
REGIMES = ("LoRA", "hyper-network")


class Training:
    """The same rows, heads and steps for both ways; dropout is off so that losses can be compared."""

    def __init__(self, bench: Bench, rows: int, step: int, last: bool) -> None:
        self.bench, self.rows_a_step, self.last = bench, step, last
        self.backbone = bench.backbone
        self.table = random_table(row_lengths(rows), self.backbone.vocab, self.backbone.pad_id, last=last)
        self.vectors = mean_embeddings(self.table, self.backbone.embedding, span="row")  # (N, C)
        self.order = Arrangement(torch.arange(rows))

    def head(self, regime: str) -> Head:
        """A freshly drawn head, the same for both ways."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            width, vocab = self.backbone.width, self.backbone.vocab
            head = LoraHead(width, vocab, 4) if regime == "LoRA" else HyperHead(width, vocab, 4, dropout=0.0)
        return head.to(self.bench.device)

    def ours(
        self, dtype: torch.dtype, epochs: int = EPOCHS, regimes=REGIMES, stages: dict | None = None
    ) -> dict:
        """The whole line after tokenising: store, heads trained side by side; training losses a regime and epoch."""
        stages = {} if stages is None else stages
        with tempfile.TemporaryDirectory() as folder:
            lap = _Laps(stages, self.bench.device)
            states = hidden_states(self.backbone, self.table, dtype, Path(folder), progress=False)
            lap("hidden states")
            data = ScoredStates(self.table, states, self.bench.device)
            weight = HeadWeight(self.backbone.head.weight, dtype=dtype)
            lap("loading")
            members = self.members(regimes)
            self.fit(members, data, weight, epochs)
            lap("head training")
        return {m.name: [p["train_nll"] for p in m.curve if p["train_nll"] is not None] for m in members}

    def released_way(self, ids: Tensor, labels: Tensor, head: Head) -> baselines.ReleasedTraining:
        """The released training of a head on padded ids and labels (N, T)."""
        options = {"rows": self.rows_a_step, "learning_rate": LEARNING_RATE, "last": self.last}
        return baselines.ReleasedTraining(self.backbone, ids, labels, head, vectors=self.vectors, **options)

    def members(self, regimes) -> list[Member]:
        """Freshly drawn heads as the trainer takes them, with one condition source for all, called once per step."""
        source = BatchMean(self.vectors)
        return [Member(r, self.head(r), source, source, LEARNING_RATE) for r in regimes]

    def fit(self, members: list[Member], data, weight: HeadWeight, epochs: int, **options) -> None:
        """Train; one document is validated on, the least that the trainer accepts."""
        settings = TrainSettings(epochs=epochs, rows_per_step=self.rows_a_step, patience=99)
        held_out, options = Arrangement(torch.arange(1)), {"progress": False} | options
        train_heads(members, data, lambda _: self.order, data, held_out, weight, settings, **options)

    def released(self, regime: str, epochs: int) -> list[float]:
        """One regime trained as released, for some epochs; training losses."""
        ids, labels = baselines.padded_rows(self.table, LENGTH, self.bench.device)
        run = self.released_way(ids, labels, self.head(regime))
        return [run.epoch() for _ in range(epochs)]


class _Laps:
    def __init__(self, stages: dict, device: torch.device) -> None:
        self.stages, self.device, self.at = stages, device, time.perf_counter()

    def __call__(self, name: str) -> None:
        synchronise(self.device)
        now = time.perf_counter()
        self.stages[name], self.at = now - self.at, now


def full_sequence(bench: Bench) -> Row:
    """B8: five epochs, two regimes, every real token scored."""
    goals = {torch.float32: (6, None), bench.fast: (12, 15)}
    return _end_to_end(bench, "B8", "full sequence", goals, "7.2 × the ratio of product rates")


def last_position(bench: Bench) -> Row:
    """B9: the same with one scored position a row."""
    goals = {bench.fast: (15, 20)}
    return _end_to_end(bench, "B9", "last position", goals, "25 to 30 × the ratio of product rates")


def _end_to_end(bench: Bench, name: str, scored: str, goals: dict, limit: str) -> Row:
    """Time both ways; on a CPU one released epoch per regime stands for all: each does exactly the same work."""
    rows, step = bench.size(12, 1_024, 4), bench.size(6, 32, 4)
    work = Training(bench, rows, step, last=scored == "last position")
    peer_epochs = EPOCHS if bench.gpu else 1
    repetitions = 1 if bench.quick else 3
    times: dict[str, list[float]] = {"released": [], **{str(d): [] for d in goals}}
    stages: dict[str, float] = {}
    losses: dict[str, dict] = {}
    if bench.gpu:  # the first call compiles and fills caches
        work.ours(bench.fast, 1)
        work.released("LoRA", 1)
    for _ in range(repetitions):
        for dtype in goals:
            seconds, losses[str(dtype)] = timed(lambda d=dtype: work.ours(d, stages=stages), bench.device)
            times[str(dtype)].append(seconds)
        seconds, losses["released"] = timed(
            lambda: {r: work.released(r, peer_epochs) for r in REGIMES}, bench.device
        )
        times["released"].append(seconds)
    theirs = scaled(sample(times["released"]), EPOCHS / peer_epochs)
    row = Row(name, f"training end to end, {scored}", limit=limit, profile=dict(stages))
    row.workload = {
        "rows": len(work.table),
        "rows a step": work.rows_a_step,
        "tokens": int(work.table.lengths.sum()),
        "scored": int(work.table.n_scored.sum()),
        "epochs": EPOCHS,
        "regimes": list(REGIMES),
        "released epochs run": peer_epochs,
    }
    for dtype, goal in goals.items():
        label = str(dtype).removeprefix("torch.")
        ours = sample(times[str(dtype)])
        row.comparisons.append(Comparison("released way", f"wall, {label}", ours, theirs, bench.goal(*goal)))
        row.gates += _loss_gates(losses[str(dtype)], losses["released"], label, row.workload["scored"])
    return row


def _loss_gates(ours: dict, released: dict, label: str, tokens: int) -> list[Gate]:
    """First-epoch training losses: each regime's, and the difference between the regimes.

    The limit is that for 16 bits, also for float32 arithmetic: states are stored in 16 bits. It is meant for means
    over thousands of tokens; over fewer, rounding averages out less, by the root of how many fewer.
    """
    limit = 2e-3 * max(1.0, (1_000 / tokens) ** 0.5)
    gaps = {r: ours[r][0] - released[r][0] for r in REGIMES}
    out = [Gate(f"{r}, mean loss, nats ({label})", abs(gap), limit) for r, gap in gaps.items()]
    between = abs(gaps["LoRA"] - gaps["hyper-network"])
    return [*out, Gate(f"difference between regimes, nats ({label})", between, 5e-4)]
