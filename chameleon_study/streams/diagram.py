"""The phase diagram: at each point of the world the gain that is available, and what each method takes of it.

    world ─ streams ─┬─ world.py ─▶ Bayes-optimal losses under four kinds of knowledge
                     └─ states are one-hot tokens, the frozen head is the mixture's ─▶ losses of the methods

R3, R4, R6 are hyper-network heads trained on other streams of the same world: conditioned on a constant, the
mean of the batch's prefixes, or the row's own prefix. S1 and S2 begin with nothing and learn from the stream:
one memory, or one per online cluster of the rows' prefixes on top of it; with random clusters and with the
true groups as controls. Every method has the best of as many rates, chosen on streams of their own.
"""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from chameleon_lite.conditions import group_means
from chameleon_lite.embed import normalise
from chameleon_lite.heads import Condition, HyperHead
from chameleon_lite.loss import HeadWeight, head_losses, token_losses
from chameleon_lite.states import ScoredStates
from chameleon_lite.streams.memory import HEAD, LearnSettings, Memory, fresh_start
from chameleon_lite.streams.online import OnlineClusters

from .world import KNOWLEDGE, Stream, World

TRAINED, LEARNING = ("R3", "R4", "R6"), ("S1", "S2", "S2-random", "S2-oracle")
HEAD_RATES, MEMORY_RATES = (1e-3, 3e-3, 1e-2), (1e-2, 3e-2, 1e-1, 3e-1)
RANK, ROWS = 2, 64  # of every head; documents per training step
BASE = World(stay=0.8)
AXES = {"sources": (1, 8), "prefix": (1, 4, 16), "purity": (0.25, 0.5, 1.0), "batch": (1, 8, 32)}
ROWS_READ = 8_192  # of a point's test streams together, about; at most 8 streams
PAST = (0, 4, 16, 64, 256)  # batches that have passed: losses are averaged between two of them


