"""Each stage as a point under the machine's roof: operations a second against operations a byte moved.

    roof = min(product rate, bandwidth × intensity)      both measured here, in the stage's own number format

Bytes are those a stage cannot avoid: inputs read once, results written once. A stage far below the roof waits for
something that is neither arithmetic nor memory: launches, the interpreter, the tokenizer.
"""

import numpy as np
import torch
import torch.nn.functional as F

from chameleon_lite.fast.lloyd import assign
from chameleon_lite.heads import HeadUpdate
from chameleon_lite.loss import HeadWeight, head_losses
from chameleon_lite.states import arithmetic, hidden_rows

from .measure import median_seconds, sample, seconds_of
from .rows_states import pass_operations
from .workload import Bench, head_inputs, random_table, row_lengths


def roofline(bench: Bench) -> dict:
    """The two rates and every stage's {stage, operations, bytes, seconds, format}."""
    rates = {"bytes/s": _bandwidth(bench)}
    for dtype in (bench.fast, torch.float32):
        rates[str(dtype).removeprefix("torch.")] = _rate(bench, dtype)
    points = [_features(bench), _head(bench), _mean_embeddings(bench), _nearest(bench), _decode(bench)]
    return {"what": "stages under the roof", "status": "shown", "rates": rates, "points": points}


def _rate(bench: Bench, dtype: torch.dtype) -> float:
    """Operations a second of one large product."""
    rows = bench.size(2_048, 16_384, 1_024)
    a = torch.randn(rows, 768, device=bench.device).to(dtype)
    b = torch.randn(768, 3_072, device=bench.device).to(dtype)
    return 2 * rows * 768 * 3_072 / median_seconds(lambda: a @ b, bench.device)


def _bandwidth(bench: Bench) -> float:
    """Bytes a second of a copy too large for any cache, read and written."""
    x = torch.ones(bench.size(1 << 26, 1 << 29, 1 << 24), device=bench.device)
    y = torch.empty_like(x)
    return 2 * x.numel() * 4 / median_seconds(lambda: y.copy_(x), bench.device)


def _point(stage: str, operations: float, moved: float, seconds: float, dtype) -> dict:
    return {
        "stage": stage,
        "operations": float(operations),
        "bytes": float(moved),
        "seconds": float(seconds),
        "format": str(dtype).removeprefix("torch."),
    }


def _features(bench: Bench) -> dict:
    backbone = bench.backbone
    table = random_table(row_lengths(bench.size(24, 2_048, 4)), backbone.vocab, backbone.pad_id)
    order = np.argsort(table.lengths)
    with arithmetic(backbone, bench.fast):
        passes = [seconds_of(lambda: hidden_rows(backbone, table, order), bench.device) for _ in range(3)]
    tokens, layers = int(table.lengths.sum()), backbone.lm.config.num_hidden_layers
    weights = sum(p.numel() for p in backbone.body.parameters()) * bench.fast.itemsize
    # a block's activations, written and read
    moved = weights + tokens * backbone.width * bench.fast.itemsize * layers * 16
    operations = pass_operations(backbone, table.lengths)
    return _point("hidden states", operations, moved, sample(passes).median, bench.fast)


def _head(bench: Bench) -> dict:
    tokens = bench.size(1_020, 8_160, 128)
    h, target, down, up = head_inputs(bench, tokens)
    weight = HeadWeight(bench.backbone.head.weight, dtype=bench.fast)
    h = h.to(bench.fast)

    def step() -> None:
        down.grad = up.grad = None
        head_losses(h, target, weight, [HeadUpdate(down[None], up[None])]).sum().backward()

    vocab, width, size = weight.padded, weight.width, bench.fast.itemsize
    moved = vocab * width * size + tokens * width * size + tokens * vocab * (2 * size + 4)
    operations = 2 * tokens * vocab * (width + 3 * len(down))
    return _point(
        "head, forward and backward", operations, moved, median_seconds(step, bench.device), bench.fast
    )


def _mean_embeddings(bench: Bench) -> dict:
    width, tokens = bench.backbone.width, bench.size(200_000, 2_000_000, 20_000)
    ids = torch.randint(bench.backbone.vocab, (tokens,), device=bench.device)
    offsets = torch.arange(0, tokens, 100, device=bench.device)
    matrix = bench.backbone.embedding.detach()
    seconds = median_seconds(lambda: F.embedding_bag(ids, matrix, offsets, mode="mean"), bench.device)
    return _point("mean embeddings", tokens * width, tokens * (4 * width + 8), seconds, torch.float32)


def _nearest(bench: Bench) -> dict:
    n, k = bench.size(23_767, 23_767, 2_000), bench.size(742, 742, 128)
    x, c = torch.randn(n, 768, device=bench.device), torch.randn(k, 768, device=bench.device)
    norms = x.square().sum(1)
    seconds = median_seconds(lambda: assign(x, c, norms), bench.device)
    moved = 4 * (n * 768 + k * 768 + 2 * n * k)
    return _point("nearest centroid", 2 * n * k * 768, moved, seconds, torch.float32)


@torch.no_grad()
def _decode(bench: Bench) -> dict:
    """One new token for each of several prompts, from the cache."""
    backbone, rows, past = bench.backbone, bench.size(16, 64, 4), 64
    ids = torch.randint(backbone.vocab - 1, (rows, past + 1), device=bench.device)
    cache = backbone.lm(input_ids=ids[:, :past], use_cache=True).past_key_values

    def step() -> None:
        backbone.lm(input_ids=ids[:, past:], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.crop(-1)

    seconds = median_seconds(step, bench.device)
    weights, config = backbone.parameters, backbone.lm.config
    moved = 4 * weights + 2 * 4 * rows * past * config.num_hidden_layers * config.hidden_size
    return _point("decoding, one token a row", 2 * rows * weights, moved, seconds, torch.float32)
