"""B5, B6, B7 and B14: the adapted head's loss, forward and backward, and several heads read in one pass."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from chameleon_lite.batches import Arrangement
from chameleon_lite.errors import UserError
from chameleon_lite.fast.recorder import Recorder
from chameleon_lite.heads import HeadUpdate, LoraHead
from chameleon_lite.loss import HeadWeight, head_losses
from chameleon_lite.states import ScoredStates
from chameleon_lite.train import evaluate

from . import baselines
from .measure import (
    Comparison,
    Gate,
    Row,
    faster,
    host_seconds,
    interleaved,
    peak_bytes,
    relative_error,
    sample,
    seconds_of,
)
from .workload import Bench, head_inputs


class HeadWork:
    """One loss and its gradients of `down` (R, C) and `up` (V, R), done in different ways on the same numbers."""

    def __init__(self, bench: Bench, tokens: int) -> None:
        self.bench, self.tokens = bench, tokens
        self.h, self.target, self.down, self.up = head_inputs(bench, tokens)
        self.matrix = bench.backbone.head.weight.detach()  # (V, C) fp32
        self.weight = HeadWeight(self.matrix, dtype=bench.fast)
        self.exact = HeadWeight(self.matrix, dtype=torch.float32)
        self.compact = self.h.to(bench.fast)  # states lie on disk in 16 bits: the machine's format

    def _loss(self, h: Tensor, target: Tensor, weight: HeadWeight) -> Tensor:
        update = HeadUpdate(self.down.unsqueeze(0), self.up.unsqueeze(0))
        return head_losses(h, target, weight, [update])[0]

    def ours(self) -> Tensor:
        return self._loss(self.compact, self.target, self.weight)

    def ours_exact(self) -> Tensor:
        return self._loss(self.h, self.target, self.exact)

    def replayed(self) -> Callable[[], Tensor]:
        """The step as training does it on a GPU: recorded once, then states and targets copied in and replayed."""
        recorder = Recorder(self.bench.device)

        def work(h: Tensor, target: Tensor) -> Tensor:
            loss = self._loss(h, target, self.weight)
            self.down.grad, self.up.grad = torch.autograd.grad(loss, (self.down, self.up))
            return loss.detach()

        return lambda: recorder("a step", [self.compact, self.target], work)

    def released(self) -> Tensor:
        return baselines.plain_head_loss(self.h, self.target, self.matrix, self.down, self.up)

    def autocast(self, loss: Callable = baselines.plain_head_loss) -> Tensor:
        """The released loss under autocast."""
        with torch.autocast(self.bench.device.type, torch.bfloat16):
            return loss(self.h, self.target, self.matrix, self.down, self.up)

    def compiled(self) -> Callable[[], Tensor]:
        """The released loss under autocast, through torch.compile."""
        return partial(self.autocast, torch.compile(baselines.plain_head_loss))

    def fused(self, loss) -> Callable[[], Tensor]:
        """A fused linear cross-entropy on the concatenation, in this machine's 16-bit format."""
        matrix = self.matrix.to(self.bench.fast)

        def work() -> Tensor:
            return loss(*baselines.concatenated(self.compact, matrix, self.down, self.up), self.target)

        return work

    def gradients(self, loss: Callable[[], Tensor]) -> tuple[float, Tensor]:
        """The summed loss and both gradients, flat."""
        value = loss()
        grads = torch.autograd.grad(value, (self.down, self.up))
        return float(value.detach()), torch.cat([g.flatten() for g in grads])

    def step(self, loss: Callable[[], Tensor]) -> Callable[[], None]:
        """Forward and backward as timed: gradients land where an optimiser reads them."""

        def work() -> None:
            self.down.grad = self.up.grad = None
            loss().backward()

        return work

    def gates(self) -> list[Gate]:
        """Ours against float32, in this machine's format and in float32 itself."""
        value, expected = self.gradients(self.released)
        out = []
        for label, loss, limits in (
            (str(self.bench.fast), self.ours, (self.bench.gate, self.bench.loss_gate)),
            ("torch.float32", self.ours_exact, (1e-5, 1e-5)),
        ):
            found, gradient = self.gradients(loss)
            out.append(Gate(f"gradient, relative ({label})", relative_error(gradient, expected), limits[0]))
            out.append(Gate(f"mean loss, nats ({label})", abs(found - value) / self.tokens, limits[1]))
        return out

    def replay_gate(self, replayed: Callable[[], Tensor]) -> Gate:
        """Gradients that a replay leaves where an optimiser reads them, against the plain step's."""
        plain = self.gradients(self.ours)[1]
        for _ in range(3):  # plainly, recorded, replayed
            replayed()
        found = torch.cat([self.down.grad.flatten(), self.up.grad.flatten()])
        return Gate("gradient, relative (replayed)", relative_error(found, plain), 1e-5)


