"""What `fit` trains on: each split as tokens, mean vectors, clusters, and states where the backbone stays as it is.

documents ─ tokens, cut to the limits ─ mean embeddings ─ clusters of the training part ─▶ one Part per split
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..backbone import Backbone
from ..backbones.formats import number_format
from ..batches import Arrangement, arrange
from ..cluster import Clustering, cluster_count, fit_clusters, merge_small
from ..conditions import GroupMean
from ..embed import mean_embeddings
from ..settings import FitSettings
from ..states import ScoredStates, hidden_states
from ..text import TokenTable, tokenise
from .corpus import SPLITS, Corpus


@dataclass(frozen=True)
class Part:
    """One split of N documents; `scored` holds its states under the frozen backbone, where they are kept."""

    table: TokenTable
    vectors: Tensor  # (N, C) on the host
    labels: Tensor  # (N,) clusters, small ones merged
    device: torch.device
    scored: ScoredStates | None

    def source(self, size: int) -> GroupMean:
        """The condition source: the mean vector of a row's group of at most `size` texts."""
        return GroupMean(self.vectors.to(self.device), size)

    def order(self, seed: int) -> Arrangement:
        """An order of the documents, clusters kept together."""
        return arrange(len(self.table), self.labels, torch.Generator().manual_seed(seed))


def parts_of(
    corpus: Corpus, backbone: Backbone, settings: FitSettings, progress: bool
) -> tuple[dict[str, Part], Clustering]:
    """Each split tokenised and assigned to clusters of the training part, with its states unless LoRA changes them."""
    generator = np.random.default_rng(settings.seed)
    limits = settings.tokens.model_dump()
    limits["max_length"] = min(limits["max_length"], backbone.max_length)
    tables = {}
    for split in SPLITS:
        table = tokenise(corpus.splits[split], backbone.tokenizer, **limits)
        order = generator.permutation(len(table))
        if split == "train" and settings.max_train_tokens is not None:
            order = order[
                np.cumsum(table.lengths[order]) <= max(settings.max_train_tokens, table.lengths[order[0]])
            ]
        elif split != "train":
            order = order[: settings.max_held_out]
        tables[split] = table.take(np.sort(order))
    embedding, rows = backbone.embedding.detach().cpu(), settings.clusters.batch_rows
    vectors = {split: mean_embeddings(table, embedding) for split, table in tables.items()}
    clustering = fit_clusters(vectors["train"], cluster_count(len(tables["train"]), rows), seed=settings.seed)
    parts = {}
    for split, table in tables.items():
        labels = clustering.labels if split == "train" else clustering.assign(vectors[split])[0]
        labels = merge_small(vectors[split], labels, clustering.centroids, minimum=settings.clusters.minimum)
        scored = None if settings.lora_rank else _states(backbone, table, settings, progress)
        parts[split] = Part(table, vectors[split], labels, backbone.device, scored)
    return parts, clustering


def _states(backbone: Backbone, table: TokenTable, settings: FitSettings, progress: bool) -> ScoredStates:
    """The hidden states of a table, computed once and kept."""
    dtype = number_format(settings.train.feature_dtype, backbone.device)
    return ScoredStates(table, hidden_states(backbone, table, dtype, progress=progress), backbone.device)
