"""B5, B6, B7 and B14: the adapted head's loss, forward and backward, and several heads read in one pass."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from chameleon_lite import Arrangement, HeadUpdate, HeadWeight, LoraHead, ScoredStates, evaluate, head_losses
from chameleon_lite.fast.recorder import Recorder

from . import baselines
from .bench import Bench
from .measure import agreement, gate, outcome, split
from .workload import RANK, random_inputs

CUT = "cut-cross-entropy"
COMPILED, CHUNK = "torch.compile", 2_040  # rows of a compiled chunk
PRODUCT, REST = "one product h·Wᵀ", "softmax, update and gradients"  # the stages of a profile


class HeadWork:
    """One loss and its gradients of `down` (R, C) and `up` (V, R), in different ways on the same numbers.

    ours       the package's loss in this machine's format
    released   with all logits, in float32; `autocast` for its products in bfloat16
    product    the one large product h·Wᵀ (M, V) alone
    """

    def __init__(self, bench: Bench, tokens: int) -> None:
        self.bench, self.tokens = bench, tokens
        sizes = bench.device, tokens, bench.backbone.width, bench.backbone.vocab
        self.h, self.target, self.down, self.up = random_inputs(*sizes)
        self.matrix = bench.backbone.head.weight.detach()  # (V, C) in float32
        self.weight = bench.head_weight()
        self.compact = self.h.to(bench.fast)  # states lie on disk in 16 bits: the machine's format
        self.ours = partial(self.loss, self.compact, self.target, self.weight)
        self.plain = self.h, self.target, self.matrix, self.down, self.up
        self.released = partial(baselines.plain_head_loss, *self.plain)

    def loss(self, h: Tensor, target: Tensor, weight: HeadWeight) -> Tensor:
        """The package's loss of states h (M, C), summed."""
        return head_losses(h, target, weight, [HeadUpdate(self.down[None], self.up[None])])[0]

    def autocast(self, loss: Callable[..., Tensor] = baselines.plain_head_loss) -> Tensor:
        """The released loss, or its compiled form, under autocast."""
        with torch.autocast(self.bench.device.type, torch.bfloat16):
            return loss(*self.plain)

    def compiled(self) -> dict[str, Callable[[], Tensor]]:
        """Steps of the released loss as torch.compile makes them; in chunks, W is rounded beforehand."""
        compiled = partial(torch.compile, baselines.plain_head_loss, dynamic=False)
        matrix = self.matrix.bfloat16()
        default, graphs = compiled(), compiled(mode="reduce-overhead")
        torch._dynamo.mark_static_address(self.matrix)  # as a module's weight, which no graph copies

        def in_chunks() -> Tensor:
            self.down.grad, self.up.grad, total = None, None, 0.0
            for h, target in zip(self.h.split(CHUNK), self.target.split(CHUNK)):
                with torch.autocast(self.bench.device.type, torch.bfloat16):
                    value = default(h, target, matrix, self.down, self.up)
                value.backward()  # so that one chunk's logits are held at a time
                total = total + value.detach()
            return total

        steps = {COMPILED: self.step(partial(self.autocast, default)), f"{COMPILED}, in chunks": in_chunks}
        return steps | {f"{COMPILED}, reduce-overhead": self.step(partial(self.autocast, graphs))}

    def product(self) -> Tensor:
        return self.compact @ self.weight.weight.T

    def step(self, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Forward and backward as timed: gradients end up where an optimiser reads them."""

        def work() -> Tensor:
            self.down.grad = self.up.grad = None
            (value := loss()).backward()
            return value.detach()

        return work

    def replayed(self) -> Callable[[], Tensor]:
        """The step as in training on a GPU: recorded once, then states and targets copied in and replayed."""
        recorder = Recorder(self.bench.device)

        def work(h: Tensor, target: Tensor) -> Tensor:
            loss = self.loss(h, target, self.weight)
            self.down.grad, self.up.grad = torch.autograd.grad(loss, (self.down, self.up))
            return loss.detach()

        return lambda: recorder("a step", [self.compact, self.target], work)

    def gates(self, replayed: Callable[[], Tensor] | None = None) -> list[dict]:
        """Ours in this machine's format and in float32 against the released way; a replay against ours."""
        exact = partial(self.loss, self.h, self.target, self.bench.head_weight(torch.float32))
        released, ours, exact = map(self.outcome, map(self.step, (self.released, self.ours, exact)))
        gates = agreement(ours, released, self.bench.limits, f" ({self.bench.fast})")
        gates += agreement(exact, released, (1e-5, 1e-5), " (torch.float32)")
        if replayed:
            *_, third = [self.outcome(replayed) for _ in range(3)]  # as it is, recorded, replayed
            gates += agreement(third, ours, (1e-5, 1e-5), " (replayed)")
        return gates

    def outcome(self, step: Callable[[], Tensor]) -> tuple[float, Tensor]:
        """Mean loss and gradients of a step."""
        return outcome(step, (self.down, self.up), self.tokens)


def head_time(bench: Bench, tokens: int) -> dict:
    """B5: forward and backward of the head against all logits in float32 and against torch.compile."""
    work = HeadWork(bench, tokens)
    replayed, ours = work.replayed() if bench.gpu else None, work.step(work.ours)
    gates = work.gates(replayed)
    contenders = {"ours": ours, "released way": work.step(work.released)}
    contenders |= {"released way, bfloat16 autocast": work.step(work.autocast), PRODUCT: work.product}
    if bench.gpu:
        contenders |= {"ours": replayed, "ours, launch by launch": ours}
        contenders |= (compiled := work.compiled())
    times = bench.race(contenders, optional=compiled if bench.gpu else ())
    workload = {"width": work.weight.width, "vocabulary": work.weight.vocab, "rank": RANK}
    workload |= {"arithmetic": str(bench.fast)}
    profile = split(times, PRODUCT, times[PRODUCT].median(), REST)
    return {"samples": {"time": times}, "gates": gates, "workload": workload, "profile": profile}


def head_memory(bench: Bench, tokens: int) -> dict:
    """B6: the most memory the loss and its gradients take beyond W's resident copy."""
    work, peaks = HeadWork(bench, tokens), {}
    for name, loss in {"ours": work.ours, "released way": work.released}.items():
        step = work.step(loss)
        if bench.gpu:
            step()  # so that memory allocated once is not counted; on a CPU the buffers that stay are
        peaks[name] = bench.peak(step)
    samples, workload = {"memory": pd.DataFrame([peaks])}, {"vocabulary": work.weight.vocab}
    return {"samples": samples, "gates": work.gates(), "workload": workload}


def head_kernels(bench: Bench, tokens: int) -> dict:
    """B7: against fused linear cross-entropies on [h, z] and [W | up], wherever they are installed."""
    work = HeadWork(bench, tokens)
    joined = partial(baselines.concatenated, work.compact, work.matrix.to(bench.fast), work.down, work.up)

    def liger() -> Tensor:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        h, weight = joined()
        return LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight, h, work.target)

    def of_torch() -> Tensor:
        return F.linear_cross_entropy(*joined(), work.target, reduction="sum")

    def cut(**how) -> Tensor:
        from cut_cross_entropy import linear_cross_entropy

        return linear_cross_entropy(*joined(), work.target, reduction="sum", **how)

    peers = {"Liger": liger, "F.linear_cross_entropy": of_torch, CUT: cut}
    peers |= {f"{CUT}, all gradients": partial(cut, filter_eps=None)}  # by default it leaves out the smallest
    peers |= {f"{CUT}, compiled": partial(cut, impl="torch_compile")}
    contenders = {name: work.step(loss) for name, loss in ({"ours": work.ours} | peers).items()}
    replayed = work.replayed() if bench.gpu else None
    gates, workload = work.gates(replayed), {"arithmetic": str(bench.fast)}
    if bench.gpu:
        contenders |= {"ours": replayed, "ours, launch by launch": contenders["ours"]}
    times = bench.race(contenders, optional=peers)
    profile = split(times, PRODUCT, bench.median(work.product), REST)
    return {"samples": {"time": times}, "gates": gates, "workload": workload, "profile": profile}


