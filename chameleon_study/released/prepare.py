"""A corpus under a protocol: rows, states, vectors, clusters and batches, switch by switch.

Corpus ─ split ─ tokenise ─▶ TokenTable per split ─ padded_states, LivePaddedStates ─▶ scored pairs
                                 └ span, padded or not ─▶ vectors ─ k-means ─▶ batches per seed
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from chameleon_lite.app.corpus import SPLITS, Corpus
from chameleon_lite.backbone import Backbone, copied
from chameleon_lite.backbones.formats import number_format
from chameleon_lite.batches import Arrangement
from chameleon_lite.cluster import fit_clusters, merge_small
from chameleon_lite.embed import mean_embeddings, normalise
from chameleon_lite.errors import UserError
from chameleon_lite.lora import add_lora
from chameleon_lite.loss import HeadWeight
from chameleon_lite.text import TokenTable, tokenise

from ..config import Experiment
from ..prepare import check_batch, common_facts, timed
from ..regimes import RANK
from .clusters import cluster_batches, released_batches, released_clusters
from .protocol import Protocol, protocol_of
from .states import LivePaddedStates, Scoring, live_dropout, padded_states

SCRIPT_SEED = 42  # the Alpaca script draws its validation rows with this seed


@dataclass
class ReleasedCorpus:
    """One corpus under one backbone and one protocol."""

    settings: Experiment
    protocol: Protocol
    backbone: Backbone
    corpus: Corpus
    tables: dict[str, TokenTable]
    scored: dict[str, object]  # ScoredStates or LivePaddedStates
    cluster_vectors: dict[str, Tensor]  # (N, C) on the device
    condition_vectors: dict[str, Tensor]  # (N, C) on the device
    weight: HeadWeight
    feature_dtype: str
    dropout: dict | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def full(self, split: str) -> Tensor:
        """Which rows (N,) hold no padding."""
        return torch.from_numpy(self.tables[split].lengths >= self.settings.tokens.max_length)

    def facts(self, seed: int) -> dict:
        """A record's `data`."""
        T = self.settings.tokens.max_length  # of a padded row
        return common_facts(self) | {
            "scored_tokens": {s: int(x.counts.sum()) for s, x in self.scored.items()},
            "full_rows": {s: int(self.full(s).sum()) for s in self.tables},
            "padding_share": {s: 1 - float(t.lengths.sum() / (len(t) * T)) for s, t in self.tables.items()},
            "backbone_dropout": self.dropout,
            "backbone_parameters": self.backbone.parameters,
            "protocol": self.protocol.model_dump(),
        }


def prepare_released(
    settings: Experiment, backbone: Backbone, corpus: Corpus, say: Callable[[str], None] = lambda text: None
) -> ReleasedCorpus:
    """A corpus's tables, states and vectors under the experiment's protocol; stages are timed."""
    protocol, seconds = protocol_of(settings.protocol), {}
    documents = documents_by_split(settings, protocol, corpus)
    tables = timed(seconds, "tokens", lambda: _tables(settings, protocol, backbone, documents))
    dropout, scoring, train = None, scoring_of(settings, protocol), settings.train
    feature, matmul = (number_format(x, backbone.device) for x in (train.feature_dtype, train.matmul_dtype))
    if protocol.backbone != "cached":
        backbone = copied(backbone)  # its layers will be changed, the caller's stay as they are
        if protocol.backbone == "live with dropout":
            dropout = live_dropout(backbone.lm)
        if protocol.layers:
            add_lora(backbone, rank=RANK)  # α / r = 1: the update as such, as in the paper
    say(f"{corpus.name}: {len(tables['train'])} training rows, {len(tables['validation'])} validation rows")

    def states(split: str):
        if protocol.backbone == "cached":
            return padded_states(backbone, tables[split], scoring, dtype=feature)
        train_mode = dropout is not None and split == "train"
        return LivePaddedStates(backbone, tables[split], scoring, dtype=feature, train_mode=train_mode)

    scored = timed(seconds, "features", lambda: {split: states(split) for split in tables})
    vectors = {split: _vectors(settings, protocol, backbone, t) for split, t in tables.items()}
    clustered, conditions = ({split: pair[i] for split, pair in vectors.items()} for i in (0, 1))
    weight = HeadWeight(backbone.head.weight, backbone.head.bias, dtype=matmul)
    read = (corpus, tables, scored, clustered, conditions)
    return ReleasedCorpus(
        settings, protocol, backbone, *read, weight, str(feature).removeprefix("torch."), dropout, seconds
    )


