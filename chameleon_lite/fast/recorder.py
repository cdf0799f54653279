"""CUDA graphs: work of one shape that is repeated is recorded once and replayed.

    first call of a key    the work as it is: kernels are compiled, tables made, optimisers get their state
    second call            recorded on buffers of its own, then replayed
    from the third on      inputs are copied into the graph's buffers; one launch instead of hundreds

Recorded work must not wait for the device, must draw nothing at random, and must find its parameters and
optimiser states where they were. Where a recording fails, nothing more is recorded; new work is done plainly.
"""

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor

LIMIT = 64  # recordings kept; work beyond them is done plainly


@dataclass
class Recording:
    """One graph, the inputs it reads, the output it writes, and what else it reads from others' memory."""

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
    """Replays work by key on a CUDA device. All recordings use the same memory: no two run at one time."""

    def __init__(self, device: torch.device, limit: int = LIMIT) -> None:
        gpu = device.type == "cuda"
        self.device, self.limit = device, limit if gpu else 0
        self.kept: dict[Hashable, Recording | None] = {}  # None: seen once
        self.plain: set[Hashable] = set()  # what is not recorded
        # The allocator uses memory again only on the stream that asked for it: one stream for all recordings.
        self.pool = torch.cuda.graph_pool_handle() if gpu else None
        self.aside = torch.cuda.Stream(device) if gpu else None

    def __call__(self, key: Hashable, inputs: Sequence[Tensor], work: Callable[..., Tensor]) -> Tensor:
        """work(*inputs), whose output the next call may overwrite, as it may all that the work left behind.

        The key must hold everything that `work` depends on besides the values of its inputs.
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
                self.limit = 0
                reason = str(error).splitlines()[0]
                warnings.warn(f"from here on work is not recorded, and slower: {reason}", stacklevel=2)
                return work(*inputs)
        return self._replay(self.kept[key], inputs)

    def forget(self) -> None:
        """Drop all recordings and give their memory back: none of their keys will come again."""
        if self.pool is not None:
            torch.cuda.synchronize(self.device)  # the last replay may still be under way
            self.pool = torch.cuda.graph_pool_handle()  # one that no recording uses cannot be used again
        self.kept.clear()
        self.plain.clear()

    def _record(self, inputs: Sequence[Tensor], work: Callable[..., Tensor]) -> Recording:
        global _outlived
        buffers, graph = [x.clone() for x in inputs], torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self.device)
        self.aside.wait_stream(current)
        with usable_after(self.device, self.pool, graph), torch.cuda.stream(self.aside):
            # Not `torch.cuda.graph`: it empties the allocator's cache and waits for the device each time.
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            _outlived = outlived = []
            try:
                output = work(*buffers)
            except BaseException:
                with suppress(RuntimeError):  # of a recording that was broken off; the first error says why
                    graph.capture_end()
                raise
            finally:
                _outlived = None
            graph.capture_end()
        current.wait_stream(self.aside)
        return Recording(graph, buffers, output, outlived)

    @staticmethod
    def _replay(kept: Recording, inputs: Sequence[Tensor]) -> Tensor:
        for buffer, given in zip(kept.inputs, inputs):
            buffer.copy_(given, non_blocking=True)
        kept.graph.replay()
        return kept.output


_broken: list = []  # graphs whose recording failed: the allocator of pinned memory may still refer to them


@contextmanager
def usable_after(device: torch.device, pool, graph=None) -> Iterator[None]:
    """Around a recording into a memory pool: where it fails, the error is raised and the GPU serves on.

    The end of a recording that was broken off is itself an error, raised before PyTorch puts back anything:
    the stream, the pool that memory comes from, and the default generator, which would refuse every number.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    generator, stream = torch.cuda.default_generators[index], torch.cuda.current_stream(index)
    drawn = generator.get_state()
    try:
        yield
    except BaseException:
        torch.cuda.set_stream(stream)
        try:
            torch._C._cuda_endAllocateToPool(index, pool)
        except RuntimeError:
            pass  # it had ended, and the graph gives the pool back
        else:
            torch._C._cuda_releasePool(index, pool)
            _broken.append(graph)
        fresh = torch.Generator(torch.device("cuda", index))
        generator.graphsafe_set_state(fresh.graphsafe_get_state())
        torch.cuda.synchronize(index)
        torch.rand(1, device=torch.device("cuda", index))  # raises where the generator still records
        generator.set_state(drawn)
        raise