def shared_pass(bench: Bench, documents: int) -> dict:
    """B14: three heads read in one pass over the states, against three passes."""
    width, vocab, weight = bench.backbone.width, bench.backbone.vocab, bench.head_weight()
    h, target, _, _ = random_inputs(bench.device, documents * 100, width, vocab)
    counts = np.full(documents, 100)
    scored = ScoredStates.of_pairs(h.to(torch.float16), target.cpu().numpy(), counts, bench.device)
    order, heads = Arrangement(torch.arange(documents)), []
    for seed in range(3):
        head = LoraHead(width, vocab, RANK)
        head.up.data.normal_(std=0.02, generator=torch.Generator().manual_seed(seed))
        heads.append((head.to(bench.device), None))
    together = partial(evaluate, heads, scored, order, weight, rows=32)

    def apart() -> Tensor:
        return torch.cat([evaluate([head], scored, order, weight, rows=32) for head in heads])

    gap = float((together() - apart()).sum(1).abs().max()) / scored.total
    times = bench.race({"ours": together, "a pass each": apart})
    part = scored.batch(order.steps(32)[0])[0].to(bench.fast)
    product = bench.seconds(lambda: part @ weight.weight.T, 3) * scored.total / len(part)
    gates = [gate("mean loss between the two, nats", gap, 5e-4)]
    workload = {"tokens": scored.total, "heads": len(heads), "arithmetic": str(bench.fast)}
    profile = split(times, "the shared product h·Wᵀ", product, "updates, softmax and the rest")
    return {"samples": {"time": times}, "gates": gates, "workload": workload, "profile": profile}
