"""Each stage as a point under the machine's roof: operations per second against operations per byte moved.

    roof = min(product rate, bandwidth × intensity)      both measured here, in the stage's number format

Bytes are those a stage cannot avoid: inputs read once, results written once. A stage far below the roof waits for
something that is neither arithmetic nor memory: launches, the interpreter, the tokenizer.
"""

import numpy as np
import torch
import torch.nn.functional as F

from chameleon_lite.backbones.formats import arithmetic
from chameleon_lite.fast.lloyd import assign
from chameleon_lite.states import hidden_rows

from .measure import shown
from .rows_head import HeadWork
from .rows_states import pass_operations
from .workload import Bench, short


def roofline(bench: Bench) -> dict:
    """The two rates and every stage's {stage, operations, bytes, seconds, format}."""
    rates = {"bytes/s": _bandwidth(bench)}
    rates |= {short(dtype): _rate(bench, dtype) for dtype in (bench.fast, torch.float32)}
    points = [_features(bench), _head(bench), _mean_embeddings(bench), _nearest(bench), _decode(bench)]
    return shown("stages under the roof", rates=rates, points=points)


def _rate(bench: Bench, dtype: torch.dtype) -> float:
    """Operations per second of one large product."""
    a = torch.randn(rows := bench.size(2_048, 16_384, 1_024), 768, device=bench.device).to(dtype)
    b = torch.randn(768, 3_072, device=bench.device).to(dtype)
    return 2 * rows * 768 * 3_072 / bench.median(lambda: a @ b)


def _bandwidth(bench: Bench) -> float:
    """Bytes per second of a copy too large for any cache, read and written."""
    x = torch.ones(bench.size(1 << 26, 1 << 29, 1 << 24), device=bench.device)
    y = torch.empty_like(x)
    return 2 * x.numel() * 4 / bench.median(lambda: y.copy_(x))


def _point(stage: str, operations: float, moved: float, seconds: float, dtype=torch.float32) -> dict:
    numbers = {"operations": float(operations), "bytes": float(moved), "seconds": float(seconds)}
    return {"stage": stage, **numbers, "format": short(dtype)}


def _features(bench: Bench) -> dict:
    backbone, table, size = bench.backbone, bench.table(bench.size(24, 2_048, 4)), bench.fast.itemsize
    order = np.argsort(table.lengths)
    with arithmetic(backbone, bench.fast):
        seconds = bench.race({"ours": lambda: hidden_rows(backbone, table, order)}, 3, warm_up=False).median()
    tokens, layers = int(table.lengths.sum()), backbone.lm.config.num_hidden_layers
    # the weights once, and 16 activations per token and block, written and read
    moved = size * (
        sum(p.numel() for p in backbone.body.parameters()) + tokens * backbone.width * layers * 16
    )
    return _point("hidden states", pass_operations(backbone, table.lengths), moved, seconds, bench.fast)


def _head(bench: Bench) -> dict:
    work = HeadWork(bench, tokens := bench.size(1_020, 8_160, 128))
    vocab, width, size = work.weight.padded, work.weight.width, bench.fast.itemsize
    moved = vocab * width * size + tokens * width * size + tokens * vocab * (2 * size + 4)
    operations = 2 * tokens * vocab * (width + 3 * len(work.down))
    seconds = bench.median(work.step(work.ours))
    return _point("head, forward and backward", operations, moved, seconds, bench.fast)


def _mean_embeddings(bench: Bench) -> dict:
    width, tokens = bench.backbone.width, bench.size(200_000, 2_000_000, 20_000)
    ids = torch.randint(bench.backbone.vocab, (tokens,), device=bench.device)
    offsets = torch.arange(0, tokens, 100, device=bench.device)
    matrix = bench.backbone.embedding.detach()
    seconds = bench.median(lambda: F.embedding_bag(ids, matrix, offsets, mode="mean"))
    return _point("mean embeddings", tokens * width, tokens * (4 * width + 8), seconds)


def _nearest(bench: Bench) -> dict:
    n, k = bench.size(23_767, 23_767, 2_000), bench.size(742, 742, 128)
    x, c = torch.randn(n, 768, device=bench.device), torch.randn(k, 768, device=bench.device)
    norms = x.square().sum(1)
    moved = 4 * (n * 768 + k * 768 + 2 * n * k)
    return _point("nearest centroid", 2 * n * k * 768, moved, bench.median(lambda: assign(x, c, norms)))


@torch.no_grad()
def _decode(bench: Bench) -> dict:
    """One new token for each of several prompts, from the cache."""
    backbone, rows, past = bench.backbone, bench.size(16, 64, 4), 64
    ids = torch.randint(backbone.vocab - 1, (rows, past + 1), device=bench.device)
    cache = backbone.lm(input_ids=ids[:, :past], use_cache=True).past_key_values

    def step() -> None:
        backbone.lm(input_ids=ids[:, past:], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.crop(-1)

    weights, config = backbone.parameters, backbone.lm.config
    moved = 4 * weights + 2 * 4 * rows * past * config.num_hidden_layers * config.hidden_size
    return _point("decoding, one token a row", 2 * rows * weights, moved, bench.median(step))
