"""How a training step is shared over processes, on Accelerate; with one process both sums change nothing.

    torchrun --nproc_per_node 2 -m chameleon_lite fit …   process i of n takes documents i, i + n, … of a step

Every process divides its loss by the token count of the whole step before it forms gradients (train.step);
here they are only added. So the result is that of one process, whatever the lengths of each one's documents.
"""

import datetime
import os

import torch
from torch import Tensor

from .backbones.formats import device_of
from .errors import RunFailed

PATIENCE = datetime.timedelta(hours=2)  # one process may compute hidden states while the others wait


class Processes:
    """The processes that take part, and which of them this is.

    Raises RunFailed when fewer take part than were started: one alone would pass for all of them.
    """

    def __init__(self, accelerator=None) -> None:
        from accelerate import Accelerator, InitProcessGroupKwargs

        started = int(os.environ.get("WORLD_SIZE", 1))
        # Without a GPU and without this option every process would work as if it were the only one.
        options = {"cpu": True} if started > 1 and not torch.cuda.is_available() else {}
        handlers = [InitProcessGroupKwargs(timeout=PATIENCE)]
        self.accelerator = accelerator or Accelerator(kwargs_handlers=handlers, **options)
        self.index, self.count = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device if self.count > 1 else device_of()
        if started != self.count:
            line = f"start with torchrun --nproc_per_node {started}"
            raise RunFailed(f"{started} processes were started but {self.count} take part: {line}")

    def sum_gradients(self, parameters: list[Tensor]) -> None:
        """Add gradients over processes in one flat message."""
        if self.count == 1 or not parameters:
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = self.accelerator.reduce(torch.cat([g.flatten() for g in grads]), "sum")
        for p, g in zip(parameters, flat.split([g.numel() for g in grads])):
            p.grad = g.view_as(p)

    def sum(self, value: Tensor) -> Tensor:
        """A tensor added over processes."""
        return value if self.count == 1 else self.accelerator.reduce(value, "sum")


def leave() -> None:
    """Leave the group of processes at the end of a program; without it the backend warns."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
