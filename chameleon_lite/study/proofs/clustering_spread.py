"""The same trained heads under 20 clusterings of the validation rows: how far the metric moves by itself."""

import torch

from ...data.released import released_batches, released_clusters
from ...training.loop import average
from ..paper import published
from .store import Proof
from .subject import REGIMES, Subject

CLUSTERINGS = 20


def prove(subject: Subject) -> Proof:
    """Cluster the validation rows with 20 seeds and average the losses of one checkpoint each time."""
    material, size = subject.material, subject.settings.clusters.batch_rows
    vectors = material.cluster_vectors["validation"].cpu()
    full, counts = material.full("validation"), material.scored["validation"].counts
    values: dict[str, list[float]] = {name: [] for name in (*REGIMES, "f")}
    smallest = []
    for seed in range(CLUSTERINGS):
        labels = released_clusters(vectors, max(1, len(vectors) // size), seed=seed).labels
        batches = released_batches(labels, size, seed=seed)
        batches = [b for b in batches if int(counts[b].sum())]
        values["f"].append(float(torch.stack([full[b].double().mean() for b in batches]).mean()))
        smallest.append(min(len(b) for b in batches))
        for regime in REGIMES:
            nll = subject.validation_losses(regime, batches)
            values[regime].append(float(average(nll, counts, "batch", batches)))
    numbers = {"row_weighted_f": float(full.double().mean()), "largest_smallest_batch": float(max(smallest))}
    for name, found in values.items():
        x = torch.tensor(found, dtype=torch.float64)
        numbers |= {
            f"{name}_mean": float(x.mean()),
            f"{name}_sd": float(x.std()),
            f"{name}_min": float(x.min()),
            f"{name}_max": float(x.max()),
        }
    expected = published(subject.table, "R0", "validation_loss")
    numbers |= {"published_frozen": expected}
    if subject.is_gpt2:  # only for the paper's own backbone is the published number an expectation
        numbers["published_frozen_inside_spread"] = float(numbers["R0_min"] <= expected <= numbers["R0_max"])
    spread = (numbers["R1_max"] - numbers["R1_min"]) / numbers["R1_mean"]
    return Proof(
        proof="clustering_spread",
        title="The metric moves with the clustering alone",
        audit=(7, 28, 35),
        where="evaluate, train_lm",
        shows=f"Over {CLUSTERINGS} clusterings of the same rows, the same LoRA head has a loss between "
        f"{numbers['R1_min']:.4f} and {numbers['R1_max']:.4f} ({spread:.1%} of its mean).",
        numbers=numbers,
    )