def scoring_of(settings: Experiment, protocol: Protocol) -> Scoring:
    """What is scored of a padded row."""
    masks_zero, skips_padding = protocol.attention == "id not 0", protocol.ignored == "padding"
    return Scoring(protocol.objective, settings.tokens.max_length, masks_zero, skips_padding)


def documents_by_split(settings: Experiment, protocol: Protocol, corpus: Corpus) -> dict[str, tuple]:
    """The documents of each split that is not empty, as the protocol's `split` switch deals them."""
    prompts = any(d.prompt for part in corpus.splits.values() for d in part)
    if not (prompts and protocol.split == "script"):
        splits = {split: corpus.splits[split] for split in SPLITS if corpus.splits.get(split)}
    else:
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


def _tables(settings, protocol, backbone, documents) -> dict[str, TokenTable]:
    """Tokens of each split, cut after a random order where the settings limit it.

    With reads: row every row stays, otherwise those long enough to have a prefix.
    """
    options = settings.tokens.model_dump()
    if protocol.reads == "row":
        options |= {"prefix_tokens": 1, "min_scored": 0}
    generator = np.random.default_rng(settings.data.subset_seed)
    tables = {}
    for split, part in documents.items():
        limit = getattr(settings.data, "max_train_tokens" if split == "train" else f"max_{split}_documents")
        if limit is not None:
            part = [part[i] for i in generator.permutation(len(part))]
        table = tables[split] = tokenise(part, backbone.tokenizer, **options)
        if limit is not None:
            used = np.cumsum(table.lengths) if split == "train" else np.arange(1, len(table) + 1)
            tables[split] = table.take(np.arange(max(1, int((used <= limit).sum()))))
    return tables


def _vectors(settings, protocol, backbone, table: TokenTable) -> tuple[Tensor, Tensor]:
    """The vectors that are clustered and those that condition, (N, C) each, on the device.

    Plain text reads the row or the prefix for both; instructions cluster on the prompt and condition on
    the span that `tokens.condition_on` names.
    """
    weight = backbone.embedding.detach().cpu()
    length = settings.tokens.max_length if protocol.padding_in_mean else None
    stop, condition = table.prefix, table.condition
    if protocol.reads == "row" and not (stop > 1).any():
        stop = table.lengths
        condition = from_the_start(stop)
    tables = (replace(table, condition=span) for span in (from_the_start(stop), condition))
    return tuple(span_vectors(t, weight, length).to(backbone.device) for t in tables)


def from_the_start(stop: np.ndarray) -> np.ndarray:
    """Spans (N, 2) of each document's first stop (N,) tokens."""
    return np.stack([np.zeros_like(stop), stop], axis=1).astype(np.int32)


def span_vectors(table: TokenTable, weight: Tensor, length: int | None) -> Tensor:
    """Normalised mean embedding (N, C) of the condition spans; with `length`, over the padded row."""
    mean = mean_embeddings(table, weight, span="condition", normalised=False)  # (N, C)
    if length is not None:
        count = torch.from_numpy(table.condition[:, 1] - table.condition[:, 0]).unsqueeze(1).to(mean)
        mean = (mean * count + weight[table.pad_id].float() * (length - count)) / length
    return normalise(mean)


def labels_of(material: ReleasedCorpus, seed: int) -> dict[str, Tensor]:
    """Cluster labels (N,) of every split for one seed."""
    rows, protocol = material.settings.clusters.batch_rows, material.protocol
    fit = released_clusters if protocol.kmeans == "ten steps" else fit_clusters
    out = {}
    for split, x in material.cluster_vectors.items():
        if itself := split == "train" or protocol.validation_clusters == "itself":
            check_batch(len(x), rows)
            fitted = fit(x, len(x) // rows, seed=seed)
        labels = fitted.labels if itself else fitted.assign(x)[0]
        if protocol.kmeans == "plusplus":
            labels = merge_small(x, labels, fitted.centroids, material.settings.clusters.minimum)
        out[split] = labels.cpu()
    return out


def order_of(material: ReleasedCorpus, split, labels: Tensor, seed: int, epoch: int | None) -> Arrangement:
    """An epoch's batches of one cluster with something scored (None: evaluation, always the fixed list)."""
    size = material.settings.clusters.batch_rows
    if epoch is None or material.protocol.batches == "fixed":
        batches = released_batches(labels, size, seed=seed)
    else:
        batches = cluster_batches(labels, size, torch.Generator().manual_seed(seed * 100_003 + epoch))
    return Arrangement.of(scored_batches(batches, material.scored[split].counts))


def scored_batches(batches: list[Tensor], counts: Tensor) -> list[Tensor]:
    """The batches with a scored token by counts (N,); the others have no mean, NaN in the scripts."""
    return [b for b in batches if int(counts[b].sum())]
