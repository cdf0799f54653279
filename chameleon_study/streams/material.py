"""What all methods of the stream study read: tables, frozen states, vectors of prefixes, orders.

corpus ─ tokens ─▶ parts: stream (+ foreign and garbage rows at its end), tuning, train, other
frozen states of each part, computed once ─▶ vectors of the prefixes: hidden states, token embeddings
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from chameleon_lite.app.corpus import Corpus
from chameleon_lite.backbone import Backbone
from chameleon_lite.backbones.formats import number_format
from chameleon_lite.cluster import fit_clusters
from chameleon_lite.embed import mean_embeddings, normalise
from chameleon_lite.loss import HeadWeight
from chameleon_lite.settings import Settings, TokenSettings
from chameleon_lite.states import ScoredStates, hidden_states
from chameleon_lite.streams.online import LayerStates, OnlineClusters
from chameleon_lite.text import TokenTable, cumulative, ragged, tokenise

from ..prepare import timed
from ..provenance import placeless

ORDERS = ("random", "bursty", "drifting")
BURST = 256  # rows of one source on average, before another one follows
LIVE_TOKENS = {"cuda": 24_576}  # that go through the layers at once; on a GPU with 80 GB


class StreamSettings(Settings):
    """The sizes of a run. `orders` are random ones, crossed with the documents."""

    documents: int = 20_480
    tuning: int = 8_192
    train: int = 10_240
    validation: int = 1_024
    epochs: int = 4
    orders: int = 5
    robust: int = 5_120
    extra: int = 5_120  # foreign and garbage rows, each
    tokens: TokenSettings = TokenSettings()


PROFILES = {
    "paper": StreamSettings(),
    "smoke": StreamSettings(
        documents=96, tuning=64, train=64, validation=16, epochs=2, orders=2, robust=32, extra=32
    ),
}


@dataclass
class Part:
    """N documents, with M of them scored and the others (at the end) only to be put in between."""

    table: TokenTable
    states: ScoredStates
    live: LayerStates
    hidden: Tensor  # (N, C) mean hidden state of the prefix, standardised on the training part, length 1
    embedding: Tensor  # (N, C) mean token embedding of the prefix, length 1
    source: Tensor  # (N,) number of the document's source
    scored: int  # M

    def order(self, kind: str, seed: int) -> Tensor:
        """The scored documents (M,) in one of ORDERS."""
        return order_of(kind, self.source[: self.scored], seed)


@dataclass
class Material:
    """The parts, the frozen head and what a run was made from."""

    settings: StreamSettings
    backbone: Backbone
    weight: HeadWeight
    parts: dict[str, Part]
    facts: dict
    seconds: dict[str, float]
    kept: dict = field(default_factory=dict)  # clusterings by name, and what else is fitted once

    def labels(self, groups: str, part: str, order: Tensor, batch: int) -> tuple[Tensor, int]:
        """Cluster (N,) of each document and their number, for "hidden-16", "online-16", "oracle" and so on.

        Clusters of hidden states or embeddings are fitted on the training part; online ones go along the
        order.
        """
        kind, _, count = groups.partition("-")
        here = self.parts[part]
        if kind == "oracle":
            return here.source, len(self.facts["sources"])
        k = int(count)
        if kind == "random":
            return torch.randint(k, (len(here.table),), generator=torch.Generator().manual_seed(k)), k
        if kind == "online":
            online, labels = OnlineClusters(k, here.hidden.shape[1]), torch.zeros(len(here.table)).long()
            for rows in order.split(batch):
                labels[rows] = online(here.hidden[rows])
            return labels, k
        if groups not in self.kept:
            self.kept[groups] = fit_clusters(getattr(self.parts["train"], kind), k, seed=0)
        return self.kept[groups].assign(getattr(here, kind))[0].cpu(), k


def prepare(
    settings: StreamSettings, backbone: Backbone, corpus: Corpus, say: Callable[[str], None] = print
) -> Material:
    """Tokenise the parts, draw their documents, and compute frozen states and vectors."""
    seconds: dict[str, float] = {}
    sizes = {"stream": settings.documents, "tuning": settings.tuning}
    tables = {}
    for name in ("train", "other", "tuning", "stream"):
        table = tokenise(corpus.splits[name], backbone.tokenizer, **settings.tokens.model_dump())
        order = np.random.default_rng(0).permutation(len(table))
        tables[name] = table.take(order[: sizes.get(name, settings.train)])
    names = sorted({g for name in ("stream", "tuning", "train") for g in tables[name].groups})
    scored = {name: len(table) for name, table in tables.items()}
    foreign = tables["other"].take(np.arange(min(settings.extra, len(tables["other"]))))
    tables["stream"] = joined(
        tables["stream"], foreign, garbage(tables["stream"], settings.extra, backbone.vocab)
    )
    dtype = number_format("auto", backbone.device)
    parts, scale = {}, None
    for name, table in tables.items():
        say(
            f"{name}: {scored[name]:,} documents, {int(table.n_scored[: scored[name]].sum()):,} scored tokens"
        )
        with timed(seconds, f"states {name}"):
            raw = hidden_states(backbone, table, dtype)
        hidden = prefix_means(table, raw)
        scale = scale or (hidden.mean(0), hidden.std(0).clamp_min(1e-6))
        number = {source: i for i, source in enumerate(names)}
        parts[name] = Part(
            table,
            ScoredStates(table, raw, backbone.device),
            LayerStates(backbone, table, LIVE_TOKENS.get(backbone.device.type)),
            normalise((hidden - scale[0]) / scale[1]),
            mean_embeddings(table, backbone.embedding.cpu()),
            torch.tensor([number.get(group, 0) for group in table.groups]),
            scored[name],
        )
    facts = {
        "corpus": corpus.hash,
        "sources": names,
        "backbone": placeless(backbone.name),
        "backbone_hash": backbone.hash,
    }
    facts |= {
        "documents": scored,
        "tokens": {n: int(p.table.n_scored[: p.scored].sum()) for n, p in parts.items()},
    }
    weight = HeadWeight(backbone.head.weight, backbone.head.bias)
    return Material(settings, backbone, weight, parts, facts, seconds)


def joined(*tables: TokenTable) -> TokenTable:
    """Tables one behind the other."""
    columns = {
        name: np.concatenate([getattr(t, name) for t in tables]) for name in ("ids", "prefix", "condition")
    }
    offsets = cumulative(np.concatenate([t.lengths for t in tables]))
    names = tuple(f"{i}/{name}" for i, t in enumerate(tables) for name in t.names)
    groups = tuple(group for t in tables for group in t.groups)
    scored_bytes = np.concatenate([t.scored_bytes for t in tables])
    return replace(
        tables[0], offsets=offsets, names=names, groups=groups, scored_bytes=scored_bytes, **columns
    )


def garbage(table: TokenTable, rows: int, vocab: int) -> TokenTable:
    """Rows of random tokens, as long as the table's first ones."""
    some = table.take(np.arange(rows) % len(table))
    return replace(some, ids=np.random.default_rng(1).integers(0, vocab, len(some.ids)).astype(np.int32))


