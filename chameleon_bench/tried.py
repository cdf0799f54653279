"""What was tried beside what is in use: small timings, most of which say why something is *not* done here.

Each entry: the idea, seconds with it and without it, and whether it is in use on this kind of machine.
"""

import copy
from collections.abc import Callable

import numpy as np
import torch

from chameleon_lite.backbones.formats import arithmetic, in_format
from chameleon_lite.fast import lloyd
from chameleon_lite.fast.aligned_head import AlignedHead

from . import baselines
from .measure import shown
from .rows_head import HeadWork
from .workload import Bench


def tried(bench: Bench) -> dict:
    """All entries, {idea, with, without, gain, kept, why}."""
    ideas = [_logsumexp, _odd_vocabulary, _mask, _own_clusters, _low_bits, _sixteen_decode]
    ideas += [_recorded, _aligned_decode] if bench.gpu else []
    return shown("tried, kept or not", tried=[idea(bench) for idea in ideas])


def _entry(bench: Bench, idea: str, kept: bool, why: str, using: Callable, instead: Callable) -> dict:
    times = bench.race({"with": using, "without": instead})
    seconds = {name: times.median(name) for name in ("with", "without")}
    gain = seconds["without"] / seconds["with"]
    return {"idea": idea, **seconds, "gain": gain, "kept": kept, "why": why}


def _logsumexp(bench: Bench) -> dict:
    x = torch.randn(bench.size(256, 2_040, 64), bench.backbone.vocab, device=bench.device)
    idea, why = "logsumexp instead of softmax", "the gradient needs the probabilities anyway"
    return _entry(bench, idea, False, why, lambda: torch.logsumexp(x, 1), lambda: torch.softmax(x, 1))


def _odd_vocabulary(bench: Bench) -> dict:
    weight = bench.head_weight()
    odd = weight.weight[: weight.vocab].clone()
    h = torch.randn(bench.size(256, 8_160, 64), weight.width, device=bench.device).to(bench.fast)
    idea, why = "vocabulary padded to a multiple of 64", "matrix units want aligned columns"
    return _entry(bench, idea, True, why, lambda: h @ weight.weight.T, lambda: h @ odd.T)


@torch.inference_mode()
def _mask(bench: Bench) -> dict:
    backbone, table = bench.backbone, bench.table(np.full(bench.size(8, 128, 4), 96))
    ids, mask = (x.to(bench.device) for x in table.padded(range(len(table))))
    idea = "no attention mask in the feature pass"
    why = "padding stands on the right, where no real token looks"
    with arithmetic(backbone, bench.fast):
        return _entry(
            bench, idea, True, why, lambda: backbone.hidden(ids), lambda: backbone.hidden(ids, mask)
        )


def _own_clusters(bench: Bench) -> dict:
    x = torch.randn(bench.size(8_192, 23_767, 1_024), 256, generator=torch.Generator().manual_seed(0))
    start = x[: bench.size(256, 742, 32)].clone()
    here, start_here = x.to(bench.device), start.to(bench.device)
    return _entry(
        bench,
        "own k-means instead of scikit-learn on the host",
        True,
        "where there are many rows and clusters: scikit-learn repeats itself on one thread only",
        lambda: lloyd.lloyd(here, start_here, 2, -1.0),
        lambda: baselines.kmeans_by_scikit_learn(x, start, 2),
    )


def _low_bits(bench: Bench) -> dict:
    """Labels that 16-bit distances would change are the reason; the time is what they would save."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(bench.size(8_192, 23_767, 1_024), 768, generator=g).to(bench.device)
    c = x[: bench.size(256, 742, 32)] * 0.1
    low, low_c = x.to(bench.fast), c.to(bench.fast)
    norms, half = x.square().sum(1), -0.5 * c.square().sum(1)

    def labels():
        return lloyd.assign(x, c, norms)[0]

    def low_labels():
        return ((low @ low_c.T).float() + half).argmax(1)

    why = f"{float((low_labels() != labels()).float().mean()):.1%} of the rows would change their cluster"
    return _entry(bench, "16-bit distances in k-means", False, why, low_labels, labels)


def _recorded(bench: Bench) -> dict:
    """A small step, where the GPU waits for the host; row B5 has a large one."""
    work = HeadWork(bench, 64)
    idea = "a step of the head recorded once and replayed"
    why = "64 positions: the host describes a step more slowly than the GPU does it"
    return _entry(bench, idea, True, why, work.replayed(), work.step(work.ours))


@torch.inference_mode()
def _aligned_decode(bench: Bench) -> dict:
    h = torch.randn(64, 1, bench.backbone.width, device=bench.device, dtype=torch.bfloat16)
    idea = "decoding with a copy of W padded to a multiple of 64"
    why = "one token of 64 rows: nothing hides the product, the next token waits for it"
    with in_format(bench.backbone.lm, torch.bfloat16):
        head = bench.backbone.lm.get_output_embeddings()
        aligned = AlignedHead(head)
        return _entry(bench, idea, True, why, lambda: aligned(h), lambda: head(h))


@torch.inference_mode()
def _sixteen_decode(bench: Bench) -> dict:
    table = bench.table(np.full(bench.size(16, 64, 4), 2))
    ids = table.padded(range(len(table)))[0].to(bench.device)
    exact = bench.backbone.lm
    low = copy.deepcopy(exact).to(torch.bfloat16)
    return _entry(
        bench,
        "bfloat16 weights while decoding",
        bench.gpu,
        "tokens must be those of float32 on a CPU; a GPU serves in 16 bits",
        lambda: low(input_ids=ids, logits_to_keep=1),
        lambda: exact(input_ids=ids, logits_to_keep=1),
    )
