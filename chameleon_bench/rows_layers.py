"""B10: a training step with LoRA in the layers and on the head, by our trainer and by PEFT.

    ours   documents packed into pieces of a few rows, our head loss; on a GPU recorded and replayed
    peer   one padded batch through PEFT's layers as they come, all logits, plain cross-entropy

Ours fuses GPT-2's spelled-out activation, as its feature pass does; a piece has fewer tokens than the batch.
"""

import gc

import torch
from torch import Tensor

from chameleon_lite.backbone import load_backbone
from chameleon_lite.fast.head_loss_torch import forget_buffers
from chameleon_lite.fast.layers import RecordedLayers, layer_pass
from chameleon_lite.heads import LoraHead
from chameleon_lite.lora import add_lora, lora_parameters
from chameleon_lite.loss import HeadWeight
from chameleon_lite.processes import Processes
from chameleon_lite.settings import TrainSettings
from chameleon_lite.train import Common, Member, step
from chameleon_lite.train_layers import LiveStates, WithLayers

from . import baselines
from .measure import Samples, gate, peak_bytes, relative_error, row, sample
from .workload import RANK, Bench

PLAIN = "PEFT LoRA, plain loss"


def lora_step(bench: Bench) -> dict:
    """B10: forward and backward of one step, ours by `train.step` on live states."""
    work = LoraStep(bench, bench.size(4, 32, 2))
    gates = work.gates()
    times = bench.race({"ours": work.ours, PLAIN: work.plain}, 5 if bench.gpu else 3)
    body = bench.seconds(work.layers_alone)
    peaks = Samples({"ours": work.our_peak(), PLAIN: bench.peak(work.plain)})
    tokens = int(work.table.lengths.sum())
    workload = {"rows": len(work.table), "real tokens": tokens, "recorded": work.recorded}
    return row(
        "a step with LoRA in the layers",
        times.against({PLAIN: bench.goal(1.1, 1.3)}) + peaks.against({PLAIN: bench.goal(3, 3)}, "memory"),
        gates,
        limit="the layers' products for the real tokens",
        workload=workload | {f"tok/s, {name}": tokens / times.median(name) for name in times},
        profile=times.split("the layers, forward and backward", body, "the head"),
    )


class NoOptimiser:
    """Moves nothing and leaves the gradients, to be compared."""

    def step(self) -> None:
        """Nothing."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing."""


class LoraStep:
    """One step's forward and backward through a backbone with LoRA and a low-rank head, by both ways."""

    def __init__(self, bench: Bench, rows: int) -> None:
        self.bench, self.table = bench, bench.table(rows)
        # not the shared one: LoRA stays in it
        self.backbone = load_backbone(bench.model, device=bench.device)
        add_lora(self.backbone, rank=RANK)
        self.ids, self.labels = baselines.padded_rows(self.table, int(self.table.lengths.max()), bench.device)
        self.mask = self.table.padded(range(rows))[1].to(bench.device)
        self.count = int(self.table.n_scored.sum())
        head, g = LoraHead(self.backbone.width, self.backbone.vocab, RANK), torch.Generator().manual_seed(0)
        for factor in head.parameters():
            factor.data.normal_(std=0.02, generator=g)
        self.both = WithLayers(head.to(bench.device), lora_parameters(self.backbone).values())
        self.weight = HeadWeight(self.backbone.head.weight, dtype=bench.fast)
        self.live, self.rows = LiveStates(self.backbone, self.table), torch.arange(rows)
        self.processes = Processes()

    @property
    def recorded(self) -> bool:
        """Whether the layers' pass is a recording."""
        return isinstance(getattr(self.live.training_pass, "run", None), RecordedLayers)

    def ours(self) -> Tensor:
        """A step's gradients as in training, cutting its pieces included. Sum of nats (1,)."""
        self._clear()
        member = Member("both", self.both, None, None, 0.0)
        common = Common(self.live, self.weight, TrainSettings(), self.processes, {"both": NoOptimiser()})
        return step([member], [(None, None)], self.rows, 1, common)

    def plain(self) -> Tensor:
        """The peer's; its padded batch lies on the device already. Sum of nats ()."""
        self._clear()
        head, matrix = self.both.head, self.backbone.head.weight
        with torch.autocast(self.bench.device.type, torch.bfloat16, enabled=self.bench.gpu):
            hidden = self.backbone.hidden(self.ids, self.mask)  # (B, T, C)
            loss = baselines.plain_head_loss(hidden, self.labels, matrix, head.down, head.up)
        (loss / self.count).backward()
        return loss.detach()

    def layers_alone(self) -> None:
        """The layers' share of ours: the same pieces with a sum in the head's place."""
        self._clear()
        for places in self.live.pieces(self.rows):
            self.live.batch(self.rows[places])[0].sum().backward()

    def our_peak(self) -> dict:
        """Bytes of ours at its highest.

        A replay's activations lie in memory that the recording reserved, so that a step's own peak would show
        the head only. What a new recording reserves is counted in full, and the step's peak on top; or the
        recording's peak, should that be higher. The head's buffers, which a CPU reuses, are allocated anew.
        """
        forget_buffers(self.weight)
        if not self.recorded:
            return self.bench.peak(self.ours)
        self._clear()
        self.live.close()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self.bench.device)

        def record() -> None:
            self.live.training_pass = layer_pass(self.backbone, self.table)

        recording = peak_bytes(record, self.bench.device)
        gc.collect()
        torch.cuda.empty_cache()
        reserved = torch.cuda.memory_reserved(self.bench.device) - before
        return sample([float(max(recording, reserved + peak_bytes(self.ours, self.bench.device)))], "bytes")

    def gates(self) -> list[dict]:
        """Summed loss and all gradients against each other; the backbone's arithmetic is the same."""
        pairs = []
        for way in (self.ours, self.plain):
            loss = float(way()) / self.count
            pairs.append((loss, torch.cat([p.grad.flatten().float() for p in self.both.parameters()])))
        (ours, gradient), (plain, expected) = pairs
        limit, loss_limit = self.bench.limits
        return [
            gate("mean loss, nats", abs(ours - plain), loss_limit),
            gate("gradient, relative", relative_error(gradient, expected), limit),
        ]

    def _clear(self) -> None:
        for p in self.both.parameters():
            p.grad = None
