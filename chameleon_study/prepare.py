"""From a corpus's name to everything head training reads: tokens, hidden states, vectors, clusters.

    load_corpus ─ tokenise ─▶ TokenTable per split ─ hidden_states ─▶ ScoredStates per split
                                     └ mean_embeddings ─▶ vectors ─ fit on train, assign elsewhere ─▶ labels per split

Built once per (backbone, corpus, settings) and shared by all regimes and seeds; only the clusterings and the
arrangements belong to a seed. Besides train, validation and test there are probes, read like a test set:
`seen` (training documents, for the generalisation gap) and `transfer:<corpus>` (another corpus's test documents).
"""

import time
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from chameleon_lite.app.corpus import SPLITS, Corpus
from chameleon_lite.backbone import Backbone
from chameleon_lite.backbones.formats import number_format
from chameleon_lite.batches import Arrangement, arrange
from chameleon_lite.cluster import cluster_count, fit_clusters, merge_small
from chameleon_lite.errors import UserError
from chameleon_lite.loss import HeadWeight
from chameleon_lite.settings import ClusterSettings
from chameleon_lite.states import ScoredStates, hidden_states
from chameleon_lite.text import TokenTable, tokenise

from .cluster_quality import cluster_quality
from .config import Experiment
from .records import TRANSFER
from .sources import Split, Views, with_foreign

SEEN = "seen"
FOREIGN_DOCUMENTS = 2_000  # of each other corpus


@dataclass
class PreparedCorpus:
    """What one corpus is under one backbone."""

    backbone: Backbone
    corpus: Corpus
    tables: dict[str, TokenTable]
    scored: dict[str, ScoredStates]
    views: dict[str, Views]
    weight: HeadWeight
    feature_dtype: str
    seconds: dict[str, float]
    transfers: dict[str, str]  # the hashes of other corpora whose documents are read
    foreign: Tensor | None  # (F, C) vectors of other corpora's training documents (claim 7)
    seeds: dict[int, "SeedClusterings"] = field(default_factory=dict)

    def facts(self, seed: int) -> dict:
        """A record's `data`."""
        return common_facts(self) | {
            "transfers": self.transfers,
            "clusters": self.seeds[seed].quality if seed in self.seeds else None,
            "scored_tokens": {s: int(t.n_scored.sum()) for s, t in self.tables.items()},
            "dropped": {s: t.dropped for s, t in self.tables.items()},
        }


def common_facts(material) -> dict:
    """What every record holds about its corpus, backbone and number formats, whatever the procedure."""
    return {
        "corpus": material.corpus.name,
        "hash": material.corpus.hash,
        "source": material.corpus.source,
        "notes": material.corpus.notes,
        "backbone_hash": material.backbone.hash,
        "feature_dtype": material.feature_dtype,
        "matmul_dtype": str(material.weight.weight.dtype).removeprefix("torch."),
        "documents": {s: len(t) for s, t in material.tables.items()},
        "tokens": {s: int(t.lengths.sum()) for s, t in material.tables.items()},
    }


