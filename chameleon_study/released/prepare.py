"""A corpus under a protocol: rows, states, vectors, clusters and batches, switch by switch.

Corpus ─ split ─ tokenise ─▶ TokenTable per split ─ padded_states, LivePaddedStates, LiveStates ─▶ scored pairs
                                 └ span, padded or not ─▶ vectors ─ k-means ─▶ batches per seed

Released k-means: no seed, ten steps from random rows, empty clusters keep their stale centroid, and the list
of batches is made once. Here: the same with a seed; the method's cluster.py and batches.py hold what the
study uses.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from chameleon_lite import Arrangement, HeadWeight, TokenTable, add_lora, tokenise
from chameleon_lite.app.corpus import SPLITS, Corpus
from chameleon_lite.backbone import Backbone, copied
from chameleon_lite.backbones.formats import number_format
from chameleon_lite.cluster import Clustering, fit_clusters, merge_small, nearest_centroid
from chameleon_lite.errors import UserError
from chameleon_lite.train_layers import LiveStates

from ..config import Experiment
from ..prepare import Material, check_batch, timed
from ..regimes import RANK
from ..sources import from_the_start, span_vectors
from .protocol import Protocol, protocol_of
from .states import LivePaddedStates, Scoring, live_dropout, padded_states

LLOYD_STEPS = 10
SCRIPT_SEED = 42  # the Alpaca script draws its validation rows with this seed


@dataclass
class ReleasedCorpus(Material):
    """A corpus under a protocol; `scored` are computed anew for every batch where its backbone is live."""

    settings: Experiment
    protocol: Protocol
    scoring: Scoring
    cluster_vectors: dict[str, Tensor]  # (N, C) on the device
    condition_vectors: dict[str, Tensor]  # (N, C) on the device
    dropout: dict | None  # of the live backbone

    def full(self, split: str) -> Tensor:
        """Which rows (N,) hold no padding."""
        return torch.from_numpy(self.tables[split].lengths >= self.settings.tokens.max_length)

    def facts(self, seed: int) -> dict:
        T = self.settings.tokens.max_length  # of a padded row
        return super().facts(seed) | {
            "full_rows": {s: int(self.full(s).sum()) for s in self.tables},
            "padding_share": {s: 1 - float(t.lengths.sum() / (len(t) * T)) for s, t in self.tables.items()},
            "backbone_dropout": self.dropout,
            "backbone_parameters": self.backbone.parameters,
            "protocol": self.protocol.model_dump(),
        }


def prepare_released(settings, backbone: Backbone, corpus: Corpus, say=lambda text: None) -> ReleasedCorpus:
    """A corpus's tables, states and vectors under the experiment's protocol; stages are timed."""
    protocol, seconds, scored, clusters, conditions = protocol_of(settings.protocol), {}, {}, {}, {}
    with timed(seconds, "tokens"):
        documents = documents_by_split(settings, protocol, corpus)
        tables = row_tables(settings, protocol, backbone.tokenizer, documents)
    live, dropout = protocol.backbone != "cached", None
    if live:
        backbone = copied(backbone)  # its layers will be changed, the caller's stay as they are
        if protocol.backbone == "live with dropout":
            dropout = live_dropout(backbone.lm)
        if protocol.layers:
            add_lora(backbone, rank=RANK)  # α / r = 1: the update as such, as in the paper
    say(f"{corpus.name}: {len(tables['train'])} training rows, {len(tables['validation'])} validation rows")
    train, zeros, skips = settings.train, protocol.attention == "id not 0", protocol.ignored == "padding"
    scoring = Scoring(protocol.objective, settings.tokens.max_length, zeros, skips)
    feature, matmul = (number_format(x, backbone.device) for x in (train.feature_dtype, train.matmul_dtype))
    # Nothing depends on padding: LoRA in the layers trains and is read as in the honest study.
    idle = protocol.layers and scoring.objective == "next_token" and not zeros and dropout is None
    feature = backbone.head.weight.dtype if idle else feature
    with timed(seconds, "features"):
        for split, table in tables.items():
            mode = {"train_mode": dropout is not None and split == "train"} if live else {}
            states = LivePaddedStates if live else padded_states
            made = partial(states, scoring=scoring, dtype=feature, **mode)
            scored[split] = LiveStates(backbone, table) if idle else made(backbone, table)
            clusters[split], conditions[split] = row_vectors(settings, protocol, backbone, table)
    weight = HeadWeight(backbone.head.weight, backbone.head.bias, dtype=matmul)
    shared = (backbone, corpus, tables, scored, weight, feature, seconds)
    return ReleasedCorpus(*shared, settings, protocol, scoring, clusters, conditions, dropout)


def documents_by_split(settings: Experiment, protocol: Protocol, corpus: Corpus) -> dict[str, tuple]:
    """The documents of each split that is not empty, as the protocol's `split` switch deals them."""
    splits = {split: corpus.splits[split] for split in SPLITS if corpus.splits.get(split)}
    if protocol.split == "script" and any(d.prompt for part in corpus.splits.values() for d in part):
        rows = tuple(d for part in corpus.splits.values() for d in part)
        held = np.random.RandomState(SCRIPT_SEED).permutation(len(rows))
        held = np.sort(held[: max(1, round(settings.protocol.held_out * len(rows)))])
        splits = {"train": rows, "validation": tuple(rows[i] for i in held)}
    if protocol.reported != "test":
        splits.pop("test", None)  # never read, so nothing of it is computed
    elif "test" not in splits:
        remedy = "set reported: lowest validation, or split: disjoint"
        raise UserError(f"{corpus.name} has no test split under this protocol: {remedy}")
    return splits


