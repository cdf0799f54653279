"""What was tried beside what was kept: small timings, most of which say why something is *not* done here.

Each entry: the idea, seconds with it and without it, and whether it was kept on this kind of machine.
"""

from collections.abc import Callable

import numpy as np
import torch

from chameleon_lite.backbone import in_format
from chameleon_lite.fast import lloyd
from chameleon_lite.fast.aligned_head import AlignedHead
from chameleon_lite.loss import HeadWeight
from chameleon_lite.states import arithmetic

from . import baselines
from .measure import interleaved
from .rows_head import HeadWork
from .workload import Bench, random_table


def tried(bench: Bench) -> dict:
    """All entries, {idea, with, without, gain, kept, why}."""
    found = [
        _logsumexp(bench),
        _odd_vocabulary(bench),
        _mask(bench),
        _own_clusters(bench),
        _low_bits(bench),
        _sixteen_decode(bench),
    ]
    if bench.gpu:
        found += [_recorded(bench), _aligned_decode(bench)]
    return {"what": "tried, kept or not", "status": "shown", "tried": found}


def _entry(bench: Bench, idea: str, kept: bool, why: str, using: Callable, instead: Callable) -> dict:
    times = interleaved({"with": using, "without": instead}, bench.device, bench.repetitions())
    return {
        "idea": idea,
        "with": times["with"].median,
        "without": times["without"].median,
        "gain": times["without"].median / times["with"].median,
        "kept": kept,
        "why": why,
    }


def _logsumexp(bench: Bench) -> dict:
    x = torch.randn(bench.size(256, 2_040, 64), bench.backbone.vocab, device=bench.device)
    return _entry(
        bench,
        "logsumexp instead of softmax",
        False,
        "the gradient needs the probabilities anyway",
        lambda: torch.logsumexp(x, 1),
        lambda: torch.softmax(x, 1),
    )


def _odd_vocabulary(bench: Bench) -> dict:
    weight = HeadWeight(bench.backbone.head.weight, dtype=bench.fast)
    odd = weight.weight[: weight.vocab].clone()
    h = torch.randn(bench.size(256, 8_160, 64), weight.width, device=bench.device).to(bench.fast)
    return _entry(
        bench,
        "vocabulary padded to a multiple of 64",
        True,
        "matrix units want aligned columns",
        lambda: h @ weight.weight.T,
        lambda: h @ odd.T,
    )


@torch.inference_mode()
def _mask(bench: Bench) -> dict:
    backbone = bench.backbone
    table = random_table(np.full(bench.size(8, 128, 4), 96), backbone.vocab, backbone.pad_id)
    ids, mask = (x.to(bench.device) for x in table.padded(range(len(table))))
    with arithmetic(backbone, bench.fast):
        return _entry(
            bench,
            "no attention mask in the feature pass",
            True,
            "padding stands on the right, where no real token looks",
            lambda: backbone.hidden(ids),
            lambda: backbone.hidden(ids, mask),
        )


def _own_clusters(bench: Bench) -> dict:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(bench.size(8_192, 23_767, 1_024), 256, generator=g)
    start = x[: bench.size(256, 742, 32)].clone()
    own, own_start = x.to(bench.device), start.to(bench.device)

    return _entry(
        bench,
        "own k-means instead of scikit-learn on the host",
        True,
        "where there are many rows and clusters: scikit-learn repeats itself on one thread only",
        lambda: lloyd.lloyd(own, own_start, 2, -1.0),
        lambda: baselines.kmeans_by_scikit_learn(x, start, 2),
    )


def _low_bits(bench: Bench) -> dict:
    """Labels that 16-bit distances would move are the reason; the time is what they would save."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(bench.size(8_192, 23_767, 1_024), 768, generator=g).to(bench.device)
    c = x[: bench.size(256, 742, 32)] * 0.1
    low, low_c = x.to(bench.fast), c.to(bench.fast)
    norms, half = x.square().sum(1), -0.5 * c.square().sum(1)

    def low_labels():
        return ((low @ low_c.T).float() + half).argmax(1)

    moved = float((low_labels() != lloyd.assign(x, c, norms)[0]).float().mean())
    return _entry(
        bench,
        "16-bit distances in k-means",
        False,
        f"{moved:.1%} of the rows would change their cluster",
        low_labels,
        lambda: lloyd.assign(x, c, norms)[0],
    )


def _recorded(bench: Bench) -> dict:
    """A small step, where the host is what is waited for; row B5 has a large one."""
    work = HeadWork(bench, 64)
    return _entry(
        bench,
        "a step of the head recorded once and replayed",
        True,
        "64 positions: the host describes a step more slowly than the GPU does it",
        work.replayed(),
        work.step(work.ours),
    )


@torch.inference_mode()
def _aligned_decode(bench: Bench) -> dict:
    with in_format(bench.backbone.lm, torch.bfloat16):
        head = bench.backbone.lm.get_output_embeddings()
        h = torch.randn(64, 1, bench.backbone.width, device=bench.device, dtype=torch.bfloat16)
        aligned = AlignedHead(head)
        return _entry(
            bench,
            "decoding with a copy of W padded to a multiple of 64",
            True,
            "one token of 64 rows: nothing hides the product, the next token waits for it",
            lambda: aligned(h),
            lambda: head(h),
        )


@torch.inference_mode()
def _sixteen_decode(bench: Bench) -> dict:
    backbone = bench.backbone
    table = random_table(np.full(bench.size(16, 64, 4), 1 + 1), backbone.vocab, backbone.pad_id)
    ids = table.padded(range(len(table)))[0].to(bench.device)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        with in_format(backbone.lm, dtype):
            work = {"it": lambda: backbone.lm(input_ids=ids, logits_to_keep=1)}
            found[dtype] = interleaved(work, bench.device, bench.repetitions())["it"].median
    exact, low = found.values()
    return {
        "idea": "bfloat16 weights while decoding",
        "with": low,
        "without": exact,
        "gain": exact / low,
        "kept": bench.gpu,
        "why": "tokens must be those of float32 on a CPU; a GPU serves in 16 bits",
    }
