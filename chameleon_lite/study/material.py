"""From a corpus's name to everything head training reads: tokens, hidden states, vectors, clusters.

    load_corpus ─ tokenise ─▶ TokenTable a split ─ features ─▶ ScoredStates a split
                                     └ mean_embeddings ─▶ vectors ─ fit on train, assign elsewhere ─▶ labels a split

Made once a (backbone, corpus, settings) and shared by all regimes and seeds; only the clusterings and the
arrangements belong to a seed. Besides train, validation and test there are probes, read like a test set:
`seen` (training documents, for the generalisation gap) and `transfer:<corpus>` (another corpus's test documents).
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..batches import Arrangement, arrange
from ..config import Experiment
from ..data.clusters import cluster_count, cluster_quality, fit_clusters, merge_small
from ..data.corpora import load_corpus
from ..data.corpora.documents import Corpus
from ..data.tokens import TokenTable, tokenise
from ..errors import UserError
from ..model.backbones import Backbone
from ..model.head_loss import HeadWeight, matmul_dtype
from ..training.features import features
from ..training.scored import ScoredStates, scored_states
from .conditions import Split
from .mixed import MIXED, mixed_corpus
from .units import TRANSFER
from .views import Replaced, Views, condition_tokens, with_foreign

SPLITS = ("train", "validation", "test")
SEEN = "seen"


@dataclass
class Material:
    """What one corpus is under one backbone."""

    backbone: Backbone
    corpus: Corpus
    tables: dict[str, TokenTable]
    scored: dict[str, ScoredStates]
    views: dict[str, Views]  # vectors (N, C) on the device, by name
    weight: HeadWeight
    feature_dtype: str
    seconds: dict[str, float] = field(default_factory=dict)
    foreign: Tensor | None = None  # (F, C) vectors of another corpus's training documents (claim 7)
    tokens: dict[str, Tensor] = field(default_factory=dict)  # (N, P) ids of the condition spans
    seeds: dict[int, "Seeded"] = field(default_factory=dict)

    @property
    def probes(self) -> list[str]:
        """Splits that are read like the test split, beyond it."""
        return [s for s in self.tables if s not in SPLITS]

    def facts(self) -> dict:
        """What a record says of its data."""
        return {
            "corpus": self.corpus.name,
            "hash": self.corpus.hash,
            "source": self.corpus.source,
            "notes": self.corpus.notes,
            "backbone_hash": self.backbone.hash,
            "feature_dtype": self.feature_dtype,
            "matmul_dtype": str(self.weight.weight.dtype).removeprefix("torch."),
            "documents": {s: len(t) for s, t in self.tables.items()},
            "tokens": {s: int(t.lengths.sum()) for s, t in self.tables.items()},
            "scored_tokens": {s: int(t.n_scored.sum()) for s, t in self.tables.items()},
            "dropped": {s: t.dropped for s, t in self.tables.items()},
        }


@dataclass
class Seeded:
    """What belongs to one seed: its clusterings' labels a split, and the fixed arrangements of evaluation."""

    labels: dict[str, Tensor]  # (N,) batching clusters, small ones merged: who stands beside whom
    nearest: dict[str, Tensor]  # (N,) nearest centroid of the batching clustering
    centroids: Tensor  # (K, C)
    routing: dict[str, Tensor]  # (N,) nearest centroid of the routing clustering
    quality: dict  # of the batching clustering, see data.clusters.cluster_quality
    seed: int

    def epoch(self, split: str, order: str, number: int) -> Arrangement:
        """The arrangement of a split in an epoch; evaluation uses epoch 0 throughout."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + number)
        labels = self.labels[split]
        return arrange(len(labels), labels if order == "clustered" else None, generator)


def prepare(
    settings: Experiment,
    backbone: Backbone,
    corpus_name: str,
    *,
    data_dir: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Material:
    """Build a corpus's material on the backbone's device; stages are timed and said through `say`."""
    seconds: dict[str, float] = {}
    corpus = _timed(seconds, "corpus", lambda: corpus_by_name(corpus_name, data_dir))
    say(f"{corpus.name}: {corpus.counts()['train']['documents']} training documents from {corpus.source}")
    tables = _timed(seconds, "tokens", lambda: tables_of(settings, backbone, corpus))
    device = backbone.head.weight.device
    dtype = _dtype(settings.train.feature_dtype, device)
    others = {
        name: tables_of(settings, backbone, corpus_by_name(name, data_dir))
        for name in settings.probes.corpora
        if name != corpus_name
    }
    tables |= {TRANSFER + name: other["test"] for name, other in others.items()}
    if settings.probes.seen_documents:
        tables[SEEN] = tables["train"].take(np.arange(len(tables["train"]))[: settings.probes.seen_documents])
    scored: dict[str, ScoredStates] = {}
    started = time.perf_counter()
    for split, table in tables.items():
        say(
            f"hidden states of {split}: {int(table.lengths.sum()):,} tokens in {str(dtype).removeprefix('torch.')}"
        )
        scored[split] = scored_states(features(backbone, table, dtype=dtype), table, device=device)
    seconds["features"] = time.perf_counter() - started
    embedding, length = backbone.embedding.cpu(), settings.tokens.max_length
    views = {s: Views(t, scored[s].store, embedding, device, length) for s, t in tables.items()}
    weight = HeadWeight(
        backbone.head.weight, backbone.head.bias, dtype=_dtype(settings.train.matmul_dtype, device)
    )
    material = Material(
        backbone, corpus, tables, scored, views, weight, str(dtype).removeprefix("torch."), seconds
    )
    if others and settings.probes.foreign_shares:
        material.foreign = torch.cat(
            [
                Views(
                    o["train"].take(np.arange(min(2_000, len(o["train"])))), None, embedding, device, length
                )["prefix"]
                for o in others.values()
            ]
        )
    material.tokens = {s: condition_tokens(t, backbone.vocab).to(device) for s, t in tables.items()}
    return material


def corpus_by_name(name: str, data_dir: Path | None) -> Corpus:
    """A corpus of the data room, or the mixed stream of three of them."""
    return mixed_corpus(data_dir) if name == MIXED else load_corpus(name, data_dir=data_dir)


def tables_of(settings: Experiment, backbone: Backbone, corpus: Corpus) -> dict[str, TokenTable]:
    """Tokenise each split and draw the subsets the settings ask for."""
    words = settings.tokens.model_dump()
    generator = np.random.default_rng(settings.data.subset_seed)
    tables = {}
    for split in SPLITS:
        table = tokenise(corpus.splits[split], backbone.tokenizer, **words)
        order = generator.permutation(len(table))
        if split == "train" and settings.data.max_train_tokens is not None:
            within = np.cumsum(table.lengths[order]) <= settings.data.max_train_tokens
            order = order[: max(1, int(within.sum()))]
        elif split != "train":
            order = order[: getattr(settings.data, f"max_{split}_documents")]
        tables[split] = table.take(np.sort(order))
    return tables


def seed_material(settings: Experiment, material: Material, seed: int) -> Seeded:
    """Fit both clusterings on train with this seed and assign the other splits to their centroids; kept."""
    if seed not in material.seeds:
        vectors = {s: v["prefix"].cpu() for s, v in material.views.items()}
        material.seeds[seed] = _fit_seed(
            settings, vectors, material.tables["train"], material.corpus.name, seed
        )
    return material.seeds[seed]


def seed_materials(settings: Experiment, material: Material, seeds: Sequence[int]) -> None:
    """The same for several seeds side by side: k-means is on one thread each, so that it repeats itself."""
    from threadpoolctl import threadpool_limits

    missing = [s for s in seeds if s not in material.seeds]
    [views["prefix"] for views in material.views.values()]  # made once, before threads ask
    # The outer limit keeps one thread's exit from lifting another's.
    with threadpool_limits(limits=1), ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(lambda seed: seed_material(settings, material, seed), missing))


def _fit_seed(
    settings: Experiment, vectors: dict[str, Tensor], table: TokenTable, corpus: str, seed: int
) -> Seeded:
    rows, minimum, train = settings.clusters.batch_rows, settings.clusters.minimum, vectors["train"]
    if len(train) < rows:
        raise UserError(
            f"{corpus} has {len(train)} training documents, fewer than one batch of {rows}: "
            "use more text or a smaller clusters.batch_rows"
        )
    batching = fit_clusters(train, cluster_count(len(train), rows), seed=seed)
    router = fit_clusters(train, min(settings.clusters.routing_clusters, len(train) // rows + 1), seed=seed)
    nearest, labels, routing = {}, {}, {}
    for split, x in vectors.items():
        nearest[split] = batching.labels if split == "train" else batching.assign(x)[0]
        labels[split] = merge_small(x, nearest[split], batching.centroids, minimum=minimum)
        routing[split] = router.labels if split == "train" else router.assign(x)[0]
    quality = cluster_quality(batching, groups=table.groups, lengths=table.lengths)
    return Seeded(labels, nearest, batching.centroids, routing, quality, seed)


def split_view(material: Material, seeded: Seeded, split: str, foreign_share: float = 0.0) -> Split:
    """What condition sources see of a split; with `foreign_share` of its vectors replaced by foreign ones."""
    views = material.views[split]
    if foreign_share:
        generator = torch.Generator().manual_seed(seeded.seed)
        views = Replaced(views, with_foreign(views["prefix"], material.foreign, foreign_share, generator))
    domains = sorted(set(material.tables["train"].groups))
    number = {name: i for i, name in enumerate(domains)}
    domain = torch.tensor([number.get(g, 0) for g in material.tables[split].groups])
    centroids = seeded.centroids.to(views["prefix"].device)
    return Split(
        views, seeded.nearest[split], centroids, seeded.routing[split], domain, material.tokens[split]
    )


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)
    return matmul_dtype(device)


def _timed(seconds: dict[str, float], stage: str, work: Callable):
    started = time.perf_counter()
    out = work()
    seconds[stage] = time.perf_counter() - started
    return out
