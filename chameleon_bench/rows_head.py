"""B5, B6, B7 and B14: the adapted head's loss, forward and backward, and several heads read in one pass."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chameleon_lite.batches import Arrangement
from chameleon_lite.fast.recorder import Recorder
from chameleon_lite.heads import HeadUpdate, LoraHead
from chameleon_lite.loss import HeadWeight, head_losses
from chameleon_lite.states import ScoredStates
from chameleon_lite.train import evaluate

from . import baselines
from .measure import Samples, gate, relative_error, row, runnable
from .workload import RANK, Bench

AUTOCAST, COMPILED = "released way, bfloat16 autocast", "torch.compile"
BY_LAUNCH = "ours, launch by launch"


class HeadWork:
    """One loss and its gradients of `down` (R, C) and `up` (V, R), in different ways on the same numbers."""

    def __init__(self, bench: Bench, tokens: int) -> None:
        self.bench, self.tokens = bench, tokens
        self.h, self.target, self.down, self.up = bench.inputs(tokens)
        self.matrix = bench.backbone.head.weight.detach()  # (V, C) fp32
        self.weight = bench.head_weight()
        self.compact = self.h.to(bench.fast)  # states lie on disk in 16 bits: the machine's format

    def _loss(self, h: Tensor, target: Tensor, weight: HeadWeight) -> Tensor:
        update = HeadUpdate(self.down.unsqueeze(0), self.up.unsqueeze(0))
        return head_losses(h, target, weight, [update])[0]

    def ours(self) -> Tensor:
        return self._loss(self.compact, self.target, self.weight)

    def replayed(self) -> Callable[[], Tensor]:
        """The step as in training on a GPU: recorded once, then states and targets copied in and replayed."""
        recorder = Recorder(self.bench.device)

        def work(h: Tensor, target: Tensor) -> Tensor:
            loss = self._loss(h, target, self.weight)
            self.down.grad, self.up.grad = torch.autograd.grad(loss, (self.down, self.up))
            return loss.detach()

        return lambda: recorder("a step", [self.compact, self.target], work)

    def released(self) -> Tensor:
        return baselines.plain_head_loss(self.h, self.target, self.matrix, self.down, self.up)

    def autocast(self, loss: Callable = baselines.plain_head_loss) -> Tensor:
        """The released loss, or its compiled form, under autocast."""
        with torch.autocast(self.bench.device.type, torch.bfloat16):
            return loss(self.h, self.target, self.matrix, self.down, self.up)

    def fused(self, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], None]:
        """A step of a fused linear cross-entropy (h, weight, target) on the concatenation, in 16 bits."""
        matrix = self.matrix.to(self.bench.fast)
        joined = partial(baselines.concatenated, self.compact, matrix, self.down, self.up)
        return self.step(lambda: loss(*joined(), self.target))

    def product(self) -> Tensor:
        """The one large product h·Wᵀ (M, V)."""
        return self.compact @ self.weight.weight.T

    def gradients(self, loss: Callable[[], Tensor]) -> tuple[float, Tensor]:
        """The summed loss and both gradients, flat."""
        value = loss()
        grads = torch.autograd.grad(value, (self.down, self.up))
        return float(value.detach()), torch.cat([g.flatten() for g in grads])

    def step(self, loss: Callable[[], Tensor]) -> Callable[[], None]:
        """Forward and backward as timed: gradients end up where an optimiser reads them."""

        def work() -> None:
            self.down.grad = self.up.grad = None
            loss().backward()

        return work

    def gates(self, loss: Callable[[], Tensor], limits: tuple[float, float], label: str = "") -> list[dict]:
        """Gradient and mean loss against the released way's in float32."""
        expected_loss, expected = self.gradients(self.released)
        value, gradient = self.gradients(loss)
        return [
            gate(f"gradient, relative{label}", relative_error(gradient, expected), limits[0]),
            gate(f"mean loss, nats{label}", abs(value - expected_loss) / self.tokens, limits[1]),
        ]

    def both_gates(self) -> list[dict]:
        """Ours in this machine's format and in float32 itself."""
        exact = partial(self._loss, self.h, self.target, self.bench.head_weight(torch.float32))
        here = self.gates(self.ours, self.bench.limits, f" ({self.bench.fast})")
        return here + self.gates(exact, (1e-5, 1e-5), " (torch.float32)")

    def replay_gate(self, replayed: Callable[[], Tensor]) -> dict:
        """Gradients that a replay leaves where an optimiser reads them, against the plain step's."""
        plain = self.gradients(self.ours)[1]
        for _ in range(3):  # plain, recorded, replayed
            replayed()
        gradient = torch.cat([self.down.grad.flatten(), self.up.grad.flatten()])
        return gate("gradient, relative (replayed)", relative_error(gradient, plain), 1e-5)


