"""What one unit of the stream study does: train a static head, tune and read a method, try it."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from .material import ORDERS, Material, with_extra
from .methods import (
    RANK,
    RATES,
    STATICS,
    WIDE_RATES,
    Lane,
    Method,
    lane_of,
    merged,
    new_memory,
    read_lanes,
    side_by_side,
)

BATCH = 32
COST_BATCHES = 20  # of the pass that is timed alone, after as many that are not
SHARES = (0.1, 0.5)  # of foreign or garbage rows
POISON_AT = 0.5  # of the stream, where one row of garbage comes


def train_static(material: Material, name: str) -> tuple[Tensor, dict]:
    """A trained head (1, P), as fp16 numbers, and its record: best of all rates and epochs by validation."""
    kind, rank, part = STATICS[name]
    settings, here, check = material.settings, material.parts[part], material.parts["tuning"]
    rates = WIDE_RATES if not rank else RATES[kind]
    memory = new_memory(material, kind, rank, torch.tensor(rates), batch_rows=BATCH, square=0.999)
    held = torch.arange(min(settings.validation, check.scored))
    lanes = side_by_side([Lane(held, torch.zeros(len(held), 1, dtype=torch.int64))] * len(rates), 1)
    weight, counts = material.weight, check.states.counts[held].sum()
    best, curve, start = float("inf"), [], memory.values[:1].clone()
    for epoch in range(settings.epochs):
        order = torch.randperm(here.scored, generator=torch.Generator().manual_seed(epoch))
        rows = [Lane(order, lane.slots[:1].expand(len(order), -1)) for lane in lanes]
        read_lanes(memory, data_of(here, kind), weight, rows, BATCH)
        nll = read_lanes(memory, data_of(check, kind), weight, lanes, BATCH, learns=False)
        means = [float(sums.sum() / counts) for sums in nll]
        curve.append(dict(zip(map(str, rates), means)))
        if min(means) >= best:
            break
        best, chosen = min(means), means.index(min(means))
        start = memory.values[chosen : chosen + 1].clone()
    chosen_rate = min(curve, key=lambda means: min(means.values()))
    rate = min(chosen_rate, key=chosen_rate.get)
    return start.half(), {
        "rate": float(rate),
        "validation": best,
        "curve": curve,
        "parameters": start.shape[1],
    }


def data_of(part, kind: str):
    """Frozen states for a head, live ones for the layers."""
    return part.states if kind == "head" else part.live


class Reading:
    """A method with what it starts from, and its rate once that is chosen."""

    def __init__(self, material: Material, method: Method, statics: dict[str, Tensor]) -> None:
        self.material, self.method = material, method
        self.start = statics[method.start].float() if method.start else None
        self.weight, backbone = material.weight, material.backbone
        if method.base:
            head = backbone.head
            self.weight = merged(head.weight, head.bias, statics[method.base].float(), backbone.width)

    def read(self, part: str, orders: Sequence[Tensor], rates: Sequence[float], batch: int = BATCH):
        """Sums of nats of each order at its rate, all side by side, and the memory."""
        made = [lane_of(self.method, self.material, part, rows, batch) for rows in orders]
        slots = made[0][1]
        each = torch.tensor(rates).repeat_interleave(slots)
        memory = new_memory(
            self.material, self.method.kind, self.method.rank, each, self.start, batch_rows=batch
        )
        lanes = side_by_side([lane for lane, _ in made], slots)
        data = data_of(self.material.parts[part], self.method.kind)
        return read_lanes(memory, data, self.weight, lanes, batch), memory

    def tune(self, batch: int = BATCH) -> dict[str, float]:
        """Nats per token of the tuning stream at every rate."""
        part, rates = self.material.parts["tuning"], self.method.rates
        order = part.order("random", 0)
        nll, _ = self.read("tuning", [order] * len(rates), rates, batch)
        part.live.close()  # the stream makes recordings of its own
        tokens = float(part.states.counts[order].sum())
        return {str(rate): float(sums.sum()) / tokens for rate, sums in zip(rates, nll)}

    def cost(self, rate: float) -> float:
        """Seconds per 1,000 scored tokens of one stream alone, after a start that is not counted."""
        part = self.material.parts["stream"]
        order = part.order("random", 0)[: 2 * COST_BATCHES * BATCH]
        half = len(order) // 2
        lane, slots = lane_of(self.method, self.material, "stream", order, BATCH)
        memory = new_memory(
            self.material, self.method.kind, self.method.rank, torch.full((slots,), rate), self.start
        )
        data = data_of(part, self.method.kind)
        seconds = []
        for at in (slice(0, half), slice(half, None)):
            started = time.perf_counter()
            read_lanes(memory, data, self.weight, [Lane(lane.rows[at], lane.slots[at])], BATCH)
            seconds.append(time.perf_counter() - started)
        return 1_000 * seconds[1] / float(part.states.counts[order[half:]].sum())


def streams_of(material: Material) -> dict[str, Tensor]:
    """The orders that every method reads, by name: the random ones, then one of each other kind."""
    part, count = material.parts["stream"], material.settings.orders
    names = [("random", seed) for seed in range(count)] + [(kind, 0) for kind in ORDERS[1:]]
    return {f"{kind}-{seed}": part.order(kind, seed) for kind, seed in names}


def robust_orders(material: Material) -> dict[str, Tensor]:
    """Orders of the same clean documents with rows in between: none, foreign, garbage, one of garbage."""
    part, extra = material.parts["stream"], material.settings.extra
    clean = part.order("random", 0)[: material.settings.robust]
    foreign, noise = (
        torch.arange(part.scored, len(part.table) - extra),
        torch.arange(len(part.table) - extra, len(part.table)),
    )
    out = {"clean": clean}
    for share in SHARES:
        out[f"foreign {share:.0%}"] = with_extra(clean, foreign, share, 0)
        out[f"garbage {share:.0%}"] = with_extra(clean, noise, share, 0)
    at = int(POISON_AT * len(clean))
    out["poisoned"] = torch.cat([clean[:at], noise[:1], clean[at:]])
    return out


def robustness(material: Material, reading: Reading, rate: float) -> dict[str, float]:
    """Nats per token over the clean documents of each robust order, and after the poisoned row."""
    orders, part = robust_orders(material), material.parts["stream"]
    nll, _ = reading.read("stream", [*orders.values()], [rate] * len(orders))
    out, counts = {}, part.states.counts
    for name, rows, sums in zip(orders, orders.values(), nll):
        clean = rows < part.scored
        out[name] = float(sums[clean].sum()) / float(counts[rows[clean]].sum())
    at = int(POISON_AT * len(orders["clean"]))
    after = orders["clean"][at : at + 100]
    gap = nll[list(orders).index("poisoned")][at + 1 : at + 1 + len(after)] - nll[0][at : at + len(after)]
    return out | {"100 rows after the poisoned one": float(gap.sum()) / float(counts[after].sum())}


def static_nll(material: Material, name: str, statics: dict[str, Tensor]) -> Tensor:
    """Sums of nats (M,) of the stream's documents under a static head, or frozen: "frozen", "frozen-live"."""
    part = material.parts["stream"]
    rows = torch.arange(part.scored)
    lane = Lane(rows, torch.zeros(len(rows), 1, dtype=torch.int64))
    kind, rank, _ = STATICS.get(name, ("layers" if name == "frozen-live" else "head", RANK, ""))
    start = statics[name].float() if name in STATICS else None
    memory = new_memory(material, kind, rank, torch.zeros(1), start)
    return read_lanes(memory, data_of(part, kind), material.weight, [lane], 8 * BATCH, learns=False)[0]
