"""Learning from a stream as it passes: online clusters, layers with factors of each row's own, `learn`.

rows in order ─ batches ─ clusters of what is known before ─▶ slots ─ Memory.read ─▶ nats (n,)
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from .. import engine
from ..backbone import Backbone
from ..cluster import nearest_centroid
from ..heads import HeadUpdate
from ..loss import HeadWeight
from ..text import TokenTable, by_length
from ..train_layers import STEP_TOKENS, LiveStates, states_at
from .memory import Memory, Shapes, pairs_of

CPU_TOKENS = 1_024  # padded, whose activations are kept for the way back
GPU_SHARE = 0.4  # of all its memory
FULL_STEP = 4_096  # of 32 documents, a step in training layers
KEPT_BYTES = 12  # per number that a layer reads or writes: a stream of five lanes took 11 in all


class OnlineClusters:
    """k-means that takes vectors as they come (MacQueen 1967): K centroids, each the mean of its vectors.

    The first K distinct vectors become the centroids, so a cluster exists from its first vector on.
    """

    def __init__(self, clusters: int, width: int) -> None:
        self.centroids = torch.zeros(clusters, width, dtype=torch.float64)
        self.sizes = torch.zeros(clusters, dtype=torch.int64)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Vectors x (B, C) to their clusters (B,); only then the centroids move to the new means."""
        x, used = x.to(self.centroids).nan_to_num(), int((self.sizes > 0).sum())
        for row in x:
            if used < len(self.sizes) and not (self.centroids[:used] == row).all(1).any():
                self.centroids[used] = row
                used += 1
        labels = nearest_centroid(x, self.centroids[:used])[0]
        sums = (self.centroids * self.sizes[:, None]).index_add_(0, labels, x)
        self.sizes = self.sizes + torch.bincount(labels, minlength=len(self.sizes))
        moved = sums / self.sizes.clamp_min(1)[:, None]
        self.centroids = torch.where(self.sizes[:, None] > 0, moved, self.centroids)
        return labels

    def state_dict(self) -> dict[str, Tensor]:
        """Centroids (K, C) and sizes (K,), as copies."""
        return {"centroids": self.centroids.clone(), "sizes": self.sizes.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state` was taken."""
        self.centroids, self.sizes = state["centroids"].clone(), state["sizes"].clone()


class LayerStates(LiveStates):
    """The scored pairs of a table, computed anew with each row's own factors in the layers; see `LiveStates`.

    Unlike `add_lora` it leaves the backbone as it is, and rows of one pass may differ in their factors.
    """

    def __init__(self, backbone: Backbone, table: TokenTable, piece_tokens: int | None = None) -> None:
        """table: N documents; piece_tokens: padded tokens that go through the layers at one time."""
        super().__init__(backbone, table, record=False)
        self.dtype = self.layers.dtype if self.layers.autocast else torch.float32  # of the factors
        self.linear = linear_layers(backbone)
        self.piece_tokens = piece_tokens or CPU_TOKENS
        if not piece_tokens and self.device.type == "cuda":  # of all memory: what is free would change sums
            total = torch.cuda.get_device_properties(self.device).total_memory
            self.piece_tokens = tokens_that_fit(self.linear.values(), total)

    @cached_property
    def learning_pass(self):
        """The fast way through the layers where gradients are on, or None."""
        fast = engine.fast("rows_pass", worth=self.device.type == "cuda")
        return fast and fast(self)

    def close(self) -> None:
        """Give back the memory that recorded passes hold."""
        super().close()
        if vars(self).get("learning_pass"):
            self.learning_pass.release()

    def pieces(self, rows: Tensor) -> list[Tensor]:
        """Places in rows (B,) of the documents that go through the layers at one time, by length."""
        lengths = self.table.lengths[rows.numpy()]
        if torch.is_grad_enabled() and self.learning_pass:
            return self.learning_pass.pieces(lengths)
        return [torch.from_numpy(piece) for piece in by_length(lengths, self.piece_tokens)]

    def batch(
        self, rows: Tensor, values: Tensor | None = None, slots: Tensor | None = None, shapes: Shapes = {}
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Documents rows (B,), which read slots (B, U) of values (S, P), to states (M, C), targets, rows (M,)."""
        ids, _, place, target, row = self.padded(rows)
        if shapes and torch.is_grad_enabled() and self.learning_pass:
            h, place = self.learning_pass(ids, place, values, slots, shapes)
        else:  # pads stand on the right, where no real token sees them: no mask
            numbers = values[slots.to(self.device)].to(self.dtype) if shapes else None
            h = self.hidden(ids, numbers, shapes)
        return states_at(h, place), target, row

    def hidden(self, ids: Tensor, numbers, shapes: Shapes, mask=None, position=None) -> Tensor:
        """ids (B, T) and each row's numbers (B, U, P) to states (B, T, C)."""
        with self._added(pairs_of(numbers, shapes)):
            return self.layers(ids, position, mask)

    @contextmanager
    def _added(self, factors: dict[str, HeadUpdate]) -> Iterator[None]:
        def adds(update: HeadUpdate) -> Callable:
            down, up = update.down.mT, update.up.mT  # (B, inputs, R), (B, R, outputs)
            return lambda module, inputs, out: out + (inputs[0] @ down) @ up

        hooks = [self.linear[name].register_forward_hook(adds(update)) for name, update in factors.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def linear_layers(backbone: Backbone) -> dict[str, nn.Module]:
    """The linear layers of the body by name: those that `add_lora` adapts, without its own."""
    from transformers.pytorch_utils import Conv1D

    every = {n: m for n, m in backbone.body.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    return {n: m for n, m in every.items() if ".lora_" not in n}


def tokens_that_fit(layers: Iterable[nn.Module], memory: int) -> int:
    """Padded tokens whose activations in these linear layers take a share of a GPU's `memory` bytes, at least 64."""
    numbers = sum(sum(layer.weight.shape) for layer in layers)  # read and written per token
    return max(64, int(GPU_SHARE * memory / (KEPT_BYTES * numbers)))


def step_tokens(backbone: Backbone) -> int | None:
    """Tokens of a piece in training layers: of a whole step, where a GPU's memory allows; None: as usual."""
    if backbone.device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(backbone.device).total_memory
    tokens = min(FULL_STEP, tokens_that_fit(linear_layers(backbone).values(), total))
    return tokens if tokens > STEP_TOKENS["cuda"] else None


def layer_shapes(backbone: Backbone, rank: int) -> Shapes:
    """The shapes of one slot's factors in every linear layer; a Conv1D's weight is the other way round."""
    layers = linear_layers(backbone).items()
    sizes = {n: m.weight.shape[::-1] if isinstance(m, nn.Linear) else m.weight.shape for n, m in layers}
    return {name: (rank, *size) for name, size in sizes.items()}


def learn(
    data,
    weight: HeadWeight,
    rows: Tensor,
    memory: Memory,
    *,
    labels: Tensor | None = None,
    vectors: Tensor | None = None,
    clusters: OnlineClusters | None = None,
    shared: bool = True,
) -> Tensor:
    """Score documents rows (n,) in order, learning from each batch once scored: sums of nats (n,) float64.

    data: `ScoredStates`, or `LayerStates` with a memory that has its shapes; weight: the frozen head's. One
    memory for all rows, slot 0, or one per cluster as well: labels (N,) by document, or online `clusters`
    over vectors (N, C) of what is known before a row is scored. Then slot 1 + k is cluster k's, on top of
    slot 0 where `shared`, else alone. To go on later, keep the states of memory and clusters. Source: dynamic
    evaluation, Krause et al. 2018, 2019. ValueError for labels or clusters that the memory has no slots for.
    """
    out = []
    for batch in rows.cpu().split(memory.settings.batch_rows):
        own = None if labels is None else labels[batch]
        if clusters is not None:
            own = clusters(vectors[batch.to(vectors.device)])
        slots = torch.zeros(len(batch), 1, dtype=torch.int64)
        if own is not None:
            slots = torch.stack([slots[:, 0], 1 + own.cpu()], 1) if shared else 1 + own.cpu()[:, None]
        if int(slots.max()) >= len(memory.values):
            raise ValueError(f"a memory of {len(memory.values)} slots has none of number {int(slots.max())}")
        out.append(memory.read(data, weight, batch, slots))
    return torch.cat(out) if out else torch.zeros(0, dtype=torch.float64)
