"""B8, B9 and the ladder: from the released way to ours, on the same rows, heads and steps."""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from chameleon_lite.batches import Arrangement
from chameleon_lite.embed import mean_embeddings
from chameleon_lite.fast.recorded_steps import using
from chameleon_lite.fast.recorder import LIMIT, Recorder
from chameleon_lite.heads import Head, HyperHead, LoraHead
from chameleon_lite.loss import HeadWeight
from chameleon_lite.settings import TrainSettings
from chameleon_lite.states import ScoredStates, hidden_states
from chameleon_lite.train import Member, train_heads
from chameleon_study.sources import BatchMean

from . import baselines
from .measure import Samples, gate, row, scaled, shown, timed
from .workload import LENGTH, RANK, Bench, short

EPOCHS, LEARNING_RATE = 5, 5e-4
REGIMES = ("LoRA", "hyper-network")
IDEAS = {
    "released way": "backbone on the padding, in every epoch, for every regime",
    "states kept": "the frozen backbone runs once",
    "no padding": "length-sorted rows, only real targets",
    "16-bit products": "where the machine has units for them",
    "own head loss": "chunks, one large product, no logits kept",
    "regimes together": "one large product for all heads",
    "steps recorded": "one word from the host a step",
}


def new_head(regime: str, width: int, vocab: int, device: torch.device, dropout: float = 0.0) -> Head:
    """A newly initialised head, the same one in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if regime == "LoRA":
            return LoraHead(width, vocab, RANK).to(device)
        return HyperHead(width, vocab, RANK, dropout=dropout).to(device)


def new_members(regimes: Sequence[str], vectors: Tensor, vocab: int, dropout: float = 0.0) -> list[Member]:
    """New heads as the trainer takes them; their condition is the mean of a step's vectors, of (N, C)."""
    source = BatchMean(vectors)
    heads = {r: new_head(r, vectors.shape[1], vocab, vectors.device, dropout) for r in regimes}
    return [Member(r, head, source, source, LEARNING_RATE) for r, head in heads.items()]


def train(
    members: list[Member], data: ScoredStates, weight: HeadWeight, *, epochs, step, held_out=1, processes=None
) -> None:
    """Train heads on all documents in order, `step` per step; validate on the first `held_out`."""
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

    def ours(self, dtype: torch.dtype, epochs: int = EPOCHS) -> tuple[dict, dict[str, float]]:
        """Everything after tokenising: losses per regime and epoch in training, and seconds per stage."""
        stages, device = {}, self.bench.device

        def load():
            return ScoredStates(self.table, states, device), self.bench.head_weight(dtype)

        with tempfile.TemporaryDirectory() as folder:
            stages["hidden states"], states = timed(lambda: self.states(dtype, Path(folder)), device)
            stages["loading"], pair = timed(load, device)
            stages["head training"], members = timed(lambda: self.heads(REGIMES, *pair, epochs), device)
        losses = {m.name: [p["train_nll"] for p in m.curve if p["train_nll"] is not None] for m in members}
        return losses, stages

    def released(self, regime: str, epochs: int) -> list[float]:
        """One regime trained as released; losses per epoch in training."""
        head = new_head(regime, self.backbone.width, self.backbone.vocab, self.bench.device)
        rows = self.backbone, head, self.ids, self.labels, self.vectors
        how = {"rows": self.step, "learning_rate": LEARNING_RATE, "last": self.last, "epochs": epochs}
        return baselines.train_as_released(*rows, **how)


def full_sequence(bench: Bench) -> dict:
    """B8: five epochs, two regimes, every real token scored."""
    goals = {torch.float32: (6, None), bench.fast: (12, 15)}
    return _end_to_end(bench, "full sequence", goals, "7.2 × the ratio of product rates")


def last_position(bench: Bench) -> dict:
    """B9: the same with one scored position per row."""
    goals = {bench.fast: (15, 20)}
    return _end_to_end(bench, "last position", goals, "25 to 30 × the ratio of product rates")


def _end_to_end(bench: Bench, scored: str, goals: dict, limit: str) -> dict:
    """Both ways; on a CPU one released epoch per regime stands for all: each is exactly the same work."""
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
    workload = {"rows": len(work.table), "rows a step": work.step, "tokens": int(work.table.lengths.sum())}
    workload |= {"scored": count, "epochs": EPOCHS, "released epochs run": peer_epochs}
    comparisons, gates = [], []
    for dtype, goal in goals.items():
        pair = Samples({"ours": times[dtype], peer: theirs})
        comparisons += pair.against({peer: bench.goal(*goal)}, f"wall, {short(dtype)}")
        gates += _loss_gates(losses[dtype], losses[peer], short(dtype), count)
    about = {"limit": limit, "workload": workload, "profile": stages[bench.fast]}
    return row(f"training end to end, {scored}", comparisons, gates, **about)