def row_tables(settings: Experiment, protocol: Protocol, tokenizer, documents) -> dict[str, TokenTable]:
    """Tokens of each split, cut at random where limited; with reads: row also of rows too short for a prefix."""
    options = settings.tokens.model_dump()
    if protocol.reads == "row":
        options |= {"prefix_tokens": 1, "min_scored": 0}
    generator, tables = np.random.default_rng(settings.data.subset_seed), {}
    for split, part in documents.items():
        limit = getattr(settings.data, "max_train_tokens" if split == "train" else f"max_{split}_documents")
        if limit is not None:
            part = [part[i] for i in generator.permutation(len(part))]
        table = tables[split] = tokenise(part, tokenizer, **options)
        if limit is not None:
            used = np.cumsum(table.lengths) if split == "train" else np.arange(1, len(table) + 1)
            tables[split] = table.take(np.arange(max(1, int((used <= limit).sum()))))
    return tables


def row_vectors(settings: Experiment, protocol: Protocol, backbone, table: TokenTable) -> list[Tensor]:
    """The vectors that are clustered and those that condition, (N, C) each, on the device.

    Plain text reads the row or the prefix for both; instructions cluster on the prompt and condition on
    the span that `tokens.condition_on` names.
    """
    weight = backbone.embedding.detach().cpu()
    length = settings.tokens.max_length if protocol.padding_in_mean else None
    spans = [from_the_start(table.prefix), table.condition]
    if protocol.reads == "row" and not (table.prefix > 1).any():
        spans = [from_the_start(table.lengths)] * 2
    tables = [replace(table, condition=span) for span in spans]
    return [span_vectors(table, weight, length).to(backbone.device) for table in tables]


def orders_of(material: ReleasedCorpus, seed: int) -> tuple[dict[str, Arrangement], Callable]:
    """One seed's batches of one cluster each: every split's fixed list, and those that training takes in an epoch."""
    settings, protocol, fixed = material.settings.clusters, material.protocol, {}
    fit, size = released_clusters if protocol.kmeans == "ten steps" else fit_clusters, settings.batch_rows
    labels: dict[str, Tensor] = {}
    for split, x in material.cluster_vectors.items():  # scikit-learn's k-means moves what it needs
        if itself := split == "train" or protocol.validation_clusters == "itself":
            check_batch(len(x), size)
            fitted = fit(x, len(x) // size, seed=seed)
        nearest = fitted.labels if itself else fitted.assign(x)[0]
        if protocol.kmeans == "plusplus":
            nearest = merge_small(x, nearest, fitted.centroids, settings.minimum)
        labels[split], counts = nearest.cpu(), material.scored[split].counts
        batches = released_batches(labels[split], size, seed=seed)
        fixed[split] = Arrangement.of(scored_batches(batches, counts))

    def orders(split: str, number: int) -> Arrangement:
        if split != "train" or protocol.batches == "fixed":
            return fixed[split]
        generator = torch.Generator().manual_seed(seed * 100_003 + number)
        batches = cluster_batches(labels["train"], size, generator)
        return Arrangement.of(scored_batches(batches, material.scored["train"].counts))

    return fixed, orders


def scored_batches(batches: list[Tensor], counts: Tensor) -> list[Tensor]:
    """The batches with a scored token by counts (N,); the others have no mean, NaN in the scripts."""
    return [b for b in batches if int(counts[b].sum())]


def released_clusters(x: Tensor, k: int, *, seed: int) -> Clustering:
    """k-means of x (N, C): k random rows, then ten Lloyd steps, once; UserError for k > N."""
    if not 1 <= k <= len(x):
        raise UserError(f"cannot make {k} clusters of {len(x)} documents; choose between 1 and {len(x)}")
    rows = x.detach().float()
    start = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:k]
    centroids = rows[start.to(x.device)]  # (K, C)
    for _ in range(LLOYD_STEPS):
        labels, _ = nearest_centroid(rows, centroids)
        sizes = torch.bincount(labels, minlength=k)[:, None]  # (K, 1)
        # cluster by cluster in row order, so that a GPU repeats itself too
        sums = torch.segment_reduce(rows[labels.argsort(stable=True)], "sum", lengths=sizes[:, 0], axis=0)
        centroids = torch.where(sizes > 0, sums / sizes.clamp_min(1), centroids)  # an empty one keeps its own
    labels, distance = nearest_centroid(rows, centroids)
    return Clustering(centroids, labels, distance, float(distance.double().square().sum()))


def released_batches(labels: Tensor, size: int, *, seed: int) -> list[Tensor]:
    """Rows of labels (N,) as batches (≤ size,) of one cluster, clusters in order of first appearance.

    The seed decides only which rows of a cluster larger than `size` share a batch; the list serves every epoch.
    """
    number = torch.from_numpy(pd.factorize(labels.cpu().numpy())[0])  # (N,) by first appearance
    return _cut(number, size, torch.Generator().manual_seed(seed))


def cluster_batches(labels: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    """Rows of labels (N,) as batches (≤ size,) int64, each of one cluster, in a random order."""
    batches = _cut(labels.cpu(), size, generator)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _cut(labels: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    """Batches along the clusters' numbers, each cluster's rows in a random order."""
    shuffled = torch.randperm(len(labels), generator=generator)
    order = shuffled[labels[shuffled].argsort(stable=True)]
    return [b for run in order.split(labels.bincount().tolist()) for b in run.split(size) if len(b)]
