"""Proofs about clusters: the metric under other clusterings, what clusters hold, k-means' start."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from chameleon_lite import Arrangement, Clustering, average, fit_clusters, mean_embeddings
from chameleon_lite.cluster import cluster_count

from ...claims.paper import published
from ...prepare import tables_of
from ...sources import cluster_quality, from_the_start, main_direction, mean_cosine, span_vectors
from ..prepare import released_batches, released_clusters, scored_batches
from ..run import row_losses
from .store import CLUSTERINGS, Proof
from .subject import REGIMES, Shown, Subject

SEEDS = 5  # of each start of k-means
SMALL = 8  # rows
GPT2 = ("gpt2", "openai-community/gpt2")


def clustering_spread(subject: Subject) -> Shown:
    """The losses of the same heads, averaged over the batches of each of 20 clusterings."""
    rows = [_batched(subject, released_clusters, seed) for seed in range(CLUSTERINGS)]
    numbers = {"row_weighted_f": float(subject.material.full("validation").double().mean())}
    numbers["largest_smallest_batch"] = max(float(row["sizes"].min()) for row in rows)
    spread = pd.DataFrame(rows)[[*REGIMES, "f"]].agg(["mean", "std", "min", "max"]).rename({"std": "sd"})
    numbers |= {f"{name}_{what}": float(value) for (name, what), value in spread.unstack().items()}
    expected = numbers["published_frozen"] = published(subject.table, "R0", "validation_loss")
    if subject.settings.backbone in GPT2:  # only for the paper's own is the published number an expectation
        numbers["published_frozen_inside_spread"] = float(numbers["R0_min"] <= expected <= numbers["R0_max"])
    share = (numbers["R1_max"] - numbers["R1_min"]) / numbers["R1_mean"]
    return numbers, {"clusterings": CLUSTERINGS, "share": share}


def _batched(subject: Subject, fit: Callable, seed: int) -> dict:
    """A clustering of the validation rows, a batch of rows per cluster: its batches' sizes, f and losses."""
    size, vectors = subject.settings.clusters.batch_rows, subject.material.cluster_vectors["validation"].cpu()
    clustering: Clustering = fit(vectors, max(1, len(vectors) // size), seed=seed)
    counts, full = subject.material.scored["validation"].counts, subject.material.full("validation").double()
    batches = scored_batches(released_batches(clustering.labels, size, seed=seed), counts)
    sizes = torch.tensor([len(b) for b in batches], dtype=torch.float64)
    f = float(torch.stack([full[b].mean() for b in batches]).mean())
    out = {"clustering": clustering, "sizes": sizes, "f": f}
    for regime in REGIMES:
        member, _, _, rows = subject.trained[regime]
        nll = torch.tensor(rows.loc[rows["split"] == "validation", "nll"].to_numpy())
        if regime == "R4":  # heads without a condition have the same losses under any batches
            nll = row_losses(subject.material, regime, member, "validation", Arrangement.of(batches))
        out[regime] = float(average(nll, counts, "batch", batches))
    return out


def length_clusters(subject: Subject) -> Shown:
    """How much of the rows' length clusters explain, with and without padding in the mean."""
    table, size = subject.material.tables["validation"], subject.settings.clusters.batch_rows
    stop = table.prefix if subject.prompts else table.lengths  # prompts are clustered by the prompt
    table, numbers = replace(table, condition=from_the_start(stop)), {}
    weight = subject.backbone.embedding.detach().cpu()
    for name, length in (("padded", subject.settings.tokens.max_length), ("unpadded", None)):
        x = span_vectors(table, weight, length)
        clustering = released_clusters(x, max(1, len(x) // size), seed=subject.seed)
        quality = cluster_quality(clustering, groups=table.groups, lengths=stop)
        share, correlation = first_component(x, stop)
        numbers[f"{name}_length_variance_explained"] = quality["length_variance_explained"]
        numbers[f"{name}_first_component_share"] = share
        numbers[f"{name}_first_component_length_correlation"] = correlation
        if quality["adjusted_mutual_information"] is not None:
            numbers[f"{name}_group_mutual_information"] = quality["adjusted_mutual_information"]
    return numbers, {}


def first_component(x: Tensor, values: np.ndarray) -> tuple[float, float]:
    """Share of x's (N, C) variance in its first component, and that one's |Spearman| with values (N,)."""
    from scipy.stats import spearmanr

    along, share = main_direction(x)
    return share, abs(float(spearmanr(along.numpy(), values).statistic))


def instruction_vectors(subject: Subject) -> Shown | None:
    """Mean cosine of all pairs of instructions, with and without padding; None without any."""
    if not subject.prompts:
        return None
    table, length = subject.material.tables["train"], subject.settings.tokens.max_length
    weight, spans = subject.backbone.embedding.detach().cpu(), np.diff(table.condition)
    padded, unpadded = (mean_cosine(span_vectors(table, weight, n)) for n in (length, None))
    numbers = {"padded_mean_cosine": padded, "unpadded_mean_cosine": unpadded, "rows": float(len(table))}
    return numbers | {"padding_share_of_the_mean": 1 - float(spans.mean()) / length}, {}


def kmeans_start(subject: Subject) -> Shown:
    """Batch sizes, inertia and loss under ten steps and under k-means++, five seeds, the same heads."""
    rows = len(subject.material.tables["validation"])
    numbers = {"clusters": float(max(1, rows // subject.settings.clusters.batch_rows))}
    for name, fit in (("ten_steps", released_clusters), ("plusplus", fit_clusters)):
        seeds = []
        for seed in range(SEEDS):
            row = _batched(subject, fit, seed)
            clustering, sizes = row["clustering"], row["sizes"]
            found = {"inertia": clustering.inertia, "full_share": row["f"]}
            found |= {"singleton_clusters": float((clustering.sizes == 1).sum())}
            found |= {"empty_clusters": float((clustering.sizes == 0).sum())}
            found |= {"batches": float(len(sizes)), "mean_batch": float(sizes.mean())}
            found |= {"share_of_small_batches": float((sizes < SMALL).double().mean())}
            seeds.append(found | {f"{regime}_loss": row[regime] for regime in ("R1", "R4")})
        numbers |= {f"{name}_{key}": float(mean) for key, mean in pd.DataFrame(seeds).mean().items()}
    return numbers, {"change": numbers["plusplus_R1_loss"] - numbers["ten_steps_R1_loss"]}


def study_clusters(subject: Subject) -> Shown | None:
    """What the honest study's batching clusters hold, for each of its seeds; None for the released procedure.

    They are made of tokens and embeddings alone, so they are those of the stored runs without any hidden state.
    """
    if not subject.settings.protocol.honest:
        return None
    table = tables_of(subject.settings, subject.backbone, subject.texts)["train"]
    x, numbers = mean_embeddings(table, subject.backbone.embedding.detach().cpu()), {}
    for seed in range(subject.settings.seeds):
        subject.say(f"clusters of seed {seed}")
        clusters = fit_clusters(x, cluster_count(len(x), subject.settings.clusters.batch_rows), seed=seed)
        quality = cluster_quality(clusters, groups=table.groups, lengths=table.lengths)
        quality["median"] = quality.pop("sizes")["median"]
        numbers |= {f"seed{seed}_{name}": float(q) for name, q in quality.items() if q is not None}
    small = [numbers[f"seed{seed}_share_below_4"] for seed in range(subject.settings.seeds)]
    return numbers, {"rows": len(x), "smallest": min(small), "largest": max(small)}


def implied_shares(stored: list[Proof]) -> dict[str, str]:
    """By start, the shares (L − L_pad) / (L_full − L_pad) of full rows that stored LoRA losses imply."""
    parts = {p.key[1:]: p.numbers for p in stored if p.proof == "decomposition"}
    out: dict[str, list[str]] = {"ten_steps": [], "plusplus": []}
    for p in stored:
        if p.proof == "kmeans_start" and p.key[1:] in parts:
            full, padded = (parts[p.key[1:]][f"R1_{kind}_rows"] for kind in ("full", "padded"))
            for name, texts in out.items():
                f = (p.numbers[f"{name}_R1_loss"] - padded) / (full - padded)
                texts.append(f"{f:.3f} ({p.corpus}, {p.key[3]} tokens)")
    return {name: ", ".join(texts) or "not measured yet" for name, texts in out.items()}
