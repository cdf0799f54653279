"""B8, B9 and the ladder: from the released way to ours, on the same rows, heads and steps."""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from chameleon_lite import Arrangement, HeadWeight, Member, mean_embeddings, train_heads
from chameleon_lite.fast.recorded_steps import using
from chameleon_lite.fast.recorder import LIMIT, Recorder
from chameleon_lite.heads import Condition, Head, HyperHead, LoraHead
from chameleon_lite.settings import TrainSettings
from chameleon_lite.states import ScoredStates, hidden_states
from chameleon_study.sources import batch_mean

from . import baselines
from .bench import Bench
from .measure import gate
from .workload import LENGTH, RANK, short

EPOCHS, LEARNING_RATE = 5, 5e-4
REGIMES = ("LoRA", "hyper-network")
PEER = "released way"
Batch = tuple[Tensor, Tensor, Tensor]  # a step's states (…, C), labels (…), and its rows' vectors (B, C)


def new_head(regime: str, width: int, vocab: int, device: torch.device, dropout: float = 0.0) -> Head:
    """A newly initialised head, the same one in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if regime == "LoRA":
            return LoraHead(width, vocab, RANK).to(device)
        return HyperHead(width, vocab, RANK, dropout=dropout).to(device)


def trained(regimes, vectors, data, weight, *, held_out=1, dropout=0.0, processes=None, **sizes) -> list:
    """New heads under the mean of a step's vectors (N, C), validated on the first `held_out` documents."""
    source, geometry = batch_mean(vectors), (vectors.shape[1], weight.vocab, data.device)
    members = [Member(r, new_head(r, *geometry, dropout), source, source, LEARNING_RATE) for r in regimes]
    order, check = Arrangement(torch.arange(len(data.counts))), Arrangement(torch.arange(held_out))
    settings = TrainSettings(patience=99, masks="group", **sizes)  # as the stored rows were measured
    train_heads(members, data, lambda _: order, data, check, weight, settings, processes, progress=False)
    return members


class Training:
    """The same rows, heads and steps for both ways; dropout is off so that losses can be compared."""

    def __init__(self, bench: Bench, rows: int, rows_per_step: int, last: bool = False) -> None:
        self.bench, self.backbone, self.step, self.last = bench, bench.backbone, rows_per_step, last
        self.table = bench.table(rows, last=last)
        self.vectors = mean_embeddings(self.table, self.backbone.embedding, span="row")  # (N, C)
        self.ids, self.labels = baselines.padded_rows(self.table, LENGTH, bench.device)

    def stored(self, dtype: torch.dtype, folder: Path) -> ScoredStates:
        """The states of all rows, computed in a format, stored in the folder and loaded."""
        states = hidden_states(self.backbone, self.table, dtype, folder, progress=False)
        return ScoredStates(self.table, states, self.bench.device)

    def heads(self, regimes: Sequence[str], data: ScoredStates, weight: HeadWeight, epochs: int = EPOCHS):
        """New heads, trained side by side."""
        return trained(regimes, self.vectors, data, weight, epochs=epochs, rows_per_step=self.step)

    def ours(self, dtype: torch.dtype, epochs: int = EPOCHS) -> tuple[dict, dict[str, float]]:
        """Everything after tokenising: losses of the first epoch by regime, and seconds by stage."""
        stages, bench = {}, self.bench
        with tempfile.TemporaryDirectory() as folder:
            stages["hidden states"], data = bench.timed(lambda: self.stored(dtype, Path(folder)))
            stages["head training"], members = bench.timed(
                lambda: self.heads(REGIMES, data, bench.head_weight(dtype), epochs)
            )
        curves = {m.name: [p["train_nll"] for p in m.curve if p["train_nll"] is not None] for m in members}
        return {name: curve[0] for name, curve in curves.items()}, stages

    def padded(self) -> Iterator[Batch]:
        """The released way's batches; of the last position the scripts form all logits: one favours them."""
        for ids, y, x in zip(*(rows.split(self.step) for rows in (self.ids, self.labels, self.vectors))):
            h, scored = self.backbone.hidden(ids), y != baselines.IGNORED  # (B, T, C), (B, T)
            yield (h[scored], y[scored], x) if self.last else (h, y, x)

    def unpadded(self, data: ScoredStates) -> Iterator[Batch]:
        """The same of stored states, real targets alone."""
        for rows in torch.arange(len(data.counts)).split(self.step):
            h, target, _ = data.batch(rows)
            yield h.float(), target, self.vectors[rows]

    def plainly(self, regime: str, batches: Callable, epochs: int = 1, dtype=torch.float32) -> float:
        """One regime trained on all logits of batches(), with products in `dtype`; its loss of epoch one."""
        head = new_head(regime, self.backbone.width, self.backbone.vocab, self.bench.device)
        optimiser, losses = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE), []
        for _ in range(epochs):
            total = count = 0.0
            for h, y, x in batches():
                tokens = int((y != baselines.IGNORED).sum())
                update = head.factors(Condition(x.mean(0, keepdim=True)))
                with torch.autocast(h.device.type, dtype, enabled=dtype != torch.float32):
                    weight = self.backbone.head.weight
                    loss = baselines.plain_head_loss(h, y, weight, update.down[0], update.up[0])
                optimiser.zero_grad()
                (loss / tokens).backward()
                optimiser.step()
                total, count = total + loss.item(), count + tokens
            losses.append(total / count)
        return losses[0]


