"""From the released way to ours, one idea at a time: the same rows, epochs and regimes, seconds after each step."""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from chameleon_lite.fast.recorded_steps import using
from chameleon_lite.fast.recorder import LIMIT, Recorder
from chameleon_lite.states import ScoredStates

from . import baselines
from .measure import sample, shown
from .rows_train import EPOCHS, LEARNING_RATE, REGIMES, Training, new_head
from .workload import Bench

IDEAS = {
    "released way": "backbone on the padding, in every epoch, for every regime",
    "states kept": "the frozen backbone runs once",
    "no padding": "length-sorted rows, only real targets",
    "16-bit products": "where the machine has units for them",
    "own head loss": "chunks, one large product, no logits kept",
    "regimes together": "one large product for all heads",
    "steps recorded": "one word from the host a step",
}


def ladder(bench: Bench) -> dict:
    """Each step's seconds for five epochs of two regimes: what is done once, plus epochs × what one epoch takes.

    One epoch is timed and multiplied, since epochs repeat the same work; from our own head loss on all epochs are timed
    as one, since the first of them records what the others replay. Median of the repetitions.
    """
    out, both, fast = [], EPOCHS * len(REGIMES), bench.fast
    with tempfile.TemporaryDirectory() as folder:
        work = _Steps(bench, Path(folder))
        exactly, fast_pass = partial(work.states, torch.float32), partial(work.states, fast)
        steps = {
            "released way": (None, partial(work.training.released, "LoRA", 1), both),
            "states kept": (work.padded_pass, work.padded_epoch, both),
            "no padding": (exactly, partial(work.real_epoch, torch.float32), both),
            "16-bit products": (fast_pass, partial(work.real_epoch, fast), both),
            "own head loss": (fast_pass, lambda: [work.fit([regime]) for regime in REGIMES], 1),
            "regimes together": (fast_pass, partial(work.fit, REGIMES), 1),
        }
        if bench.gpu:
            steps["steps recorded"] = (fast_pass, partial(work.fit, REGIMES, recordings=LIMIT), 1)
        for name, (once, epoch, times) in steps.items():
            first = _median(bench, once) if once else 0.0
            each = _median(bench, epoch)
            seconds = {"seconds": first + times * each, "once": first, "epoch": each, "epochs": times}
            out.append({"step": name, "idea": IDEAS[name], **seconds})
    table = work.training.table
    sizes = {"rows": len(table), "tokens": int(table.lengths.sum())}
    return shown("five epochs, two regimes, full-sequence loss", steps=out, workload=sizes)


def _median(bench: Bench, work: Callable) -> float:
    if bench.gpu:
        work()  # kernels are loaded and compiled
    return sample([bench.seconds(work) for _ in range(1 if bench.quick else 3)]).median


class _Steps:
    """The work of the ladder's steps: what is done once, and what in an epoch."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench, self.folders = bench, (folder / str(i) for i in itertools.count())
        self.training = Training(bench, bench.size(8, 512, 4), bench.size(8, 32, 4), last=False)
        self.backbone, self.weight = bench.backbone, bench.head_weight()
        self.head = new_head("LoRA", self.backbone.width, self.backbone.vocab, bench.device)
        self.optimiser = torch.optim.AdamW(self.head.parameters(), lr=LEARNING_RATE)

    def padded_pass(self) -> None:
        self.padded = baselines.padded_states(self.backbone, self.training.ids, self.training.step)

    def padded_epoch(self) -> None:
        for h, labels in zip(self.padded, self.training.labels.split(self.training.step)):
            self._step(h, labels, torch.float32)

    def states(self, dtype: torch.dtype) -> None:
        states = self.training.states(dtype, next(self.folders))
        self.data = ScoredStates(self.training.table, states, self.bench.device)

    def real_epoch(self, dtype: torch.dtype) -> None:
        for rows in torch.arange(len(self.data.counts)).split(self.training.step):
            h, target, _ = self.data.batch(rows)
            self._step(h.float(), target, dtype)

    def fit(self, regimes: Sequence[str], recordings: int = 0) -> None:
        """All epochs of some regimes, new heads included."""
        with using(Recorder(self.bench.device, limit=recordings)):
            self.training.heads(regimes, self.data, self.weight, EPOCHS)

    def _step(self, h: Tensor, target: Tensor, dtype: torch.dtype) -> None:
        with torch.autocast(self.bench.device.type, dtype, enabled=dtype != torch.float32):
            matrix = self.backbone.head.weight
            loss = baselines.plain_head_loss(h, target, matrix, self.head.down, self.head.up)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
