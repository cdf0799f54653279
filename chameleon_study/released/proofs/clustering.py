"""Proofs about clusters: the metric under other clusterings, what clusters consist of, the start of k-means."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from chameleon_lite.cluster import Clustering, fit_clusters
from chameleon_lite.train import average

from ...claims.paper import published
from ...cluster_quality import cluster_quality
from ...vectors import main_direction, mean_cosine
from ..clusters import released_batches, released_clusters
from ..prepare import scored_batches, span_vectors
from .store import CLUSTERINGS, Proof
from .subject import REGIMES, Shown, Subject

SEEDS = 5  # of each start of k-means
SMALL = 8  # rows


def clustering_spread(subject: Subject) -> Shown:
    """The losses of the same heads, averaged over the batches of each of 20 clusterings of the validation rows."""
    material, size = subject.material, subject.settings.clusters.batch_rows
    vectors = material.cluster_vectors["validation"].cpu()
    full, counts = material.full("validation"), material.scored["validation"].counts
    values: dict[str, list[float]] = {name: [] for name in (*REGIMES, "f")}
    smallest = []
    for seed in range(CLUSTERINGS):
        _, batches = _clustered(released_clusters, vectors, size, seed, counts)
        values["f"].append(float(torch.stack([full[b].double().mean() for b in batches]).mean()))
        smallest.append(min(len(b) for b in batches))
        for regime in REGIMES:
            nll = subject.validation_losses(regime, batches)
            values[regime].append(float(average(nll, counts, "batch", batches)))
    numbers = {"row_weighted_f": float(full.double().mean()), "largest_smallest_batch": float(max(smallest))}
    for name, losses in values.items():
        x = torch.tensor(losses, dtype=torch.float64)
        for what, value in (("mean", x.mean()), ("sd", x.std()), ("min", x.min()), ("max", x.max())):
            numbers[f"{name}_{what}"] = float(value)
    expected = numbers["published_frozen"] = published(subject.table, "R0", "validation_loss")
    if subject.is_gpt2:  # only for the paper's own backbone is the published number an expectation
        numbers["published_frozen_inside_spread"] = float(numbers["R0_min"] <= expected <= numbers["R0_max"])
    share = (numbers["R1_max"] - numbers["R1_min"]) / numbers["R1_mean"]
    return numbers, {"clusterings": CLUSTERINGS, "share": share}


def _clustered(fit, vectors: Tensor, size: int, seed: int, counts: Tensor) -> tuple[Clustering, list[Tensor]]:
    """A clustering of vectors (N, C) with about `size` rows per cluster, and its batches with scored tokens."""
    clustering = fit(vectors, max(1, len(vectors) // size), seed=seed)
    return clustering, scored_batches(released_batches(clustering.labels, size, seed=seed), counts)


def length_clusters(subject: Subject) -> Shown:
    """How much of the rows' length clusters explain, of validation vectors with and without padding in the mean."""
    table, size = subject.material.tables["validation"], subject.settings.clusters.batch_rows
    stop = table.prefix if subject.prompts else table.lengths  # prompts are clustered by the prompt
    table = replace(table, condition=np.stack([np.zeros_like(stop), stop], axis=1).astype(np.int32))
    weight = subject.backbone.embedding.detach().cpu()
    numbers: dict[str, float] = {}
    for name, length in (("padded", subject.settings.tokens.max_length), ("unpadded", None)):
        x = span_vectors(table, weight, length)
        clustering = released_clusters(x, max(1, len(x) // size), seed=subject.seed)
        quality = cluster_quality(clustering, groups=table.groups, lengths=stop)
        numbers[f"{name}_length_variance_explained"] = quality["length_variance_explained"]
        share, correlation = first_component(x, stop)
        numbers[f"{name}_first_component_share"] = share
        numbers[f"{name}_first_component_length_correlation"] = correlation
        if quality["adjusted_mutual_information"] is not None:
            numbers[f"{name}_group_mutual_information"] = quality["adjusted_mutual_information"]
    return numbers, {}


def first_component(x: Tensor, values: np.ndarray) -> tuple[float, float]:
    """Share of the variance of x (N, C) in its first principal component, and |Spearman| of it with values (N,)."""
    from scipy.stats import spearmanr

    along, share = main_direction(x)
    return share, abs(float(spearmanr(along.numpy(), values).statistic))


def instruction_vectors(subject: Subject) -> Shown | None:
    """Mean cosine of all pairs of instructions, with and without padding; None for a corpus without instructions."""
    if not subject.prompts:
        return None
    table, length = subject.material.tables["train"], subject.settings.tokens.max_length
    weight = subject.backbone.embedding.detach().cpu()
    spans = table.condition[:, 1] - table.condition[:, 0]
    padded, unpadded = (mean_cosine(span_vectors(table, weight, n)) for n in (length, None))
    return {
        "padded_mean_cosine": padded,
        "unpadded_mean_cosine": unpadded,
        "padding_share_of_the_mean": 1 - float(spans.mean()) / length,
        "rows": float(len(table)),
    }, {}


def kmeans_start(subject: Subject) -> Shown:
    """Batch sizes, inertia and loss under ten steps and under k-means++, five seeds each, the same trained heads."""
    material, size = subject.material, subject.settings.clusters.batch_rows
    vectors, counts = material.cluster_vectors["validation"].cpu(), material.scored["validation"].counts
    full = material.full("validation").double()
    k = max(1, len(vectors) // size)
    numbers: dict[str, float] = {"clusters": float(k)}
    for name, fit in (("ten_steps", released_clusters), ("plusplus", fit_clusters)):
        rows = []
        for seed in range(SEEDS):
            clustering, batches = _clustered(fit, vectors, size, seed, counts)
            sizes = torch.tensor([len(b) for b in batches], dtype=torch.float64)
            row = {"inertia": clustering.inertia}
            row["singleton_clusters"] = float((clustering.sizes == 1).sum())
            row["empty_clusters"] = float((clustering.sizes == 0).sum())
            row |= {"batches": float(len(batches)), "mean_batch": float(sizes.mean())}
            row["share_of_small_batches"] = float((sizes < SMALL).double().mean())
            row["full_share"] = sum(float(full[b].mean()) for b in batches) / len(batches)
            for regime in ("R1", "R4"):
                nll = subject.validation_losses(regime, batches)
                row[f"{regime}_loss"] = float(average(nll, counts, "batch", batches))
            rows.append(row)
        numbers |= {f"{name}_{key}": sum(row[key] for row in rows) / SEEDS for key in rows[0]}
    change = numbers["plusplus_R1_loss"] - numbers["ten_steps_R1_loss"]
    return numbers, {"change": change}


def implied_shares(stored: list[Proof]) -> dict[str, str]:
    """By start, the share of full rows f = (L − L_pad) / (L_full − L_pad) that stored LoRA losses imply, by corpus.

    L is that of `kmeans_start`; L_full and L_pad are those of `decomposition` with the same key. Newer proofs also
    hold the share itself, `full_share`.
    """
    parts = {p.key[1:]: p.numbers for p in stored if p.proof == "decomposition"}
    out: dict[str, list[str]] = {"ten_steps": [], "plusplus": []}
    for p in stored:
        if p.proof == "kmeans_start" and p.key[1:] in parts:
            full, padded = (parts[p.key[1:]][f"R1_{kind}_rows"] for kind in ("full", "padded"))
            for name, texts in out.items():
                f = (p.numbers[f"{name}_R1_loss"] - padded) / (full - padded)
                texts.append(f"{f:.3f} ({p.corpus}, {p.key[3]} tokens)")
    return {name: ", ".join(texts) or "not measured yet" for name, texts in out.items()}
