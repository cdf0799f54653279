"""B10: a training step with LoRA in the layers and on the head, by our trainer and by PEFT.

    ours   documents packed into pieces of a few rows, our head loss; on a GPU recorded and replayed
    peer   one padded batch through PEFT's layers as they come, all logits, plain cross-entropy

Ours fuses GPT-2's spelled-out activation, as its feature pass does; a piece has fewer tokens than the batch.
"""

import gc
from types import SimpleNamespace

import pandas as pd
import torch
from torch import Tensor

from chameleon_lite import HeadWeight, LoraHead, load_backbone
from chameleon_lite.fast.head_loss_torch import forget_buffers
from chameleon_lite.fast.layers import RecordedLayers, layer_pass
from chameleon_lite.lora import add_lora, lora_parameters
from chameleon_lite.processes import Processes
from chameleon_lite.settings import TrainSettings
from chameleon_lite.train import Common, Member, step
from chameleon_lite.train_layers import LiveStates, WithLayers

from . import baselines
from .bench import Bench
from .measure import agreement, outcome, split
from .workload import RANK

PLAIN = "PEFT LoRA, plain loss"
# moves nothing and leaves the gradients, to be compared
NO_OPTIMISER = SimpleNamespace(step=lambda: None, zero_grad=lambda set_to_none: None)


def lora_step(bench: Bench, rows: int) -> dict:
    """B10: forward and backward of one step, ours by `train.step` on live states."""
    work = LoraStep(bench, rows)
    gates = work.gates()
    times = bench.race({"ours": work.ours, PLAIN: work.plain}, 5 if bench.gpu else 3)
    body = bench.seconds(work.layers_alone)
    peaks = {"ours": work.our_peak(), PLAIN: bench.peak(work.plain)}
    samples = {"time": times, "memory": pd.DataFrame([peaks])}
    workload = {"real tokens": int(work.table.lengths.sum()), "recorded": work.recorded}
    profile = split(times, "the layers, forward and backward", body, "the head")
    return {"samples": samples, "gates": gates, "workload": workload, "profile": profile}


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
        self.both.zero_grad()
        common = Common(self.live, self.weight, TrainSettings(), self.processes, {"both": NO_OPTIMISER})
        return step([Member("both", self.both, None, None, 0.0)], [(None, None)], self.rows, 1, common)

    def plain(self) -> Tensor:
        """The peer's; its padded batch lies on the device already. Sum of nats ()."""
        self.both.zero_grad()
        head, matrix = self.both.head, self.backbone.head.weight
        with torch.autocast(self.bench.device.type, torch.bfloat16, enabled=self.bench.gpu):
            hidden = self.backbone.hidden(self.ids, self.mask)  # (B, T, C)
            loss = baselines.plain_head_loss(hidden, self.labels, matrix, head.down, head.up)
        (loss / self.count).backward()
        return loss.detach()

    def layers_alone(self) -> None:
        """The layers' share of ours: the same pieces with a sum in the head's place."""
        self.both.zero_grad()
        for places in self.live.pieces(self.rows):
            self.live.batch(self.rows[places])[0].sum().backward()

    def our_peak(self) -> int:
        """Bytes of ours at its highest.

        A replay's activations lie in memory that the recording reserved, so that a step's own peak would show
        the head only. What a new recording reserves is counted in full, and the step's peak on top; or the
        recording's peak, should that be higher. The head's buffers, which a CPU reuses, are allocated anew.
        """
        forget_buffers(self.weight)
        if not self.recorded:
            return self.bench.peak(self.ours)
        self.both.zero_grad()
        self.live.close()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self.bench.device)

        def record() -> None:
            self.live.training_pass = layer_pass(self.backbone, self.table)

        recording = self.bench.peak(record)
        gc.collect()
        torch.cuda.empty_cache()
        reserved = torch.cuda.memory_reserved(self.bench.device) - before
        return max(recording, reserved + self.bench.peak(self.ours))

    def gates(self) -> list[dict]:
        """Summed loss and all gradients against each other; the backbone's arithmetic is the same."""
        ours, plain = (outcome(way, self.both.parameters(), self.count) for way in (self.ours, self.plain))
        return agreement(ours, plain, self.bench.limits)
