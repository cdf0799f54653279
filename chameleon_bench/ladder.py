"""From the released way to ours, one idea at a time: the same rows, epochs and regimes, seconds after each step."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from chameleon_lite.fast.recorder import LIMIT, Recorder
from chameleon_lite.loss import HeadWeight
from chameleon_lite.states import ScoredStates, hidden_states

from . import baselines
from .measure import sample, seconds_of
from .rows_train import EPOCHS, LEARNING_RATE, REGIMES, Training
from .workload import LENGTH, Bench

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
    work = _Steps(bench)
    both = EPOCHS * len(REGIMES)
    steps = {
        "released way": (None, work.released, both),
        "states kept": (work.padded_pass, work.padded_epoch, both),
        "no padding": (work.exact_pass, work.real_epoch, both),
        "16-bit products": (work.fast_pass, work.autocast_epoch, both),
        "own head loss": (work.fast_pass, work.heads_apart, 1),
        "regimes together": (work.fast_pass, work.heads_together, 1),
    }
    if bench.gpu:
        steps["steps recorded"] = (work.fast_pass, work.steps_recorded, 1)
    out = []
    with work:
        for name, (once, epoch, times) in steps.items():
            first = _median(bench, once) if once else 0.0
            each = _median(bench, epoch)
            seconds = {"seconds": first + times * each, "once": first, "epoch": each, "epochs": times}
            out.append({"step": name, "idea": IDEAS[name], **seconds})
    sizes = {"rows": len(work.table), "tokens": int(work.table.lengths.sum())}
    what = "five epochs, two regimes, full-sequence loss"
    return {"what": what, "status": "shown", "steps": out, "workload": sizes}


def _median(bench: Bench, work: Callable) -> float:
    if bench.gpu:
        work()  # kernels are loaded and compiled
    return sample([seconds_of(work, bench.device) for _ in range(1 if bench.quick else 3)]).median


class _Steps:
    """What each step of the ladder does once, and in an epoch."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.training = Training(bench, bench.size(8, 512, 4), bench.size(8, 32, 4), last=False)
        self.backbone, self.table = self.training.backbone, self.training.table
        self.ids, self.labels = baselines.padded_rows(self.table, LENGTH, bench.device)
        self.head = self.training.head("LoRA")
        self.optimiser = torch.optim.AdamW(self.head.parameters(), lr=LEARNING_RATE)
        self.weight = HeadWeight(self.backbone.head.weight, dtype=bench.fast)
        self.states: dict[torch.dtype, ScoredStates] = {}

    def __enter__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.passes = 0

    def __exit__(self, *_) -> None:
        self.folder.cleanup()

    def released(self) -> None:
        self.training.released_way(self.ids, self.labels, self.head).epoch()

    def padded_pass(self) -> None:
        self.padded = baselines.padded_states(self.backbone, self.ids, self.training.rows_a_step)

    def exact_pass(self) -> None:
        self._features(torch.float32)

    def fast_pass(self) -> None:
        self._features(self.bench.fast)

    def _features(self, dtype: torch.dtype) -> None:
        self.passes += 1
        folder = Path(self.folder.name) / str(self.passes)
        states = hidden_states(self.backbone, self.table, dtype, folder, progress=False)
        self.states[dtype] = ScoredStates(self.table, states, self.bench.device)

    def padded_epoch(self) -> None:
        for h, labels in zip(self.padded, self.labels.split(self.training.rows_a_step)):
            self._plain_step(h, labels)

    def real_epoch(self) -> None:
        for rows in self.training.order.steps(self.training.rows_a_step):
            h, target, _ = self.states[torch.float32].batch(rows)
            self._plain_step(h.float(), target)

    def autocast_epoch(self) -> None:
        for rows in self.training.order.steps(self.training.rows_a_step):
            h, target, _ = self.states[self.bench.fast].batch(rows)
            enabled = self.bench.fast != torch.float32
            with torch.autocast(self.bench.device.type, self.bench.fast, enabled=enabled):
                loss = self._plain_loss(h.float(), target)
            self._update(loss)

    def heads_apart(self) -> None:
        for regime in REGIMES:
            self._fit([regime], record=False)

    def heads_together(self) -> None:
        self._fit(REGIMES, record=False)

    def steps_recorded(self) -> None:
        self._fit(REGIMES, record=True)

    def _fit(self, regimes, record: bool) -> None:
        """All epochs of some regimes, heads drawn included."""
        recorder = Recorder(self.bench.device, limit=LIMIT if record else 0) if self.bench.gpu else None
        members, data = self.training.members(regimes), self.states[self.bench.fast]
        self.training.fit(members, data, self.weight, EPOCHS, recorder=recorder)

    def _plain_loss(self, h: Tensor, target: Tensor) -> Tensor:
        return baselines.plain_head_loss(h, target, self.backbone.head.weight, self.head.down, self.head.up)

    def _plain_step(self, h: Tensor, target: Tensor) -> None:
        self._update(self._plain_loss(h, target))

    def _update(self, loss: Tensor) -> None:
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
