"""Numbers between host and GPU through page-locked memory, which a GPU copies by itself, several times faster."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..errors import RunFailed

COPIED_ROWS = 65_536  # states that go from a file to the device at a time
THREADS = 8  # that read them: one alone is slower than the GPU's bus


def sent(x: Tensor, device: torch.device) -> Tensor:
    """x on the device, copied beside its work: the host does not wait for a GPU."""
    pinned = device.type == "cuda" and not x.is_cuda
    return x.pin_memory().to(device, non_blocking=True) if pinned else x.to(device)


def arriving(x: Tensor) -> Callable[[], list]:
    """Begin to copy x to the host; the function waits for that, and for no later work, and gives its numbers."""
    if not x.is_cuda:
        return x.tolist
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
    there = torch.cuda.Event()
    there.record(torch.cuda.current_stream(x.device))

    def numbers() -> list:
        there.synchronize()
        return host.tolist()

    return numbers


@cache
def _aside(device: torch.device) -> "torch.cuda.Stream":
    """The one stream that copies: what is freed on a stream is used again on that stream alone."""
    return torch.cuda.Stream(device)


class Fetched:
    """States (L, C) fp16 on their way to the host, batch after batch, while the device goes on computing."""

    def __init__(self, count: int, width: int, device: torch.device) -> None:
        gpu, self.count = device.type == "cuda", 0
        self.host = torch.empty(count, width, dtype=torch.float16, pin_memory=gpu)
        self.finite: list[Tensor] = []
        self.aside = _aside(device) if gpu else None

    def add(self, states: Tensor) -> None:
        """States (m, C), which come to lie behind those before."""
        states, place = states.half(), self.host[self.count : self.count + len(states)]
        self.count += len(states)
        if self.aside is not None:
            self.aside.wait_stream(torch.cuda.current_stream(states.device))
            states.record_stream(self.aside)
        with torch.cuda.stream(self.aside) if self.aside else nullcontext():
            place.copy_(states, non_blocking=self.aside is not None)
            self.finite.append(torch.isfinite(states).all())

    def rows(self, name: str) -> np.ndarray:
        """All of them, waited for; RunFailed with the backbone's name when one is not finite."""
        with torch.cuda.stream(self.aside) if self.aside else nullcontext():
            finite = all(x.item() for x in self.finite)
        if not finite:
            raise RunFailed(f"{name}: hidden states are not finite; try feature_dtype: float32")
        return self.host.numpy()


def on_device(states: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """States (L, C) on the device; piece by piece, so that the host holds little of a file."""
    if isinstance(states, Tensor):
        return states.to(device)
    out, gpu = torch.empty(states.shape, dtype=torch.float16, device=device), device.type == "cuda"
    with ThreadPoolExecutor(THREADS) as threads:
        for low in range(0, len(states), COPIED_ROWS):
            part, place = states[low : low + COPIED_ROWS], out[low : low + COPIED_ROWS]
            on_host = device.type == "cpu"
            host = place if on_host else torch.empty(place.shape, dtype=out.dtype, pin_memory=gpu)
            shares = (np.array_split(x, THREADS) for x in (host.numpy(), part))
            list(threads.map(np.copyto, *shares))
            if not on_host:
                place.copy_(host, non_blocking=gpu)
    return out
