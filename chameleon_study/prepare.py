"""From a corpus's name to everything head training reads: tokens, hidden states, vectors, clusters.

    load_corpus ─ tokenise ─▶ TokenTable per split ─ hidden_states ─▶ ScoredStates per split
                                     └ mean_embeddings ─▶ vectors ─ fit on train, assign elsewhere ─▶ labels per split

Built once per (backbone, corpus, settings) and shared by all regimes and seeds; only the clusterings and the
arrangements belong to a seed. Besides train, validation and test there are probes, read like a test set:
`seen` (a random sample of training documents, for the generalisation gap) and `transfer:<corpus>` (another corpus's
test documents).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from chameleon_lite import Arrangement, Backbone, HeadWeight, TokenTable, arrange, mean_embeddings, tokenise
from chameleon_lite.app.corpus import SPLITS, Corpus
from chameleon_lite.backbones.formats import number_format
from chameleon_lite.cluster import cluster_count, fit_clusters, merge_small
from chameleon_lite.errors import UserError
from chameleon_lite.states import ScoredStates, hidden_states
from chameleon_lite.train import Member, evaluate, train_heads

from .config import Experiment
from .records import TRANSFER
from .sources import Split, Views, cluster_quality

SEEN = "seen"
SEEN_SEED = 20_000  # of the sample, whatever seed a run has
FOREIGN_DOCUMENTS = 2_000  # of each other corpus

Say = Callable[[str], None]


@dataclass
class Material:
    """One corpus under one backbone, whatever the procedure."""

    backbone: Backbone
    corpus: Corpus
    tables: dict[str, TokenTable]
    scored: dict[str, ScoredStates]
    weight: HeadWeight
    feature_dtype: torch.dtype
    seconds: dict[str, float]

    def train(self, members: list[Member], orders: Callable[..., Arrangement], *how, **options) -> None:
        """Train heads side by side in the order `orders(split, number=epoch)`; the rest as for `train_heads`."""
        train = (self.scored["train"], lambda epoch: orders("train", number=epoch))
        check = (self.scored["validation"], orders("validation", number=0))
        train_heads(members, *train, *check, self.weight, *how, **options)

    def nll(self, heads: list[tuple], split: str, order: Arrangement, **options) -> Tensor:
        """The nll sums (H, N) of a split's documents, in nats on the host; see `train.evaluate`."""
        return evaluate(heads, self.scored[split], order, self.weight, **options).cpu()

    def facts(self, seed: int) -> dict:
        """A record's `data`."""
        kinds = {"feature_dtype": self.feature_dtype, "matmul_dtype": self.weight.weight.dtype}
        return {
            "corpus": self.corpus.name,
            **{name: getattr(self.corpus, name) for name in ("hash", "source", "notes")},
            "backbone_hash": self.backbone.hash,
            **{name: str(kind).removeprefix("torch.") for name, kind in kinds.items()},
            "documents": {s: len(t) for s, t in self.tables.items()},
            "tokens": {s: int(t.lengths.sum()) for s, t in self.tables.items()},
            "scored_tokens": {s: int(x.counts.sum()) for s, x in self.scored.items()},
        }


@dataclass
class SeedClusterings:
    """What belongs to one seed: its clusterings, and with them the arrangements."""

    labels: dict[str, Tensor]  # (N,) batching clusters, small ones merged: decides the batches
    splits: dict[str, Split]  # what condition sources see
    foreign: Tensor | None
    quality: dict  # of the batching clustering, see `cluster_quality`
    seed: int
    clean: Tensor | None = None  # rows (N',) that keep their own vectors: what foreign ones cost

    def epoch(self, split: str, order: str, number: int) -> Arrangement:
        """The arrangement of a split in an epoch; evaluation uses epoch 0 throughout."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + number)
        labels = self.labels[split]
        return arrange(len(labels), labels if order == "clustered" else None, generator)

    def with_foreign(self, split: str, share: float) -> "SeedClusterings":
        """The same with this share of a split's vectors, never all, replaced by foreign ones, as outliers."""
        views, generator = copy(self.splits[split].views), torch.Generator().manual_seed(self.seed)
        vectors = views["prefix"].clone()  # (N, C)
        count = min(round(share * len(vectors)), len(vectors) - 1)
        place, clean = torch.randperm(len(vectors), generator=generator).tensor_split([count])
        place = place.to(vectors.device)
        pick = torch.randint(len(self.foreign), (count,), generator=generator).to(vectors.device)
        vectors[place] = self.foreign[pick]
        views["prefix"] = vectors
        splits = self.splits | {split: replace(self.splits[split], views=views)}
        return replace(self, splits=splits, clean=clean.sort().values)


@dataclass
class PreparedCorpus(Material):
    """A corpus under the honest procedure."""

    views: dict[str, Views]
    transfers: dict[str, str]  # the hashes of other corpora whose documents are read
    foreign: Tensor | None  # (F, C) vectors of other corpora's training documents (claim 7)
    seeds: dict[int, SeedClusterings] = field(default_factory=dict)

    def facts(self, seed: int) -> dict:
        dropped = {s: t.dropped for s, t in self.tables.items()}
        own = {"transfers": self.transfers, "clusters": self.seeds[seed].quality, "dropped": dropped}
        return super().facts(seed) | own