def prefix_means(table: TokenTable, states: np.ndarray) -> Tensor:
    """Mean state (N, C) float32 over each document's prefix, whose tokens are known before any is scored.

    Of long prompts the last 32 tokens.
    """
    count = np.minimum(table.prefix, 32)
    starts = table.offsets[:-1] + table.prefix - count
    out = np.empty((len(table), states.shape[1]), dtype=np.float32)
    for rows in np.array_split(np.arange(len(table)), -(-len(table) // 1_024)):
        some = states[ragged(starts[rows], count[rows])].astype(np.float32)
        out[rows] = np.add.reduceat(some, cumulative(count[rows])[:-1]) / count[rows, None]
    return torch.from_numpy(out)


def order_of(kind: str, source: Tensor, seed: int) -> Tensor:
    """Documents of sources (M,) as they arrive (M,): "random", "bursty" (by source), "drifting" (A, B, A).

    A is every other source by number of documents, B the other ones.
    """
    numbers = np.random.default_rng([seed, ORDERS.index(kind)])
    order, source = numbers.permutation(len(source)), source.numpy()
    if kind == "random":
        return torch.from_numpy(order)
    queues = {s: list(order[source[order] == s]) for s in np.unique(source[order])}
    if kind == "drifting":
        largest = sorted(queues, key=lambda s: -len(queues[s]))
        half = np.isin(source[order], largest[::2])
        a, b = order[half], order[~half]
        return torch.from_numpy(np.concatenate([a[: len(a) // 2], b, a[len(a) // 2 :]]))
    out: list[int] = []
    while queues:
        left = np.array([len(queue) for queue in queues.values()])
        s = numbers.choice([*queues], p=left / left.sum())
        take = int(numbers.geometric(1 / BURST))
        out += queues[s][:take]
        queues[s] = queues[s][take:]
        queues = {s: queue for s, queue in queues.items() if queue}
    return torch.tensor(out)


def with_extra(order: Tensor, extra: Tensor, share: float, seed: int) -> Tensor:
    """An order with rows of `extra` put in at random places: `share` of all, repeated where short."""
    count = round(len(order) * share / (1 - share))
    numbers = np.random.default_rng([seed, 5])
    chosen = numbers.permutation(np.resize(extra.numpy(), count))
    at = np.sort(numbers.integers(0, len(order) + 1, count))
    return torch.from_numpy(np.insert(order.numpy(), at, chosen))
