"""What the k-means start and its ten steps are worth: batch sizes, inertia and the loss, beside k-means++."""

import torch

from ...data.clusters import fit_clusters
from ...data.released import released_batches, released_clusters
from ...training.loop import average
from .store import Proof
from .subject import Subject

SEEDS = 5
SMALL = 8  # rows


def prove(subject: Subject) -> Proof:
    """Both clusterings of the validation rows under five seeds, the same trained heads."""
    material, size = subject.material, subject.settings.clusters.batch_rows
    vectors, counts = material.cluster_vectors["validation"].cpu(), material.scored["validation"].counts
    full = material.full("validation").double()
    k = max(1, len(vectors) // size)
    numbers: dict[str, float] = {"clusters": float(k)}
    for name, fit in (("ten_steps", released_clusters), ("plusplus", fit_clusters)):
        found: dict[str, list[float]] = {}
        for seed in range(SEEDS):
            clustering = fit(vectors, k, seed=seed)
            batches = [
                b for b in released_batches(clustering.labels, size, seed=seed) if int(counts[b].sum())
            ]
            sizes = torch.tensor([len(b) for b in batches], dtype=torch.float64)
            row = {
                "inertia": clustering.inertia,
                "singleton_clusters": float((clustering.sizes == 1).sum()),
                "empty_clusters": float((clustering.sizes == 0).sum()),
                "batches": float(len(batches)),
                "mean_batch": float(sizes.mean()),
                "share_of_small_batches": float((sizes < SMALL).double().mean()),
                "full_share": sum(float(full[b].mean()) for b in batches) / len(batches),
            }
            for regime in ("R1", "R4"):
                nll = subject.validation_losses(regime, batches)
                row[f"{regime}_loss"] = float(average(nll, counts, "batch", batches))
            for key, value in row.items():
                found.setdefault(key, []).append(value)
        numbers |= {f"{name}_{key}": sum(values) / SEEDS for key, values in found.items()}
    return _proof(numbers)


def implied_shares(kept: list[Proof]) -> dict[str, str]:
    """By start, the share of full rows f = (L − L_pad) / (L_full − L_pad) that stored LoRA losses imply, by corpus.

    L is this proof's; L_full and L_pad are the decomposition's of the same key. Proofs made since then also hold
    the share itself, `full_share`.
    """
    parts = {p.key[1:]: p.numbers for p in kept if p.proof == "decomposition"}
    out: dict[str, list[str]] = {"ten_steps": [], "plusplus": []}
    for p in kept:
        if p.proof == "kmeans_start" and p.key[1:] in parts:
            full, padded = (parts[p.key[1:]][f"R1_{kind}_rows"] for kind in ("full", "padded"))
            for name, said in out.items():
                f = (p.numbers[f"{name}_R1_loss"] - padded) / (full - padded)
                said.append(f"{f:.3f} ({p.corpus}, {p.key[3]} tokens)")
    return {name: ", ".join(said) or "not measured yet" for name, said in out.items()}


def _proof(numbers: dict[str, float]) -> Proof:
    k = int(numbers["clusters"])
    change = numbers["plusplus_R1_loss"] - numbers["ten_steps_R1_loss"]
    return Proof(
        proof="kmeans_start",
        title="What the k-means start is worth",
        audit=(28, 29, 30),
        where="the k-means function of both scripts",
        shows=f"Batches hold {numbers['ten_steps_mean_batch']:.1f} rows on average, and "
        f"{numbers['ten_steps_singleton_clusters']:.1f} of {k} clusters hold one row; with k-means++ the same "
        f"LoRA head's loss changes by {change:+.4f}.",
        numbers=numbers,
    )
