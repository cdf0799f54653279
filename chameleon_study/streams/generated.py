"""S4: a head that a hyper-network generates from a memory of vectors: the mean of the cluster's rows so far.

training part ─ clusters ─ mean vectors (K, C) ─▶ a hyper-network trained on each row's cluster mean
stream: the means move with every row that has passed; the hyper-network stays, or is updated as well
"""

import copy

import torch
from torch import Tensor

from chameleon_lite.conditions import group_means
from chameleon_lite.heads import Condition, HyperHead
from chameleon_lite.loss import head_losses, token_losses

from .material import Material, Part

GROUPS = "hidden-16"
BATCH, RANK = 32, 4
TRAIN_RATES = (3e-4, 1e-3, 3e-3)
UPDATE_RATES = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4)
FIRST = 32  # rows that a cluster's mean over the training part counts for


class Generator:
    """A hyper-network, its optimiser where it learns, and the mean vector (K, C) of every cluster."""

    def __init__(self, head: HyperHead, means: Tensor, rate: float = 0.0) -> None:
        self.head, self.means, self.weight = head, means, torch.full((len(means), 1), float(FIRST)).to(means)
        self.optimiser = torch.optim.Adam(head.parameters(), lr=rate, betas=(0.9, 0.99)) if rate else None

    def read(self, material: Material, part: Part, rows: Tensor, labels: Tensor) -> Tensor:
        """Sums of nats (B,) of documents rows (B,) of clusters (B,); then a step, where it learns."""
        present, group = labels.unique(return_inverse=True)
        with torch.set_grad_enabled(self.optimiser is not None):
            update = self.head.factors(Condition(self.means[present.to(self.means.device)]))
            h, target, row = part.states.batch(rows)
            own = group[row] if len(present) > 1 else None
            each = token_losses(h, target, material.weight, [update], [own])[0].double()
            if self.optimiser is not None:
                (head_losses(h, target, material.weight, [update], [own]).sum() / len(target)).backward()
                self.optimiser.step()
                self.optimiser.zero_grad()
        return torch.segment_reduce(each, "sum", lengths=part.states.counts[rows].to(each.device), axis=0)

    def remember(self, vectors: Tensor, labels: Tensor) -> None:
        """Move the means of clusters (B,) by the vectors (B, C) of rows that have passed."""
        hot = torch.nn.functional.one_hot(labels, len(self.means)).to(self.means).T  # (K, B)
        sums = self.means * self.weight + hot @ vectors.to(self.means)
        self.weight = self.weight + hot.sum(1, keepdim=True)
        self.means = sums / self.weight


def trained(material: Material) -> tuple[HyperHead, Tensor]:
    """The hyper-network best on held-out documents over rates and epochs, and the training means (K, C)."""
    if "S4" in material.kept:
        return material.kept["S4"]
    here, check, model = material.parts["train"], material.parts["tuning"], material.backbone
    rows, held = torch.arange(here.scored), torch.arange(min(material.settings.validation, check.scored))
    labels, clusters = material.labels(GROUPS, "train", rows, BATCH)
    held_labels = material.labels(GROUPS, "tuning", held, BATCH)[0]
    hot = torch.zeros(clusters, here.hidden.shape[1])
    present, group = labels.unique(return_inverse=True)
    hot[present] = group_means(here.hidden, group)
    means, best, chosen = hot.to(model.device), float("inf"), None
    for rate in TRAIN_RATES:
        torch.manual_seed(0)
        generator = Generator(
            HyperHead(model.width, model.vocab, RANK, dropout=0.0).to(model.device), means, rate
        )
        for epoch in range(material.settings.epochs):
            for some in torch.randperm(here.scored, generator=torch.Generator().manual_seed(epoch)).split(
                BATCH
            ):
                generator.read(material, here, some, labels[some])
            still = Generator(generator.head, means)
            nll = sum(float(still.read(material, check, r, held_labels[r]).sum()) for r in held.split(BATCH))
            if nll < best:
                best, chosen = nll, copy.deepcopy(generator.head)
    material.kept["S4"] = chosen, means
    return chosen, means


def generated(
    material: Material, part: Part, order: Tensor, batch: int, settings=None
) -> dict[tuple, Tensor]:
    """Sums of nats (n,) of the generated head that is not updated."""
    return _read(material, part, order, batch, [(0.0,)])


def updated(material: Material, part: Part, order: Tensor, batch: int, settings=None) -> dict[tuple, Tensor]:
    """Sums of nats (n,) of the generated head, its hyper-network updated at each rate or the given one."""
    return _read(
        material, part, order, batch, [(r,) for r in UPDATE_RATES] if settings is None else [settings]
    )


def _read(
    material: Material, part: Part, order: Tensor, batch: int, rates: list[tuple]
) -> dict[tuple, Tensor]:
    head, means = trained(material)
    name = next(name for name, one in material.parts.items() if one is part)
    labels, out = material.labels(GROUPS, name, order, batch)[0], {}
    for (rate,) in rates:
        generator, nll = Generator(copy.deepcopy(head), means, rate), []
        for rows in order.split(batch):
            nll.append(generator.read(material, part, rows, labels[rows]))
            generator.remember(part.hidden[rows], labels[rows])
        out[rate,] = torch.cat(nll).cpu()
    return out
