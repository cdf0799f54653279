"""CUDA graphs: work of one shape that is repeated is recorded once and replayed.

    first call of a key    the work as it is: kernels are compiled, tables made, optimisers get their state
    second call            recorded on buffers of its own, then replayed
    from the third on      copy the inputs into the graph's buffers and launch it; one launch instead of hundreds

A recorded step must not wait for the device, must draw nothing at random, and must find its parameters and optimiser
states where they were. Where a recording fails, nothing more is recorded and all new work is done plainly.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LIMIT = 64  # recordings kept; work beyond them is done plainly


@dataclass
class Recording:
    """One graph, the inputs it reads, the output it writes, and what else it reads from memory not its own."""

    graph: "torch.cuda.CUDAGraph"
    inputs: list[Tensor]
    output: Tensor
    outlived: Sequence = ()


_outlived: list | None = None  # of the recording under way


def outliving(tables):
    """`tables`, which live from here on at least as long as the recording under way, if there is one."""
    if _outlived is not None:
        _outlived.append(tables)
    return tables


class Recorder:
    """Replays work by key on a CUDA device. All recordings use the same memory, since no two run at the same time."""

    def __init__(self, device: torch.device, limit: int = LIMIT) -> None:
        self.device, self.limit = device, limit
        self.kept: dict[Hashable, Recording | None] = {}  # None: seen once
        self.plain: set[Hashable] = set()  # what is not recorded
        gpu = device.type == "cuda"
        # The allocator uses memory again only on the stream that it was asked for on: one stream for all recordings.
        self.pool, self.aside = (
            (torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)) if gpu else (None, None)
        )

    def __call__(self, key: Hashable, inputs: Sequence[Tensor], work: Callable[..., Tensor]) -> Tensor:
        """work(*inputs), whose output the next call may overwrite, as it may all that the work left behind.

        The key must say everything that `work` depends on beside the values of its inputs.
        """
        key = (key, *((x.shape, x.dtype) for x in inputs))
        if key in self.plain:
            return work(*inputs)
        if key not in self.kept:
            (self.plain.add if len(self.kept) >= self.limit else self.kept.setdefault)(key)
            return work(*inputs)
        if self.kept[key] is None:
            try:
                self.kept[key] = self._record(inputs, work)
            except RuntimeError as error:
                del self.kept[key]
                self.plain.add(key)
                self.limit = 0  # the allocator may not have seen the end of this recording
                warnings.warn(
                    f"from here on work is not recorded, and slower: {str(error).splitlines()[0]}",
                    stacklevel=2,
                )
                return work(*inputs)
        return self._replay(self.kept[key], inputs)

    def forget(self) -> None:
        """Drop all recordings and give their memory back: none of their keys will come again."""
        if self.pool is not None:
            torch.cuda.synchronize(self.device)  # the last replay may still be under way
            self.pool = (
                torch.cuda.graph_pool_handle()
            )  # one that no recording uses any more cannot be used again
        self.kept.clear()
        self.plain.clear()

    def _record(self, inputs: Sequence[Tensor], work: Callable[..., Tensor]) -> Recording:
        global _outlived
        own, graph = [x.clone() for x in inputs], torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self.device)
        self.aside.wait_stream(current)
        with torch.cuda.stream(self.aside):
            # Not `torch.cuda.graph`: it empties the allocator's cache and waits for the device at each recording.
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            _outlived = outlived = []
            try:
                output = work(*own)
            finally:
                _outlived = None
                graph.capture_end()
        current.wait_stream(self.aside)
        return Recording(graph, own, output, outlived)

    @staticmethod
    def _replay(kept: Recording, inputs: Sequence[Tensor]) -> Tensor:
        for own, given in zip(kept.inputs, inputs):
            own.copy_(given, non_blocking=True)
        kept.graph.replay()
        return kept.output


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
