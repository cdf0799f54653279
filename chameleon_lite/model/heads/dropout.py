"""Dropout whose mask can be drawn beforehand: then `forward` holds nothing random and can be recorded and replayed."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """PyTorch's dropout, and the same with a given `mask` of zeros and 1 / (1 − p)."""

    mask: Tensor | None = None
    seen: torch.Size | None = None  # the shape that it dropped from last, in training

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.seen = x.shape
        if self.mask is None:
            return super().forward(x)
        if self.mask.shape != x.shape:
            raise ValueError(
                f"a mask of {tuple(self.mask.shape)} does not fit {tuple(x.shape)}: draw it anew"
            )
        return x * self.mask

    def draw(self, groups: int, device: torch.device) -> Tensor:
        """A mask for (groups, …), the rest as seen last; uses up the generator's numbers as `forward` would."""
        return F.dropout(torch.ones(groups, *self.seen[1:], device=device), self.p, training=True)


def maskable(module: nn.Module) -> None:
    """Replace every nn.Dropout by the layer above: the same numbers, and masks can be given."""
    for name, layer in list(module.named_modules()):
        if type(layer) is nn.Dropout and not layer.inplace:
            module.set_submodule(name, Dropout(layer.p).train(layer.training))


def active(module: nn.Module) -> list[nn.Dropout]:
    """The dropout layers that drop anything, in the order of their names."""
    return [m for m in module.modules() if isinstance(m, nn.Dropout) and m.p > 0]
