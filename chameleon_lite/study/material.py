"""From a corpus's name to everything head training reads: tokens, hidden states, vectors, clusters.

    load_corpus ─ tokenise ─▶ TokenTable a split ─ features ─▶ ScoredStates a split
                                     └ mean_embeddings ─▶ vectors ─ fit on train, assign elsewhere ─▶ labels a split

Made once a (backbone, corpus, settings) and shared by all regimes and seeds; only the batching clustering and
the arrangements belong to a seed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import Experiment
from ..data.arrangement import Arrangement, arrange
from ..data.clusters import fit_clusters, merge_small
from ..data.corpora import load_corpus
from ..data.corpora.documents import Corpus
from ..data.embeddings import mean_embeddings
from ..data.tokens import TokenTable, tokenise
from ..errors import UserError
from ..model.backbones import Backbone
from ..model.head_loss import HeadWeight, matmul_dtype
from ..training.features import features
from ..training.scored import ScoredStates, scored_states
from .conditions import Split

SPLITS = ("train", "validation", "test")


@dataclass
class Material:
    """What one corpus is under one backbone."""

    backbone: Backbone
    corpus: Corpus
    tables: dict[str, TokenTable]
    scored: dict[str, ScoredStates]
    vectors: dict[str, Tensor]  # (N, C) on the device
    weight: HeadWeight
    feature_dtype: str
    seconds: dict[str, float] = field(default_factory=dict)

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
    """What belongs to one seed: labels of the batching clustering, and the fixed arrangements of evaluation."""

    labels: dict[str, Tensor]
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
    corpus = _timed(seconds, "corpus", lambda: load_corpus(corpus_name, data_dir=data_dir))
    say(f"{corpus.name}: {corpus.counts()['train']['documents']} training documents from {corpus.source}")
    tables = _timed(seconds, "tokens", lambda: tables_of(settings, backbone, corpus))
    device = backbone.head.weight.device
    dtype = _dtype(settings.train.feature_dtype, device)
    scored: dict[str, ScoredStates] = {}
    started = time.perf_counter()
    for split, table in tables.items():
        say(f"hidden states of {split}: {int(table.lengths.sum()):,} tokens in {str(dtype).removeprefix('torch.')}")
        scored[split] = scored_states(features(backbone, table, dtype=dtype), table, device=device)
    seconds["features"] = time.perf_counter() - started
    vectors = {
        s: mean_embeddings(t, backbone.embedding.cpu(), span="condition").to(device) for s, t in tables.items()
    }
    weight = HeadWeight(backbone.head.weight, backbone.head.bias, dtype=_dtype(settings.train.matmul_dtype, device))
    return Material(backbone, corpus, tables, scored, vectors, weight, str(dtype).removeprefix("torch."), seconds)


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
    """Fit the batching clustering on train with this seed and assign the other splits to its centroids."""
    rows, minimum = settings.clusters.batch_rows, settings.clusters.minimum
    train = material.vectors["train"].cpu()
    if len(train) < rows:
        raise UserError(
            f"{material.corpus.name} has {len(train)} training documents, fewer than one batch of {rows}: "
            "use more text or a smaller clusters.batch_rows"
        )
    clustering = fit_clusters(train, max(1, len(train) // rows), seed=seed)
    labels = {}
    for split, vectors in material.vectors.items():
        vectors = vectors.cpu()
        nearest = clustering.labels if split == "train" else clustering.assign(vectors)[0]
        labels[split] = merge_small(vectors, nearest, clustering.centroids, minimum=minimum)
    return Seeded(labels, seed)


def split_view(material: Material, split: str) -> Split:
    """What condition sources see of a split."""
    return Split(material.vectors[split])


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)
    return matmul_dtype(device)


def _timed(seconds: dict[str, float], stage: str, work: Callable):
    started = time.perf_counter()
    out = work()
    seconds[stage] = time.perf_counter() - started
    return out