def head_time(bench: Bench) -> dict:
    """B5: forward and backward of the head against all logits in float32 and against torch.compile."""
    work = HeadWork(bench, bench.size(cpu=1_020, gpu=8_160, quick=256))
    gates, ours = work.both_gates(), work.step(work.ours)
    contenders = {"ours": ours, "released way": work.step(work.released), AUTOCAST: work.step(work.autocast)}
    contenders["one product"] = work.product
    absent: dict[str, str] = {}
    if bench.gpu:
        contenders |= {"ours": work.replayed(), BY_LAUNCH: ours}
        gates.append(work.replay_gate(contenders["ours"]))
        compiled, absent = runnable(
            {COMPILED: lambda: work.step(partial(work.autocast, torch.compile(baselines.plain_head_loss)))}
        )
        contenders |= compiled
    times = bench.race(contenders)
    goals = {"released way": bench.goal(3, 9), AUTOCAST: None, COMPILED: bench.goal(None, 1.6)}
    product, total = times.median("one product"), times.median()
    workload = {"tokens": work.tokens, "width": work.weight.width, "vocabulary": work.weight.vocab}
    workload |= {"rank": RANK, "arithmetic": str(bench.fast)}
    if bench.gpu:
        workload["ms launch by launch"] = times.median(BY_LAUNCH) * 1e3
    return row(
        "head, forward and backward",
        times.against(goals, absent=absent),
        gates,
        limit=f"one product: {product * 1e3:.2f} ms, {product / total:.0%} of ours",
        workload=workload,
        profile={"one product h·Wᵀ": product, "softmax, update and gradients": total - product},
    )


def head_memory(bench: Bench) -> dict:
    """B6: the most memory the loss and its gradients take beyond W's resident copy."""
    work = HeadWork(bench, bench.size(cpu=8_160, gpu=8_160, quick=1_020))
    peaks = Samples()
    for name, loss in {"ours": work.ours, "released way": work.released}.items():
        step = work.step(loss)
        if bench.gpu:
            step()  # so that memory allocated once is not counted; on a CPU the buffers that stay are
        peaks[name] = bench.peak(step)
    return row(
        "the head's peak memory beyond W, launch by launch",
        peaks.against({"released way": bench.goal(20, 8)}, "memory"),
        work.gates(work.ours, bench.limits),
        limit="one chunk's logits",
        workload={"tokens": work.tokens, "vocabulary": work.weight.vocab},
    )


def head_kernels(bench: Bench) -> dict:
    """B7: against fused linear cross-entropies on [h, z] and [W | up], wherever they are installed."""
    work = HeadWork(bench, bench.size(cpu=1_020, gpu=8_160, quick=256))

    def liger() -> Callable[[], None]:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        fused = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        return work.fused(lambda h, weight, target: fused(weight, h, target))

    def of_torch() -> Callable[[], None]:
        return work.fused(partial(F.linear_cross_entropy, reduction="sum"))

    makers = {"Liger": liger, "F.linear_cross_entropy": of_torch}
    peers, absent = runnable(makers)
    times = bench.race({"ours": work.step(work.ours), **peers})
    return row(
        "head, against fused kernels on the concatenation",
        times.against(dict.fromkeys(makers, bench.goal(2, 4)), absent=absent),
        work.both_gates(),
        limit="three products become one",
        workload={"tokens": work.tokens, "arithmetic": str(bench.fast)},
        profile=times.split("one product h·Wᵀ", bench.seconds(work.product), "softmax, update and gradients"),
    )


def shared_pass(bench: Bench) -> dict:
    """B14: three heads read in one pass over the states, against three passes."""
    documents, each = bench.size(24, 400, 8), 100
    h, target, _, _ = bench.inputs(documents * each)
    counts = np.full(documents, each)
    scored = ScoredStates.of_pairs(h.to(torch.float16), target.cpu().numpy(), counts, bench.device)
    weight = bench.head_weight()
    order, heads = Arrangement(torch.arange(documents)), []
    for seed in range(3):
        head = LoraHead(bench.backbone.width, bench.backbone.vocab, RANK)
        head.up.data.normal_(std=0.02, generator=torch.Generator().manual_seed(seed))
        heads.append((head.to(bench.device), None))

    def together() -> Tensor:
        return evaluate(heads, scored, order, weight, rows=32)

    def apart() -> Tensor:
        return torch.cat([evaluate([head], scored, order, weight, rows=32) for head in heads])

    gap = float((together() - apart()).sum(1).abs().max()) / scored.total
    times = bench.race({"ours": together, "a pass each": apart})
    part = scored.batch(order.steps(32)[0])[0].to(bench.fast)
    product = bench.seconds(lambda: part @ weight.weight.T, 3) * scored.total / len(part)
    return row(
        "three heads evaluated in one pass",
        times.against({"a pass each": bench.goal(2.3, 2)}),
        [gate("mean loss between the two, nats", gap, 5e-4)],
        limit="3",
        workload={"tokens": scored.total, "heads": len(heads), "arithmetic": str(bench.fast)},
        profile=times.split("the shared product h·Wᵀ", product, "updates, softmax and the rest"),
    )
