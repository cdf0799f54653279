"""Texts of one's own as `fit` needs them: three parts, each tokenised, cut to its limit, and assigned to clusters."""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..backbone import Backbone
from ..backbones.formats import sums_on
from ..batches import Arrangement, arrange
from ..cluster import Clustering, cluster_count, fit_clusters, merge_small
from ..embed import mean_embeddings
from ..errors import UserError
from ..text import TokenTable, tokenise
from . import own_texts
from .corpus import SPLITS, Corpus
from .fit_settings import FitSettings
from .rows import parsed
from .writing import decided


class Parts(NamedTuple):
    """For each split N documents, their vectors (N, C) on the host, and their clusters (N,), small ones merged.

    prompts: for an adapter's configuration, how all were written and the settings they were cut by, before the
    backbone's own limit.
    """

    tables: dict[str, TokenTable]
    vectors: dict[str, Tensor]
    labels: dict[str, Tensor]
    prompts: dict

    def order(self, split: str, seed: int) -> Arrangement:
        """An order of a split's documents, clusters kept together."""
        labels = self.labels[split]
        return arrange(len(labels), labels, torch.Generator().manual_seed(seed))


def corpus_of(
    texts: Iterable[str | dict] | str | Path | Corpus, seed: int = 0, encoding: str | None = None
) -> Corpus:
    """A corpus from its name, a path, or rows, which are split 80/10/10 with near-duplicates on one side."""
    if isinstance(texts, Corpus):
        return texts
    if isinstance(texts, str | os.PathLike):
        return own_texts.load_corpus(str(texts), seed=seed, encoding=encoding)
    rows = (replace(row, id=str(row.number - 1)) for row in parsed(texts))
    return own_texts.corpus("texts", "a list of strings", rows, "the list of texts", seed=seed)


def parts_of(
    corpus: Corpus, backbone: Backbone, settings: FitSettings, say: Callable[[str], None] = lambda text: None
) -> tuple[Parts, Clustering]:
    """Each split written, tokenised, cut to the limits, and assigned to clusters of the training part."""
    writer, limits = decided(corpus, backbone, settings, say), settings.tokens.model_dump()
    generator = np.random.default_rng(settings.seed)
    parts = Parts({}, {}, {}, limits | writer.facts)
    limits = limits | {"max_length": min(limits["max_length"], backbone.max_length)}
    embedding = backbone.embedding.detach().to(sums_on(backbone.device))
    for split in SPLITS:
        documents = []
        for document in corpus.splits[split]:
            try:  # responses are learnt with their end, and compared without it, which alone would seem to help
                documents.append(writer.document(document, end=split == "train"))
            except UserError as error:  # of the chat template
                raise UserError(f"row {document.id}: {error} (--chat off does without it)") from None
        table = tokenise(documents, writer, **limits)
        order = generator.permutation(len(table))
        if split != "train":
            order = order[: settings.max_held_out]
        elif settings.max_train_tokens is not None:
            most = max(settings.max_train_tokens, table.lengths[order[0]])
            order = order[np.cumsum(table.lengths[order]) <= most]
        parts.tables[split] = table.take(np.sort(order))
        parts.vectors[split] = mean_embeddings(parts.tables[split], embedding).cpu()
    x, clusters = parts.vectors["train"], settings.clusters
    clustering = fit_clusters(x, cluster_count(len(x), clusters.batch_rows), seed=settings.seed)
    for split, x in parts.vectors.items():
        labels = clustering.labels if split == "train" else clustering.assign(x)[0]
        parts.labels[split] = merge_small(x, labels, clustering.centroids, minimum=clusters.minimum)
    return parts, clustering
