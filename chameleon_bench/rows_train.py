"""B8, B9 and what the ladder and two GPUs train: from the released way to ours, on the same rows, heads and steps."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from chameleon_lite.batches import Arrangement
from chameleon_lite.embed import mean_embeddings
from chameleon_lite.heads import Head, HyperHead, LoraHead
from chameleon_lite.loss import HeadWeight
from chameleon_lite.processes import Processes
from chameleon_lite.settings import TrainSettings
from chameleon_lite.states import ScoredStates, hidden_states
from chameleon_lite.train import Member, train_heads
from chameleon_study.sources import BatchMean

from . import baselines
from .measure import Gate, Row, Samples, scaled, timed
from .workload import LENGTH, RANK, Bench, short

EPOCHS, LEARNING_RATE = 5, 5e-4
REGIMES = ("LoRA", "hyper-network")


def new_head(regime: str, width: int, vocab: int, device: torch.device, dropout: float = 0.0) -> Head:
    """A newly initialised head, the same one in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = (
            LoraHead(width, vocab, RANK)
            if regime == "LoRA"
            else HyperHead(width, vocab, RANK, dropout=dropout)
        )
    return head.to(device)


def new_members(regimes: Sequence[str], vectors: Tensor, vocab: int, dropout: float = 0.0) -> list[Member]:
    """New heads as the trainer takes them; the condition is the mean of the vectors (N, C) of a step's rows."""
    source = BatchMean(vectors)
    heads = {r: new_head(r, vectors.shape[1], vocab, vectors.device, dropout) for r in regimes}
    return [Member(r, head, source, source, LEARNING_RATE) for r, head in heads.items()]


def train(
    members: list[Member],
    data: ScoredStates,
    weight: HeadWeight,
    *,
    epochs: int,
    step: int,
    held_out: int = 1,
    processes: Processes | None = None,
) -> None:
    """Train heads on all documents in order, `step` per step; the first `held_out` of them are validated on."""
    order, check = Arrangement(torch.arange(len(data.counts))), Arrangement(torch.arange(held_out))
    settings = TrainSettings(epochs=epochs, rows_per_step=step, patience=99)
    train_heads(members, data, lambda _: order, data, check, weight, settings, processes, progress=False)


class Training:
    """The same rows, heads and steps for both ways; dropout is off so that losses can be compared."""

    def __init__(self, bench: Bench, rows: int, step: int, last: bool) -> None:
        self.bench, self.backbone, self.step, self.last = bench, bench.backbone, step, last
        self.table = bench.table(rows, last=last)
        self.vectors = mean_embeddings(self.table, self.backbone.embedding, span="row")  # (N, C)
        self.ids, self.labels = baselines.padded_rows(self.table, LENGTH, bench.device)

    def states(self, dtype: torch.dtype, folder: Path):
        """The states of all rows, computed in a format and stored in the folder."""
        return hidden_states(self.backbone, self.table, dtype, folder, progress=False)

    def heads(self, regimes: Sequence[str], data: ScoredStates, weight: HeadWeight, epochs: int):
        """New heads, trained side by side."""
        members = new_members(regimes, self.vectors, self.backbone.vocab)
        train(members, data, weight, epochs=epochs, step=self.step)
        return members

    def ours(
        self, dtype: torch.dtype, epochs: int = EPOCHS
    ) -> tuple[dict[str, list[float]], dict[str, float]]:
        """Everything after tokenising: losses per regime and epoch in training, and seconds per stage."""
        stages, device = {}, self.bench.device
        with tempfile.TemporaryDirectory() as folder:
            stages["hidden states"], states = timed(lambda: self.states(dtype, Path(folder)), device)
            stages["loading"], (data, weight) = timed(
                lambda: (ScoredStates(self.table, states, device), self.bench.head_weight(dtype)), device
            )
            stages["head training"], members = timed(
                lambda: self.heads(REGIMES, data, weight, epochs), device
            )
        losses = {m.name: [p["train_nll"] for p in m.curve if p["train_nll"] is not None] for m in members}
        return losses, stages

    def released(self, regime: str, epochs: int) -> list[float]:
        """One regime trained as released; losses per epoch in training."""
        head = new_head(regime, self.backbone.width, self.backbone.vocab, self.bench.device)
        options = {"rows": self.step, "learning_rate": LEARNING_RATE, "last": self.last, "epochs": epochs}
        return baselines.train_as_released(
            self.backbone, head, self.ids, self.labels, self.vectors, **options
        )


def full_sequence(bench: Bench) -> Row:
    """B8: five epochs, two regimes, every real token scored."""
    goals = {torch.float32: (6, None), bench.fast: (12, 15)}
    return _end_to_end(bench, "B8", "full sequence", goals, "7.2 × the ratio of product rates")


def last_position(bench: Bench) -> Row:
    """B9: the same with one scored position per row."""
    goals = {bench.fast: (15, 20)}
    return _end_to_end(bench, "B9", "last position", goals, "25 to 30 × the ratio of product rates")


def _end_to_end(bench: Bench, name: str, scored: str, goals: dict, limit: str) -> Row:
    """Time both ways; on a CPU one released epoch per regime stands for all: each is exactly the same work."""
    work = Training(bench, bench.size(12, 1_024, 4), bench.size(6, 32, 4), last=scored == "last position")
    peer, peer_epochs = "released way", EPOCHS if bench.gpu else 1
    if bench.gpu:  # the first call compiles and fills caches
        work.ours(bench.fast, 1)
        work.released("LoRA", 1)
    losses, stages = {}, {}

    def ours(dtype: torch.dtype) -> None:
        losses[dtype], stages[dtype] = work.ours(dtype)

    def released() -> None:
        losses[peer] = {regime: work.released(regime, peer_epochs) for regime in REGIMES}

    contenders = {dtype: lambda dtype=dtype: ours(dtype) for dtype in goals} | {peer: released}
    times = bench.race(contenders, 1 if bench.quick else 3, warm_up=False)
    theirs, count = scaled(times[peer], EPOCHS / peer_epochs), int(work.table.n_scored.sum())
    row = Row(name, f"training end to end, {scored}", limit=limit, profile=stages[bench.fast])
    row.workload = {
        "rows": len(work.table),
        "rows a step": work.step,
        "tokens": int(work.table.lengths.sum()),
        "scored": count,
        "epochs": EPOCHS,
        "regimes": list(REGIMES),
        "released epochs run": peer_epochs,
    }
    for dtype, goal in goals.items():
        pair = Samples({"ours": times[dtype], peer: theirs})
        row.comparisons += pair.against({peer: bench.goal(*goal)}, f"wall, {short(dtype)}")
        row.gates += _loss_gates(losses[dtype], losses[peer], short(dtype), count)
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
