"""B10: a training step with LoRA in the layers and on the head, as our trainer takes it and as PEFT is used.

    ours   documents packed into pieces of a few rows, our head loss; on a GPU one piece is recorded and replayed
    peer   one padded batch through PEFT's layers as they come, all logits, plain cross-entropy

Ours fuses GPT-2's spelled-out activation, as its feature pass does; a piece of ours holds fewer tokens than the batch.
"""

import gc

import torch

from chameleon_lite.batches import Arrangement
from chameleon_lite.fast.head_loss_torch import forget_buffers
from chameleon_lite.fast.recorded_layers import RecordedLayers
from chameleon_lite.heads import LoraHead
from chameleon_lite.loss import HeadWeight
from chameleon_lite.train_layers import Layered, Texts, gradients, step_layers

from . import baselines
from .measure import Comparison, Gate, Row, interleaved, peak_bytes, relative_error, sample, seconds_of
from .workload import Bench, random_table, row_lengths

PLAIN = "PEFT LoRA, plain loss"


def lora_step(bench: Bench) -> Row:
    """B10: forward and backward of one step, ours by the functions of training/uncached.py."""
    work = LoraStep(bench, bench.size(4, 32, 2))
    contenders = {"ours": work.ours, PLAIN: work.plain}
    gates = work.gates()
    times = interleaved(contenders, bench.device, bench.repetitions(5 if bench.gpu else 3))
    body = seconds_of(work.layers_alone, bench.device)
    peaks = {
        name: sample([float(size)], "bytes")
        for name, size in (("ours", work.our_peak()), (PLAIN, peak_bytes(work.plain, bench.device)))
    }
    tokens = int(work.table.lengths.sum())
    row = Row(
        "B10",
        "a step with LoRA in the layers",
        [
            Comparison(PLAIN, "time", times["ours"], times[PLAIN], bench.goal(1.1, 1.3)),
            Comparison(PLAIN, "memory", peaks["ours"], peaks[PLAIN], bench.goal(3, 3)),
        ],
        gates,
        limit="the layers' products for the real tokens",
        workload={
            "rows": len(work.table),
            "padded length": int(work.table.lengths.max()),
            "real tokens": tokens,
            "packed tokens": sum(p.ids.numel() for p in work.pieces),
            "pieces": len(work.pieces),
            "recorded": isinstance(work.layers.run, RecordedLayers),
            "backbone arithmetic": work.label,
            "tok/s": tokens / times["ours"].median,
        },
        profile={"the layers, forward and backward": body, "the head": max(0.0, times["ours"].median - body)},
    )
    if row.status == "missed":
        row.reason = (
            f"the layers take {body:.2f} s of {times['ours'].median:.2f} s, in {len(work.pieces)} pieces of "
            f"at most {max(p.ids.numel() for p in work.pieces):,} tokens, whose activations are kept until "
            "the way back"
        )
    return row


class LoraStep:
    """One step's forward and backward through a backbone with LoRA and a low-rank head, by both ways."""

    def __init__(self, bench: Bench, rows: int) -> None:
        from chameleon_lite.backbone import load_backbone
        from chameleon_lite.lora import add_lora

        self.bench, self.label = bench, "bfloat16 autocast" if bench.gpu else "float32"
        self.backbone = load_backbone(bench.model, device=bench.device)  # its own: LoRA stays in it
        add_lora(self.backbone, rank=4)
        self.table = random_table(row_lengths(rows), self.backbone.vocab, self.backbone.pad_id)
        self.ids, self.labels = baselines.padded_rows(self.table, int(self.table.lengths.max()), bench.device)
        self.mask = self.table.padded(range(rows))[1].to(bench.device)
        self.count = int(self.table.n_scored.sum())
        head, generator = (
            LoraHead(self.backbone.width, self.backbone.vocab, 4),
            torch.Generator().manual_seed(0),
        )
        for factor in head.parameters():
            factor.data.normal_(std=0.02, generator=generator)
        weight = HeadWeight(self.backbone.head.weight, dtype=bench.fast)
        self.both = Layered(self.backbone, head.to(bench.device), weight)
        self.texts = Texts(self.table, lambda number: Arrangement(torch.arange(rows)), rows)
        self.layers = step_layers(self.backbone, self.table)
        self.pieces = self.layers.pieces(self.table, torch.arange(rows))

    def ours(self) -> torch.Tensor:
        """A step's gradients as in training, cutting its pieces included. Sum of nats ()."""
        self._forget()
        order = self.texts.orders(0)
        return gradients(self.both, self.layers, self.texts, order, order.order, self.count)

    def plain(self) -> torch.Tensor:
        """The peer's; its padded batch lies on the device already. Sum of nats ()."""
        self._forget()
        head = self.both.head
        with torch.autocast(self.bench.device.type, torch.bfloat16, enabled=self.bench.gpu):
            hidden = self.backbone.hidden(self.ids, self.mask)  # (B, T, C)
            loss = baselines.plain_head_loss(
                hidden, self.labels, self.backbone.head.weight, head.down, head.up
            )
        (loss / self.count).backward()
        return loss.detach()

    def layers_alone(self) -> None:
        """The layers' share of ours: the same pieces with a sum in the head's place."""
        self._forget()
        for piece in self.pieces:
            self.layers.states(piece).sum().backward()

    def our_peak(self) -> int:
        """Bytes of ours at its highest.

        A replay takes its activations from memory that the recording set apart, so that the peak of a step alone
        would show the head only. What a fresh recording keeps is counted in full, as reserved, and the step's own
        peak on top; or the recording's, should that be higher. The head's buffers, which a CPU keeps from step to
        step, are made anew.
        """
        forget_buffers(self.both.weight)
        if not isinstance(self.layers.run, RecordedLayers):
            return peak_bytes(self.ours, self.bench.device)
        self._forget()
        self.layers.release()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self.bench.device)

        def record() -> None:
            self.layers = step_layers(self.backbone, self.table)

        recording = peak_bytes(record, self.bench.device)
        gc.collect()
        torch.cuda.empty_cache()
        kept = torch.cuda.memory_reserved(self.bench.device) - before
        return max(recording, kept + peak_bytes(self.ours, self.bench.device))

    def gates(self) -> list[Gate]:
        """Summed loss and all gradients against each other; the backbone's arithmetic is the same on both sides."""
        pairs = []
        for step in (self.ours, self.plain):
            loss = float(step()) / self.count
            pairs.append((loss, torch.cat([p.grad.flatten().float() for p in self.both.parameters()])))
        (ours, g), (plain, expected) = pairs
        return [
            Gate("mean loss, nats", abs(ours - plain), self.bench.loss_gate),
            Gate("gradient, relative", relative_error(g, expected), self.bench.gate),
        ]

    def _forget(self) -> None:
        for p in self.both.parameters():
            p.grad = None
