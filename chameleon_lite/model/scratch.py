"""Large buffers that every chunk of a pass uses again.

On a CPU memory of tens of megabytes is handed back to the system when it is freed and cleared page by page when it
is asked for anew; for a chunk of logits that takes several times as long as the softmax that is written into it.
"""

import torch
from torch import Tensor


class Scratch:
    """Buffers by name, (rows, columns) each, made at first use and as long-lived as this object."""

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        self.rows, self.columns, self.device = rows, columns, device
        self.held: dict[str, Tensor] = {}

    @classmethod
    def of(cls, weight, rows: int) -> "Scratch":
        """Buffers for chunks of `rows` rows of a HeadWeight's logits; a CPU's stay with the weight from pass to pass.

        A GPU's allocator keeps freed memory itself.
        """
        device = weight.weight.device
        kept = getattr(weight, "scratch", None)
        if kept is None or kept.rows < rows:
            kept = cls(rows, weight.padded, device)
            if device.type == "cpu":
                weight.scratch = kept
        return kept

    def __call__(self, name: str, rows: int, dtype: torch.dtype) -> Tensor:
        """The first `rows` rows of the buffer of that name; what it held before is lost."""
        if name not in self.held:
            self.held[name] = torch.empty(self.rows, self.columns, dtype=dtype, device=self.device)
        return self.held[name][:rows]