def end_to_end(bench: Bench, rows: int, rows_per_step: int, last: bool) -> dict:
    """B8, five epochs of two regimes; B9, the same with one scored position per row.

    On a CPU one released epoch per regime stands for all: each is exactly the same work.
    """
    work = Training(bench, rows, rows_per_step, last)
    released_epochs = EPOCHS if bench.gpu else 1
    losses, stages = {}, {}

    def ours(dtype: torch.dtype, epochs: int = EPOCHS) -> None:
        losses[dtype], stages[dtype] = work.ours(dtype, epochs)

    def released(regimes=REGIMES, epochs: int = released_epochs) -> None:
        losses[PEER] = {regime: work.plainly(regime, work.padded, epochs) for regime in regimes}

    if bench.gpu:  # the first call compiles and fills caches
        ours(bench.fast, 1)
        released(["LoRA"], 1)
    formats = dict.fromkeys([bench.fast] if last else [torch.float32, bench.fast])
    contenders = {short(dtype): partial(ours, dtype) for dtype in formats} | {PEER: released}
    times = bench.race(contenders, 1 if bench.quick else 3, warm_up=False)
    times[PEER] *= EPOCHS / released_epochs
    count = int(work.table.n_scored.sum())
    samples = {f"wall, {n}": times[[n, PEER]].rename(columns={n: "ours"}) for n in map(short, formats)}
    gates = [g for d in formats for g in _loss_gates(losses[d], losses[PEER], short(d), count)]
    workload = {"tokens": int(work.table.lengths.sum()), "scored": count, "epochs": EPOCHS}
    workload |= {"released epochs run": released_epochs}
    return {"samples": samples, "gates": gates, "workload": workload, "profile": stages[bench.fast]}


def _loss_gates(ours: dict, released: dict, label: str, tokens: int) -> list[dict]:
    """First-epoch training losses: each regime's, and the difference between the regimes.

    The limit is that for 16 bits, in which states are stored whatever the arithmetic. It is meant for means
    over thousands of tokens; over fewer, rounding averages out less, by the root of how many fewer.
    """
    limit = 2e-3 * max(1.0, (1_000 / tokens) ** 0.5)
    gaps = {regime: ours[regime] - released[regime] for regime in REGIMES}
    out = [gate(f"{regime}, mean loss, nats ({label})", abs(gap), limit) for regime, gap in gaps.items()]
    between = abs(gaps["LoRA"] - gaps["hyper-network"])
    return [*out, gate(f"difference between regimes, nats ({label})", between, 5e-4)]


def ladder(bench: Bench, rows: int, rows_per_step: int, ideas: dict[str, str]) -> dict:
    """Each step's seconds for five epochs of two regimes: what is done once, plus epochs × one epoch.

    One epoch is timed and multiplied, since epochs repeat the same work; from our own head loss on all epochs
    are timed as one, since the first of them records what the others replay. Median of the repetitions.
    """
    work = Training(bench, rows, rows_per_step)
    out, both, fast, weight, kept = [], EPOCHS * len(REGIMES), bench.fast, bench.head_weight(), {}

    def seconds(once: Callable) -> float:
        if bench.gpu:
            once()  # kernels are loaded and compiled
        return bench.race({"ours": once}, 1 if bench.quick else 3, warm_up=False)["ours"].median()

    def keep_padded() -> None:
        kept["padded"] = list(work.padded())

    def keep_states(dtype: torch.dtype) -> None:
        kept["data"] = work.stored(dtype, next(folders))

    def epoch(dtype: torch.dtype) -> None:
        work.plainly("LoRA", lambda: work.unpadded(kept["data"]), dtype=dtype)

    def fit(regimes: Sequence[str], recordings: int = 0) -> None:
        with using(Recorder(bench.device, limit=recordings)):
            work.heads(regimes, kept["data"], weight)

    steps = {
        "released way": (None, partial(work.plainly, "LoRA", work.padded), both),
        "states kept": (keep_padded, lambda: work.plainly("LoRA", lambda: kept["padded"]), both),
        "no padding": (partial(keep_states, torch.float32), partial(epoch, torch.float32), both),
        "16-bit products": (partial(keep_states, fast), partial(epoch, fast), both),
        "own head loss": (partial(keep_states, fast), lambda: [fit([regime]) for regime in REGIMES], 1),
        "regimes together": (partial(keep_states, fast), partial(fit, REGIMES), 1),
    }
    if bench.gpu:
        steps["steps recorded"] = (partial(keep_states, fast), partial(fit, REGIMES, LIMIT), 1)
    with tempfile.TemporaryDirectory() as folder:
        folders = (Path(folder) / str(i) for i in itertools.count())
        for name, (once, each, times) in steps.items():
            first, more = seconds(once) if once else 0.0, seconds(each)
            numbers = {"seconds": first + times * more, "once": first, "epoch": more, "epochs": times}
            out.append({"step": name, "idea": ideas[name], **numbers})
    return {"steps": out, "workload": {"tokens": int(work.table.lengths.sum())}}
