"""LoRA in the layers, trained together with a head: hidden states change with the factors and cannot be kept.

    rows of a step ─ pieces ─ backbone with LoRA ─▶ h (M, C), target (M,) ─▶ train_heads, as for stored states

`LiveStates` takes the place of `ScoredStates` and computes states anew for every batch; gradients reach the
layers' factors, which `WithLayers` trains, keeps and restores with the head. Memory is the activations of one
piece: the rows of a step go through piece by piece, which changes no gradient.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from . import engine
from .backbone import Backbone
from .backbones.formats import backbone_dtype, fused_activations
from .heads import Condition, Head, HeadUpdate
from .loss import next_token_pairs
from .states import sent
from .text import TokenTable, by_length

# Tokens that go through the backbone at once. Training keeps every layer's activations, megabytes per token:
# its pieces are small; on a GPU six rows of 256: a recorded pass holds its memory as long as training.
READ_TOKENS = {"cpu": 2_048, "cuda": 32_768}
STEP_TOKENS = {"cpu": 256, "cuda": 1_536}


class WithLayers(Head):
    """A head together with the LoRA factors of the layers below it, trained, kept and restored as one."""

    def __init__(self, head: Head, layers: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.head, self.layers, self.conditioned = head, nn.ParameterList(layers), head.conditioned

    def factors(self, condition: Condition | None = None) -> HeadUpdate:
        """The head's update."""
        return self.head.factors(condition)


class LiveStates:
    """The scored (state, target) pairs of N documents, computed anew for every batch: `train.States`.

    Rows are padded, documents of similar length together, but where the engine's fast pass takes them.
    `record`: on a GPU that of training may be recorded, which holds its memory until `close`; `tokens`: of
    its pieces, more than usual. Without gradients a state is rounded to 16 bits, as one from a file is.
    """

    def __init__(self, backbone: Backbone, table: TokenTable, record=True, tokens: int | None = None) -> None:
        self.backbone, self.table, self.record, self.step_tokens = backbone, table, record, tokens
        self.device, self.layers = backbone.device, Layers(backbone)
        self.counts = torch.from_numpy(table.n_scored.astype(np.int64))  # (N,)

    @cached_property
    def training_pass(self):
        """The fast way through the layers of a training step, or None."""
        fast = engine.fast("layer_pass")
        return fast and fast(self.backbone, self.table, self.record, tokens=self.step_tokens)

    @cached_property
    def reading_pass(self):
        """The same without gradients; a CPU's pieces are small, so that they hold little padding anyway."""
        fast = engine.fast("layer_pass", worth=self.device.type == "cuda")
        return fast and fast(self.backbone, self.table, reads=True)

    def tokens(self, rows: Tensor) -> int:
        """Scored tokens of documents rows (B,)."""
        return int(self.counts[rows].sum())

    def pieces(self, rows: Tensor) -> list[Tensor]:
        """Indices into rows (B,) of the documents that go through the backbone at one time."""
        trains = torch.is_grad_enabled()
        if fast := self.training_pass if trains else self.reading_pass:
            return fast.pieces(rows)
        budget = STEP_TOKENS if trains else READ_TOKENS
        pieces = by_length(self.table.lengths[rows.numpy()], budget.get(self.device.type, budget["cpu"]))
        return [torch.from_numpy(piece) for piece in pieces]

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Documents rows (B,) to states (M, C), targets (M,), and indices into rows (M,) on the host."""
        trains = torch.is_grad_enabled()
        if fast := self.training_pass if trains else self.reading_pass:
            return fast.batch(rows)
        ids, mask, place, target, row = self.padded(rows)
        if trains:
            return states_at(self.layers(ids, None, mask), place), target, row
        return self.backbone.hidden(ids, mask).half().flatten(0, 1).index_select(0, place), target, row

    def padded(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Documents rows (B,) to ids, mask (B, T), flat place, target (M,) on the device, row (M,) on the host."""
        ids, mask = self.table.padded(rows)
        prefix = torch.from_numpy(self.table.prefix[rows.numpy()]).long()
        row, column, target = next_token_pairs(ids, mask, prefix)
        place, target = sent(torch.stack([row * ids.shape[1] + column, target]), self.device)
        return sent(ids, self.device), sent(mask, self.device), place, target, row

    def close(self) -> None:
        """Give back the memory that a recorded pass holds."""
        if vars(self).get("training_pass"):
            self.training_pass.close()


class Layers(nn.Module):
    """What `Backbone.hidden` takes to its states (B, T, C); 16-bit on a GPU."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.body, self.hidden, self.kind = backbone.body, backbone.hidden, backbone.device.type
        self.dtype = backbone_dtype(backbone.device)
        self.autocast = self.kind == "cuda" and self.dtype != torch.float32

    def forward(self, ids: Tensor, position: Tensor | None, mask: Tensor) -> Tensor:
        """The pass; autocast keeps no converted weights, which a recording would take for current."""
        precision = torch.autocast(self.kind, dtype=self.dtype, enabled=self.autocast, cache_enabled=False)
        with precision, fused_activations(self.body):
            return self.hidden(ids, mask, position)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """What gets gradient: a recording hands its parameters over with every call."""
        return (p for p in super().parameters(recurse) if p.requires_grad)


def states_at(hidden: Tensor, place: Tensor) -> Tensor:
    """hidden (B, T, C) at flat places (M,): (M, C), float32 or wider."""
    picked = hidden.flatten(0, 1).index_select(0, place)
    return picked.to(torch.promote_types(hidden.dtype, torch.float32))