@dataclass
class SeedClusterings:
    """What belongs to one seed: its clusterings, and with them the arrangements."""

    labels: dict[str, Tensor]  # (N,) batching clusters, small ones merged: decides the batches
    splits: dict[str, Split]  # what condition sources see
    foreign: Tensor | None
    quality: dict  # of the batching clustering, see cluster_quality.py
    seed: int

    def epoch(self, split: str, order: str, number: int) -> Arrangement:
        """The arrangement of a split in an epoch; evaluation uses epoch 0 throughout."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + number)
        labels = self.labels[split]
        return arrange(len(labels), labels if order == "clustered" else None, generator)

    def with_foreign(self, split: str, share: float) -> Split:
        """A split with this share of its vectors replaced by foreign ones."""
        view, generator = self.splits[split], torch.Generator().manual_seed(self.seed)
        views = copy(view.views)
        views["prefix"] = with_foreign(view.vectors, self.foreign, share, generator)
        return replace(view, views=views)


def prepare(
    settings: Experiment,
    backbone: Backbone,
    corpus: Corpus,
    others: Mapping[str, Corpus] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> PreparedCorpus:
    """A corpus's tables, states and vectors on the backbone's device; stages are timed and logged through `say`.

    The test documents of `others` are read too, and their training documents are the foreign rows of claim 7.
    """
    seconds: dict[str, float] = {}
    say(f"{corpus.name}: {corpus.counts()['train']['documents']} training documents from {corpus.source}")
    tables = timed(seconds, "tokens", lambda: tables_of(settings, backbone, corpus))
    _check_room(settings, backbone, tables["test"])
    others = others or {}
    probes = {name: tables_of(settings, backbone, other) for name, other in others.items()}
    tables |= {TRANSFER + name: probe["test"] for name, probe in probes.items()}
    if settings.probes.seen_documents:
        tables[SEEN] = _first(tables["train"], settings.probes.seen_documents)
    device, length = backbone.device, settings.tokens.max_length
    dtype = number_format(settings.train.feature_dtype, device)
    feature_dtype = str(dtype).removeprefix("torch.")

    def states_of(split: str) -> np.ndarray:
        say(f"hidden states of {split}: {int(tables[split].lengths.sum()):,} tokens in {feature_dtype}")
        return hidden_states(backbone, tables[split], dtype)

    states = timed(seconds, "features", lambda: {split: states_of(split) for split in tables})
    foreign = [_first(other["train"], FOREIGN_DOCUMENTS) for other in probes.values()]
    foreign = [Views(backbone, table, None, length)["prefix"] for table in foreign]
    matmul = number_format(settings.train.matmul_dtype, device)
    return PreparedCorpus(
        backbone,
        corpus,
        tables,
        {s: ScoredStates(table, states[s], device) for s, table in tables.items()},
        {s: Views(backbone, table, states[s], length) for s, table in tables.items()},
        HeadWeight(backbone.head.weight, backbone.head.bias, dtype=matmul),
        feature_dtype,
        seconds,
        {name: other.hash for name, other in others.items()},
        torch.cat(foreign) if foreign and settings.probes.foreign_shares else None,
    )


def _first(table: TokenTable, count: int) -> TokenTable:
    return table.take(np.arange(min(count, len(table))))


def _check_room(settings: Experiment, backbone: Backbone, table: TokenTable) -> None:
    """Raises UserError where a prompt and its continuation would not fit the backbone's positions."""
    new = settings.probes.generate.new_tokens if settings.probes.generate else 0
    longest = int(table.prefix.max())
    if new and longest + new > backbone.max_length:
        raise UserError(
            f"prompts of up to {longest} tokens and {new} new ones exceed {backbone.name}'s "
            f"{backbone.max_length} positions: lower probes.generate.new_tokens"
        )


def tables_of(settings: Experiment, backbone: Backbone, corpus: Corpus) -> dict[str, TokenTable]:
    """Tokenise each split and draw the subsets the settings ask for."""
    options = settings.tokens.model_dump()
    generator = np.random.default_rng(settings.data.subset_seed)
    tables = {}
    for split in SPLITS:
        table = tokenise(corpus.splits[split], backbone.tokenizer, **options)
        order = generator.permutation(len(table))
        if split == "train" and settings.data.max_train_tokens is not None:
            within = np.cumsum(table.lengths[order]) <= settings.data.max_train_tokens
            order = order[: max(1, int(within.sum()))]
        elif split != "train":
            order = order[: getattr(settings.data, f"max_{split}_documents")]
        tables[split] = table.take(np.sort(order))
    return tables


def seed_material(settings: Experiment, material: PreparedCorpus, seed: int) -> SeedClusterings:
    """Fit both clusterings on train with this seed and assign the other splits to their centroids; once per seed."""
    if seed not in material.seeds:
        material.seeds[seed] = _fit_seed(settings.clusters, material, seed)
    return material.seeds[seed]


def check_batch(count: int, rows: int) -> None:
    """UserError for fewer training documents than one batch."""
    if count < rows:
        raise UserError(f"{count} documents, fewer than one batch of {rows}: lower clusters.batch_rows")


def _fit_seed(settings: ClusterSettings, material: PreparedCorpus, seed: int) -> SeedClusterings:
    table, rows = material.tables["train"], settings.batch_rows
    train = material.views["train"]["prefix"].cpu()
    check_batch(len(train), rows)
    batching = fit_clusters(train, cluster_count(len(train), rows), seed=seed)
    router = fit_clusters(train, min(settings.routing_clusters, len(train) // rows + 1), seed=seed)
    number = {name: i for i, name in enumerate(sorted(set(table.groups)))}
    centroids, labels, splits = batching.centroids.to(material.backbone.device), {}, {}
    for split, views in material.views.items():
        x = views["prefix"].cpu()
        fits = (batching, router)
        nearest, routing = (fit.labels if split == "train" else fit.assign(x)[0] for fit in fits)
        labels[split] = merge_small(x, nearest, batching.centroids, minimum=settings.minimum)
        domain = torch.tensor([number.get(group, 0) for group in material.tables[split].groups])
        splits[split] = Split(views, nearest, centroids, routing, domain)
    quality = cluster_quality(batching, groups=table.groups, lengths=table.lengths)
    return SeedClusterings(labels, splits, material.foreign, quality, seed)


def timed(seconds: dict[str, float], stage: str, work: Callable):
    """The result of work(); its seconds are stored under the stage's name."""
    started = time.perf_counter()
    out = work()
    seconds[stage] = time.perf_counter() - started
    return out