def head_time(bench: Bench) -> Row:
    """B5: forward and backward of the head against all logits in float32 and against torch.compile."""
    work = HeadWork(bench, bench.size(cpu=1_020, gpu=8_160, quick=256))
    matrix, compact = work.weight.weight, work.h.to(work.weight.weight.dtype)
    plainly, gates = work.step(work.ours), work.gates()
    contenders = {
        "ours": plainly,
        "released way": work.step(work.released),
        "released way, bfloat16 autocast": work.step(work.autocast),
        "one product": lambda: compact @ matrix.T,
    }
    goals = {"released way": bench.goal(3, 9), "torch.compile": bench.goal(None, 1.6)}
    absent = {}
    if bench.gpu:
        contenders |= {"ours": work.replayed(), "ours, launch by launch": plainly}
        gates.append(work.replay_gate(contenders["ours"]))
        try:
            contenders["torch.compile"] = work.step(work.compiled())
            contenders["torch.compile"]()
        except Exception as error:  # a compiler that is missing must not cost the row
            del contenders["torch.compile"]
            absent["torch.compile"] = f"could not compile here: {type(error).__name__}"
    times = interleaved(contenders, bench.device, bench.repetitions())
    ours, product = times["ours"], times["one product"]
    rows = [
        faster(times, name, goals.get(name))
        for name in contenders
        if name not in ("ours", "one product", "ours, launch by launch")
    ]
    rows += [Comparison(name, "time", ours, None, goals.get(name), why) for name, why in absent.items()]
    row = Row(
        "B5",
        "head, forward and backward",
        rows,
        gates,
        limit=f"one product: {product.median * 1e3:.2f} ms, {product.median / ours.median:.0%} of ours",
        workload={
            "tokens": work.tokens,
            "width": matrix.shape[1],
            "vocabulary": work.weight.vocab,
            "rank": 4,
            "arithmetic": str(bench.fast),
        },
        profile={
            "one product h·Wᵀ": product.median,
            "softmax, update and gradients": ours.median - product.median,
        },
    )
    if bench.gpu:
        row.workload["ms launch by launch"] = times["ours, launch by launch"].median * 1e3
    if row.status == "missed" and bench.gpu:
        host = sample([host_seconds(contenders["ours"], bench.device) for _ in range(bench.repetitions())])
        row.reason = launching(ours.median, product.median, host.median)
    return row


def launching(ours: float, product: float, host: float) -> str:
    """Why a GPU's step takes longer than its product: from seconds of the step, the product and the host's part."""
    return (
        f"one product h·Wᵀ is {product / ours:.0%} of ours; the host takes {host * 1e3:.2f} ms to tell the GPU "
        f"what a step of {ours * 1e3:.2f} ms is"
    )


def head_memory(bench: Bench) -> Row:
    """B6: the most memory the loss and its gradients take beyond W's resident copy."""
    work = HeadWork(bench, bench.size(cpu=8_160, gpu=8_160, quick=1_020))
    found = {}
    for name, loss in {"ours": work.ours, "released way": work.released}.items():
        step = work.step(loss)
        step() if bench.gpu else None  # gradients' own memory is asked for once; a CPU keeps buffers: count them
        found[name] = sample([float(peak_bytes(step, bench.device))], "bytes")
    value, expected = work.gradients(work.released)
    loss, gradient = work.gradients(work.ours)
    return Row(
        "B6",
        "the head's peak memory beyond W, launch by launch",
        [Comparison("released way", "memory", found["ours"], found["released way"], bench.goal(20, 8))],
        [
            Gate("gradient, relative", relative_error(gradient, expected), bench.gate),
            Gate("mean loss, nats", abs(loss - value) / work.tokens, bench.loss_gate),
        ],
        limit="one chunk's logits",
        workload={"tokens": work.tokens, "vocabulary": work.weight.vocab},
    )


