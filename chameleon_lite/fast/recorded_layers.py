"""The layers' pass of a training step, recorded once and replayed.

    (ids, position, mask) ─┬─ Layers           any shape, any device                          thousands of launches
                           └─ RecordedLayers   one shape, a CUDA graph forwards and one back  two launches

A small model's step on a fast GPU takes as long as the host needs to launch its kernels. A CUDA graph has them launched
together. It reads the LoRA factors where they lie, so it must not outlive a move of the model; dropout draws anew in
every replay. Between its two passes it keeps the activations in memory of its own, which it holds until released.
"""

import gc
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ..backbone import Backbone
from ..train_layers import Layers
from .packing import sees
from .recorder import usable_after

Run = Callable[[Tensor, Tensor | None, Tensor], Tensor]


class RecordedLayers:
    """`Layers` for one shape (rows, length), recorded for replay; other shapes take the plain pass.

    A pass forwards must have had its pass backwards, or need none, before the next one: both use the same memory.
    """

    def __init__(self, backbone: Backbone, rows: int, length: int) -> None:
        """Raises what recording raises: out of memory, or an operation that waits for the host."""
        self.plain, self.shape = Layers(backbone), (rows, length)
        self.factors = list(self.plain.parameters())
        self.sums = [torch.zeros_like(p) for p in self.factors]
        self.mode = self._mode()
        # The graph adds to gradients on its own stream. Autograd synchronises correctly; this silences its warning.
        if quiet := getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None):
            quiet(False)
        ids = torch.zeros(self.shape, dtype=torch.int64, device=backbone.device)
        position = torch.zeros_like(
            ids
        )  # a model may have fewer positions than a row: documents begin anew in it
        pool = torch.cuda.graph_pool_handle()
        with torch.cuda.device(backbone.device), usable_after(backbone.device, pool):
            self.replay: Run = torch.cuda.make_graphed_callables(
                Layers(backbone), (ids, position, sees(ids)), allow_unused_input=True, pool=pool
            )

    def __call__(self, ids: Tensor, position: Tensor | None, mask: Tensor) -> Tensor:
        """Hidden states (B, T, C), overwritten by the next call."""
        fits = position is not None and ids.shape == self.shape and torch.is_grad_enabled()
        if not fits or self.mode != self._mode():
            return self.plain(ids, position, mask)
        self._keep_gradients_apart()
        return self.replay(ids, position, mask)

    def _mode(self) -> list[bool]:
        """Which modules are in training mode: dropout is recorded as it was, on or off."""
        return [module.training for module in self.plain.body.modules()]

    def _keep_gradients_apart(self) -> None:
        """Give every factor without a gradient zeros of its own to add to.

        A replay leaves gradients where the last one left them. As a factor's first gradient such a tensor would be
        kept, not copied, and the next piece would write over the sum.
        """
        without = [(p, total) for p, total in zip(self.factors, self.sums) if p.grad is None]
        if without:
            torch._foreach_zero_([total for _, total in without])
            for p, total in without:
                p.grad = total

    def release(self) -> None:
        """Give the recording's memory back; from then on every pass is plain."""
        self.shape, self.replay, self.sums = None, None, []
        gc.collect()  # a graph lies in reference cycles


def recorded(backbone: Backbone, rows: int, length: int) -> RecordedLayers | None:
    """The layers' pass for packed rows (rows, length), recorded; None without a GPU or, with a warning, if it fails."""
    if backbone.device.type != "cuda":
        return None
    try:
        return RecordedLayers(backbone, rows, length)
    except Exception as problem:  # as many kinds as models have operations
        first = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        warnings.warn(
            f"{backbone.name}: its layers cannot be recorded and are launched one by one ({first})",
            stacklevel=2,
        )
        return None
