"""What every head takes and returns, so that losses, loops and adapters need not know which head it is.

    Condition (what is known of a group before it is scored) ── head.factors ─▶ HeadUpdate ─▶ logits or loss
    logits = h Wᵀ + bias_W + α (h downᵀ) upᵀ + bias

G conditioning groups: 1 for a whole batch, B for per-sample conditioning. A static head ignores the condition.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Condition:
    """One row a conditioning group; only `vector` is always there."""

    vector: Tensor  # (G, C) mean of the group's normalised mean token embeddings
    counts: Tensor | None = None  # (G, V) token counts of the group's prefixes, float
    cluster: Tensor | None = None  # (G,) int64, index of the routing centroid
    length: Tensor | None = None  # (G, 2) mean row length in tokens, mean share of padding

    @property
    def groups(self) -> int:
        return self.vector.shape[0]

    def to(self, device) -> "Condition":
        """The same condition on another device."""
        fields = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return replace(self, **fields)


@dataclass(frozen=True)
class HeadUpdate:
    """The update of the head's weight for each of G groups; `down`/`up` may be absent (a bias-only head).

    With `mix` (G, R) there is one pair of factors, (1, R, C) and (1, V, R), and group g uses R slots of it weighted
    with mix[g]: a bank of experts, or of scaled singular directions, costs one product whatever G is. No bias then.
    """

    down: Tensor | None  # (G, R, C), the paper's A
    up: Tensor | None  # (G, V, R), the paper's B
    bias: Tensor | None = None  # (G, V)
    mix: Tensor | None = None  # (G, R)

    @property
    def groups(self) -> int:
        if self.mix is not None:
            return self.mix.shape[0]
        return (self.down if self.down is not None else self.bias).shape[0]

    def dense(self, group: int = 0) -> Tensor:
        """The update of the weight (V, C) for one group; large, meant for merging and for tests."""
        if self.mix is not None:
            return (self.up[0] * self.mix[group]) @ self.down[0]  # (V, C)
        return self.up[group] @ self.down[group]  # (V, C)


class Head(nn.Module):
    """Base of all heads. `conditioned` says whether `factors` reads the condition at all."""

    conditioned: bool = False

    def factors(self, condition: Condition) -> HeadUpdate:
        """The update for each of the condition's G groups (a static head returns G = 1, to be broadcast)."""
        raise TypeError(f"{type(self).__name__} must define factors(condition)")

    def trainable_parameters(self) -> int:
        """Number of trainable scalars."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def stored_bytes(self) -> int:
        """Bytes of a saved copy at the parameters' own dtypes (claim 10 counts these)."""
        return sum(p.numel() * p.element_size() for p in self.parameters())


def apply_update(h: Tensor, update: HeadUpdate, scale: float = 1.0) -> Tensor:
    """h (G, M, C) or (M, C) with G = 1, to the update's contribution to the logits (…, V)."""
    flat = h.dim() == 2
    x = h.unsqueeze(0) if flat else h  # (G, M, C)
    out = torch.zeros((), dtype=h.dtype, device=h.device)
    if update.down is not None:
        z = x @ update.down.to(h.dtype).transpose(1, 2)  # (G, M, R)
        if update.mix is not None:
            z = z * update.mix.to(h.dtype).unsqueeze(1)
        out = scale * (z @ update.up.to(h.dtype).transpose(1, 2))  # (G, M, V)
    if update.bias is not None:
        out = out + update.bias.to(h.dtype).unsqueeze(1)
    return out.squeeze(0) if flat else out