def _loss_gates(ours: dict, released: dict, label: str, tokens: int) -> list[dict]:
    """First-epoch training losses: each regime's, and the difference between the regimes.

    The limit is that for 16 bits, in which states are stored whatever the arithmetic. It is meant for means
    over thousands of tokens; over fewer, rounding averages out less, by the root of how many fewer.
    """
    limit = 2e-3 * max(1.0, (1_000 / tokens) ** 0.5)
    gaps = {r: ours[r][0] - released[r][0] for r in REGIMES}
    out = [gate(f"{r}, mean loss, nats ({label})", abs(gap), limit) for r, gap in gaps.items()]
    between = abs(gaps["LoRA"] - gaps["hyper-network"])
    return [*out, gate(f"difference between regimes, nats ({label})", between, 5e-4)]


def ladder(bench: Bench) -> dict:
    """Each step's seconds for five epochs of two regimes: what is done once, plus epochs × one epoch.

    One epoch is timed and multiplied, since epochs repeat the same work; from our own head loss on all epochs
    are timed as one, since the first of them records what the others replay. Median of the repetitions.
    """
    out, both, fast = [], EPOCHS * len(REGIMES), bench.fast

    def seconds(work: Callable) -> float:
        if bench.gpu:
            work()  # kernels are loaded and compiled
        return median(bench.seconds(work) for _ in range(1 if bench.quick else 3))

    with tempfile.TemporaryDirectory() as folder:
        work = _Steps(bench, Path(folder))
        exactly, fast_pass = partial(work.states, torch.float32), partial(work.states, fast)
        steps = {
            "released way": (None, partial(work.released, "LoRA", 1), both),
            "states kept": (work.padded_pass, work.padded_epoch, both),
            "no padding": (exactly, partial(work.real_epoch, torch.float32), both),
            "16-bit products": (fast_pass, partial(work.real_epoch, fast), both),
            "own head loss": (fast_pass, lambda: [work.fit([regime]) for regime in REGIMES], 1),
            "regimes together": (fast_pass, partial(work.fit, REGIMES), 1),
        }
        if bench.gpu:
            steps["steps recorded"] = (fast_pass, partial(work.fit, REGIMES, recordings=LIMIT), 1)
        for name, (once, epoch, times) in steps.items():
            first, each = seconds(once) if once else 0.0, seconds(epoch)
            numbers = {"seconds": first + times * each, "once": first, "epoch": each, "epochs": times}
            out.append({"step": name, "idea": IDEAS[name], **numbers})
    sizes = {"rows": len(work.table), "tokens": int(work.table.lengths.sum())}
    return shown("five epochs, two regimes, full-sequence loss", steps=out, workload=sizes)


class _Steps(Training):
    """The work of the ladder's steps: what is done once, and what in an epoch."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        super().__init__(bench, bench.size(8, 512, 4), bench.size(8, 32, 4), last=False)
        self.folders, self.weight = (folder / str(i) for i in itertools.count()), bench.head_weight()
        self.head = new_head("LoRA", self.backbone.width, self.backbone.vocab, bench.device)
        self.optimiser = torch.optim.AdamW(self.head.parameters(), lr=LEARNING_RATE)

    def padded_pass(self) -> None:
        self.padded = baselines.padded_states(self.backbone, self.ids, self.step)

    def padded_epoch(self) -> None:
        for h, labels in zip(self.padded, self.labels.split(self.step)):
            self._step(h, labels, torch.float32)

    def states(self, dtype: torch.dtype) -> None:
        states = super().states(dtype, next(self.folders))
        self.data = ScoredStates(self.table, states, self.bench.device)

    def real_epoch(self, dtype: torch.dtype) -> None:
        for rows in torch.arange(len(self.data.counts)).split(self.step):
            h, target, _ = self.data.batch(rows)
            self._step(h.float(), target, dtype)

    def fit(self, regimes: Sequence[str], recordings: int = 0) -> None:
        """All epochs of some regimes, new heads included."""
        with using(Recorder(self.bench.device, limit=recordings)):
            self.heads(regimes, self.data, self.weight, EPOCHS)

    def _step(self, h: Tensor, target: Tensor, dtype: torch.dtype) -> None:
        with torch.autocast(self.bench.device.type, dtype, enabled=dtype != torch.float32):
            matrix = self.backbone.head.weight
            loss = baselines.plain_head_loss(h, target, matrix, self.head.down, self.head.up)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
