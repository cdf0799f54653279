"""Work of one shape that comes again and again is recorded once and replayed: CUDA graphs.

    first time of a key    the work as it is: kernels are compiled, tables made, optimisers get their state
    second time            recorded on inputs of its own, then replayed
    from then on           inputs copied in, replayed: one word from the host instead of hundreds

A step of head training is hundreds of launches; a host tells a GPU about them more slowly than the GPU does them.
What is recorded must not wait for the device, must draw nothing at random, and must find its parameters and optimiser
states where they were. Where a recording fails nothing more is recorded, and all new work is done plainly.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