@dataclass(frozen=True)
class Rows:
    """N rows of sampled streams, batch after batch: what the methods read."""

    sampled: list[Stream]
    data: ScoredStates
    vectors: Tensor  # (N, V) mean one-hot tokens of the prefix, length 1
    batch: Tensor  # (N,) number of the row's batch
    group: Tensor  # (N,)

    @property
    def rows(self) -> int:
        """The number of rows, N."""
        return len(self.batch)

    @classmethod
    def of(cls, world: World, batches: int, streams: int, numbers: np.random.Generator, device) -> "Rows":
        """Rows of `streams` streams of `batches` batches."""
        sampled = [world.sample(batches, numbers) for _ in range(streams)]
        tokens = torch.from_numpy(np.concatenate([s.tokens for s in sampled])).flatten(0, 1)  # (N, T)
        group = torch.from_numpy(np.concatenate([s.group for s in sampled])).flatten()
        hot = torch.nn.functional.one_hot(tokens, world.vocab).float()  # (N, T, V)
        states = hot[:, world.prefix - 1 : -1].flatten(0, 1)
        target = tokens[:, world.prefix :].flatten().numpy()
        data = ScoredStates.of_pairs(states, target, np.full(len(tokens), world.scored), device)
        vectors = normalise(hot[:, : world.prefix].mean(1)).to(device)
        return cls(sampled, data, vectors, torch.arange(len(tokens)) // world.batch, group)

    def condition(self, method: str, rows: Tensor) -> tuple[Condition, Tensor | None]:
        """What conditions a method on rows (B,) of whole batches, and each row's group of it."""
        vectors = self.vectors[rows.to(self.vectors.device)]
        if method == "R3":
            return Condition(torch.ones_like(vectors[:1])), None
        if method == "R6":
            return Condition(vectors), torch.arange(len(rows))
        group = self.batch[rows].unique(return_inverse=True)[1]
        return Condition(group_means(vectors, group)), group


def trained_losses(
    world: World, weight: HeadWeight, splits: dict[str, Rows], steps: int
) -> dict[str, Tensor]:
    """Sums of nats (N,) over the test rows of R3, R4 and R6, each at the rate that is best on validation."""
    heads = {}
    for method, rate in product(TRAINED, HEAD_RATES):
        torch.manual_seed(world.seed)
        heads[method, rate] = HyperHead(world.vocab, world.vocab, RANK, dropout=0.0).to(weight.weight.device)
    groups = [{"params": head.parameters(), "lr": rate} for (_, rate), head in heads.items()]
    optimiser, train = torch.optim.Adam(groups), splits["train"]
    per_step = max(1, ROWS // world.batch) * world.batch
    parts = [p for p in torch.arange(train.rows).split(per_step) if len(p) == per_step]
    for step in range(steps):
        rows = parts[step % len(parts)]
        h, target, row = train.data.batch(rows)
        updates, of = _updates(heads, train, rows, row)
        (head_losses(h, target, weight, updates, of).sum() / len(target)).backward()
        optimiser.step()
        optimiser.zero_grad()
    read = {name: _read(heads, splits[name], weight, per_step) for name in ("validation", "test")}
    best = {m: min(HEAD_RATES, key=lambda rate: float(read["validation"][m, rate].sum())) for m in TRAINED}
    return {method: read["test"][method, rate] for method, rate in best.items()}


def _updates(heads: dict, part: Rows, rows: Tensor, row: Tensor) -> tuple[list, list]:
    conditions = {method: part.condition(method, rows) for method in TRAINED}
    of = {method: None if group is None else group[row] for method, (_, group) in conditions.items()}
    updates = [head.factors(conditions[method][0]) for (method, _), head in heads.items()]
    return updates, [of[method] if u.groups > 1 else None for (method, _), u in zip(heads, updates)]


@torch.no_grad()
def _read(heads: dict, part: Rows, weight: HeadWeight, per_step: int) -> dict[tuple, Tensor]:
    out = []
    for rows in torch.arange(part.rows).split(per_step):
        h, target, row = part.data.batch(rows)
        nll = token_losses(h, target, weight, *_updates(heads, part, rows, row))
        out.append(nll.unflatten(1, (len(rows), -1)).sum(2).cpu())
    return dict(zip(heads, torch.cat(out, 1)))


def learning_losses(
    world: World, weight: HeadWeight, splits: dict[str, Rows], past: int
) -> dict[str, Tensor]:
    """Sums of nats (N,) of the test rows under S1 and S2, each at the rate best on validation."""
    shapes, out = {HEAD: (RANK, world.vocab, world.vocab)}, {}
    for method in LEARNING:
        read = {
            name: _learned(method, world, weight, splits[name], past, shapes)
            for name in ("validation", "test")
        }
        best = int(read["validation"].sum(1).argmin())
        out[method] = read["test"][best]
    return out


def _learned(method: str, world: World, weight: HeadWeight, part: Rows, past: int, shapes: dict) -> Tensor:
    """Sums of nats (rates, N) of a method at every rate, the part's streams side by side."""
    rows = torch.arange(part.rows).view(-1, past, world.batch)  # (streams, batches, B)
    streams, per_lane = len(rows), 1 + world.groups  # a global slot and one per cluster
    rates = torch.tensor(MEMORY_RATES).repeat_interleave(streams * per_lane)
    start = fresh_start(shapes, torch.Generator().manual_seed(world.seed)).to(part.data.device)
    memory = Memory(shapes, start, rates, LearnSettings(batch_rows=world.batch))
    clusters = [OnlineClusters(world.groups, world.vocab) for _ in range(streams)]
    random = torch.randint(
        world.groups, part.group.shape, generator=torch.Generator().manual_seed(world.seed)
    )
    labels = {"S2-random": random, "S2-oracle": part.group}.get(method)
    first = torch.arange(len(MEMORY_RATES) * streams)[:, None] * per_lane  # (lanes, 1), rate by rate
    nll = torch.zeros(len(MEMORY_RATES), part.rows, dtype=torch.float64)
    for b in range(past):
        batch = rows[:, b]  # (streams, B)
        slots = [first.expand(-1, world.batch)]
        if method != "S1":
            of = labels[batch] if labels is not None else _clustered(clusters, part.vectors, batch)
            slots.append(first + 1 + of.repeat(len(MEMORY_RATES), 1))
        lanes = batch.repeat(len(MEMORY_RATES), 1)  # (lanes, B)
        sums = memory.read(part.data, weight, lanes.flatten(), torch.stack(slots, -1).flatten(0, 1))
        nll[:, batch.flatten()] = sums.view(len(MEMORY_RATES), -1).cpu()
    return nll


def _clustered(clusters: list[OnlineClusters], vectors: Tensor, batch: Tensor) -> Tensor:
    """Cluster (streams, B) of each row of a batch, each stream's own."""
    return torch.stack([own(vectors[rows.to(vectors.device)].cpu()) for own, rows in zip(clusters, batch)])


def point(
    world: World, past: int = PAST[-1], streams: int | None = None, steps: int = 400, device="cpu"
) -> dict[str, np.ndarray]:
    """One point: nats per token (past,) of each batch, for the Bayes-optimal predictors and every method.

    All are means over the same `streams` test streams of `past` batches.
    """
    streams = streams or min(8, max(1, ROWS_READ // (past * world.batch)))
    numbers = np.random.default_rng([world.seed, 7])
    weight = HeadWeight(torch.from_numpy(np.log(world.mixture)).T.float().to(device), dtype=torch.float32)
    train = -(
        -max(ROWS, steps * ROWS // 4) // (past * world.batch)
    )  # streams; rows are seen about four times
    sizes = {"train": train, "validation": streams, "test": streams}
    splits = {name: Rows.of(world, past, count, numbers, device) for name, count in sizes.items()}
    test = splits["test"]
    exact = [world.losses(stream) for stream in test.sampled]
    bayes = {f"bayes {name}": np.stack([losses[name] for losses in exact]).sum(3) for name in KNOWLEDGE}
    frozen = [token_losses(*test.data.batch(r)[:2], weight, [None])[0] for r in _all(test).split(1_024)]
    nll = {"frozen": torch.cat(frozen).view(test.rows, -1).sum(1)}
    nll |= trained_losses(world, weight, splits, steps) | learning_losses(world, weight, splits, past)
    sums = bayes | {name: value.cpu().numpy() for name, value in nll.items()}
    shape = (streams, past, world.batch)
    return {name: value.reshape(shape).mean((0, 2)) / world.scored for name, value in sums.items()}


def _all(part: Rows) -> Tensor:
    return torch.arange(part.rows)


def diagram(base: World = BASE, axes: dict[str, tuple] = AXES, workers: int = 1, **how) -> list[dict]:
    """Every combination of the axes, one row per combination and stretch of PAST; `how` as for `point`."""
    from joblib import Parallel, delayed

    chosen = [dict(zip(axes, values)) for values in product(*axes.values())]
    jobs = (delayed(point)(replace(base, **some), **how) for some in chosen)
    out = []
    for some, losses in zip(chosen, Parallel(n_jobs=workers)(jobs)):
        for low, high in zip(PAST, PAST[1:]):
            means = {
                name: float(value[low:high].mean()) for name, value in losses.items() if low < len(value)
            }
            out += [some | {"from": low, "to": high} | means] if means else []
    return out