def prepare(
    settings: Experiment, backbone: Backbone, corpus: Corpus, others=None, say: Say = lambda text: None
) -> PreparedCorpus:
    """A corpus's tables, states and vectors on the backbone's device, with what is read of `others`; timed."""
    seconds: dict[str, float] = {}
    say(f"{corpus.name}: {corpus.counts()['train']['documents']} training documents from {corpus.source}")
    with timed(seconds, "tokens"):
        tables = tables_of(settings, backbone, corpus)
    longest, writes = int(tables["test"].prefix.max()), settings.probes.generate
    if writes and longest + writes.new_tokens > backbone.max_length:
        too_long = f"prompts of up to {longest} tokens and {writes.new_tokens} new ones exceed"
        raise UserError(f"{too_long} {backbone.max_length} positions: lower probes.generate.new_tokens")
    others = others or {}
    probes = {name: tables_of(settings, backbone, other) for name, other in others.items()}
    tables |= {TRANSFER + name: probe["test"] for name, probe in probes.items()}
    if settings.probes.seen_documents:
        drawn = np.random.default_rng(SEEN_SEED).permutation(len(tables["train"]))
        tables[SEEN] = tables["train"].take(np.sort(drawn[: settings.probes.seen_documents]))
    device, states, train = backbone.device, {}, settings.train
    feature, matmul = (number_format(name, device) for name in (train.feature_dtype, train.matmul_dtype))
    with timed(seconds, "features"):
        for split, table in tables.items():
            say(f"hidden states of {split}: {int(table.lengths.sum()):,} tokens in {feature}")
            states[split] = hidden_states(backbone, table, feature)
    embedding = backbone.embedding.detach().cpu()
    foreign = [mean_embeddings(p["train"], embedding)[:FOREIGN_DOCUMENTS] for p in probes.values()]
    scored = {s: ScoredStates(table, states[s], device) for s, table in tables.items()}
    views = {s: Views(backbone, table, states[s], settings.tokens.max_length) for s, table in tables.items()}
    weight = HeadWeight(backbone.head.weight, backbone.head.bias, dtype=matmul)
    foreign = torch.cat(foreign).to(device) if foreign and settings.probes.foreign_shares else None
    shared = (backbone, corpus, tables, scored, weight, feature, seconds)
    return PreparedCorpus(*shared, views, {name: other.hash for name, other in others.items()}, foreign)


def tables_of(settings: Experiment, backbone: Backbone, corpus: Corpus) -> dict[str, TokenTable]:
    """Tokenise each split and draw the subsets the settings ask for."""
    options, data, tables = settings.tokens.model_dump(), settings.data, {}
    generator = np.random.default_rng(data.subset_seed)
    for split in SPLITS:
        table = tokenise(corpus.splits[split], backbone.tokenizer, **options)
        order = generator.permutation(len(table))
        if split != "train":
            order = order[: getattr(data, f"max_{split}_documents")]
        elif data.max_train_tokens is not None:
            within = np.cumsum(table.lengths[order]) <= data.max_train_tokens
            order = order[: max(1, int(within.sum()))]
        tables[split] = table.take(np.sort(order))
    return tables


def seed_material(settings: Experiment, material: PreparedCorpus, seed: int) -> SeedClusterings:
    """Fit both clusterings on train with this seed and assign the other splits to their centroids; once per seed."""
    if seed in material.seeds:
        return material.seeds[seed]
    table, rows = material.tables["train"], settings.clusters.batch_rows
    train = material.views["train"]["prefix"].cpu()
    check_batch(len(train), rows)
    batching = fit_clusters(train, cluster_count(len(train), rows), seed=seed)
    router = fit_clusters(train, min(settings.clusters.routing_clusters, len(train) // rows + 1), seed=seed)
    number = {name: i for i, name in enumerate(sorted(set(table.groups)))}
    centroids, labels, splits = batching.centroids.to(material.backbone.device), {}, {}
    for split, views in material.views.items():
        x = views["prefix"].cpu()
        nearest, routing = (f.labels if split == "train" else f.assign(x)[0] for f in (batching, router))
        labels[split] = merge_small(x, nearest, batching.centroids, minimum=settings.clusters.minimum)
        domain = torch.tensor([number.get(group, 0) for group in material.tables[split].groups])
        splits[split] = Split(views, nearest, centroids, routing, domain)
    quality = cluster_quality(batching, groups=table.groups, lengths=table.lengths)
    material.seeds[seed] = SeedClusterings(labels, splits, material.foreign, quality, seed)
    return material.seeds[seed]


def check_batch(count: int, rows: int) -> None:
    """UserError for fewer training documents than one batch."""
    if count < rows:
        raise UserError(f"{count} documents, fewer than one batch of {rows}: lower clusters.batch_rows")


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Store the seconds of the block under the stage's name."""
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