def head_kernels(bench: Bench) -> Row:
    """B7: against fused linear cross-entropies on [h, z] and [W | up], wherever they are installed."""
    work = HeadWork(bench, bench.size(cpu=1_020, gpu=8_160, quick=256))
    contenders, absent = {"ours": work.step(work.ours)}, {}
    for name, make in {
        "Liger": baselines.liger_loss,
        "F.linear_cross_entropy": baselines.torch_fused_loss,
    }.items():
        try:
            if name == "Liger" and not bench.gpu:
                raise UserError("runs on GPUs only")
            loss = work.step(work.fused(make()))
            loss()
        except UserError as error:
            absent[name] = str(error)
        except RuntimeError as error:
            absent[name] = f"did not run here: {str(error).splitlines()[0][:80]}"
        else:
            contenders[name] = loss
    row = Row(
        "B7",
        "head, against fused kernels on the concatenation",
        limit="three products become one",
        workload={"tokens": work.tokens, "arithmetic": str(bench.fast)},
    )
    row.gates = work.gates()
    times = interleaved(contenders, bench.device, bench.repetitions())
    goal = bench.goal(2, 4)
    row.comparisons = [faster(times, name, goal) for name in times if name != "ours"]
    row.comparisons += [Comparison(n, "time", times["ours"], None, goal, why) for n, why in absent.items()]
    product = seconds_of(lambda: work.compact @ work.weight.weight.T, bench.device)
    rest = max(0.0, times["ours"].median - product)
    row.profile = {"one product h·Wᵀ": product, "softmax, update and gradients": rest}
    return row


def shared_pass(bench: Bench) -> Row:
    """B14: three heads read in one pass over the states, against three passes."""
    documents, each = bench.size(24, 400, 8), 100
    scored = made_up_states(bench, documents, each)
    weight = HeadWeight(bench.backbone.head.weight, dtype=bench.fast)
    heads = [(_drawn_head(bench, seed), None) for seed in range(3)]
    order = Arrangement(torch.arange(documents))

    def together() -> Tensor:
        return evaluate(heads, scored, order, weight, rows=32)

    def apart() -> Tensor:
        return torch.cat([evaluate([head], scored, order, weight, rows=32) for head in heads])

    tokens = documents * each
    gap = float((together() - apart()).sum(1).abs().max()) / tokens
    times = interleaved({"ours": together, "a pass each": apart}, bench.device, bench.repetitions())
    return Row(
        "B14",
        "three heads evaluated in one pass",
        [faster(times, "a pass each", bench.goal(2.3, 2))],
        [Gate("mean loss between the two, nats", gap, 5e-4)],
        limit="3",
        workload={"tokens": tokens, "heads": len(heads), "arithmetic": str(bench.fast)},
        profile=_shared_profile(bench, scored, weight, times["ours"].median),
    )


def made_up_states(bench: Bench, documents: int, each: int) -> ScoredStates:
    """Resident states of `documents` documents with `each` scored tokens, without a backbone's pass."""
    h, target, _, _ = head_inputs(bench, documents * each)
    counts = np.full(documents, each)
    return ScoredStates.of_pairs(h.to(torch.float16), target.cpu().numpy(), counts, bench.device)


def _drawn_head(bench: Bench, seed: int) -> LoraHead:
    head = LoraHead(bench.backbone.width, bench.backbone.vocab, 4)
    with torch.no_grad():
        head.up.normal_(std=0.02, generator=torch.Generator().manual_seed(seed))
    return head.to(bench.device)


def _shared_profile(bench: Bench, scored: ScoredStates, weight: HeadWeight, total: float) -> dict[str, float]:
    h = scored.batch(torch.arange(min(32, scored.documents)))[0].to(weight.weight.dtype)
    product = seconds_of(lambda: h @ weight.weight.T, bench.device, 3) * scored.total / len(h)
    return {"the shared product h·Wᵀ": product, "updates, softmax and the rest": max(0.0, total - product)}
