"""B4, B15 and the roofline: hidden states of real tokens against padded ones, and stages against the machine.

    roof = min(product rate, bandwidth × intensity)      both measured here, in the stage's number format

The roofline has each stage as a point: operations per second against operations per byte moved. Bytes are
those a stage cannot avoid: inputs read once, results written once. A stage far below the roof waits for
something that is neither arithmetic nor memory: launches, the interpreter, the tokenizer.
"""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chameleon_lite.backbones.formats import arithmetic
from chameleon_lite.fast.lloyd import closest
from chameleon_lite.states import ScoredStates, hidden_rows, hidden_states

from . import baselines
from .measure import Samples, gate, row, scaled, shown
from .rows_head import HeadWork
from .workload import LENGTH, Bench, short

PADDED_ROWS = 32  # rows per padded batch, as released


def feature_pass(bench: Bench) -> dict:
    """B4: all hidden states, on disk at the end, against the padded float32 pass that stores nothing."""
    rows = bench.size(cpu=32, gpu=2_048, quick=4)
    backbone, dtype, table = bench.backbone, bench.fast, bench.table(rows)
    ids, labels = baselines.padded_rows(table, LENGTH, bench.device)
    with tempfile.TemporaryDirectory() as folder:
        folders = (Path(folder) / str(i) for i in itertools.count())
        contenders = {
            "ours": lambda: hidden_states(backbone, table, dtype, next(folders), progress=False),
            "released way": lambda: baselines.padded_states(backbone, ids, PADDED_ROWS),
        }
        gap = _loss_gap(bench, table, contenders["ours"](), contenders["released way"](), labels)
        times = bench.race(contenders, warm_up=bench.gpu)
    sizes = {"rows": rows, "real tokens": int(table.lengths.sum()), "arithmetic": str(dtype)}
    with arithmetic(backbone, dtype):
        alone = bench.seconds(lambda: hidden_rows(backbone, table, np.argsort(table.lengths)))
    return row(
        "hidden states of a corpus",
        times.against({"released way": bench.goal(6, 12)}),
        [gap],
        limit=f"{rows * LENGTH / table.lengths.sum():.2f} (no padding) × the ratio of the product rates",
        workload=sizes | {f"rows/s, {name}": rows / times.median(name) for name in times},
        profile=times.split("backbone", alone, "storing and the rest"),
    )


def _loss_gap(bench: Bench, table, states, padded: list[Tensor], labels: Tensor) -> dict:
    """Mean next-token loss of the frozen head on our states against the padded float32 ones."""

    def nats(h: Tensor, target: Tensor) -> float:
        chunks = zip(h.split(512), target.split(512))
        return sum(F.cross_entropy(bench.backbone.head(a), b, reduction="sum").item() for a, b in chunks)

    scored, value, expected = ScoredStates(table, states, bench.device), 0.0, 0.0
    for rows in torch.arange(len(table)).split(PADDED_ROWS):
        h, target, _ = scored.batch(rows)
        value += nats(h.float(), target)
    for h, target in zip(padded, labels.split(PADDED_ROWS)):
        real = target != baselines.IGNORED
        expected += nats(h[real], target[real])
    # The states are stored in 16 bits whatever the arithmetic, so the 16-bit limit holds.
    return gate("mean loss against float32, nats", abs(value - expected) / int(table.n_scored.sum()), 2e-3)


def share_of_products(bench: Bench) -> dict:
    """B15: the operations per second of the feature pass, as a share of one large product's."""
    rows = bench.size(cpu=96, gpu=4_096, quick=24)
    backbone, dtype, table = bench.backbone, bench.fast, bench.table(rows)
    order, work = np.argsort(table.lengths), pass_operations(backbone, table.lengths)
    product, operations = _product(bench, bench.size(2_048, 32_768, 2_048), dtype)
    with arithmetic(backbone, dtype):
        times = bench.race({"ours": lambda: hidden_rows(backbone, table, order), "product": product})
    rate, peer = operations / times.median("product"), "the same operations at the product rate"
    pair = Samples({"ours": times["ours"], peer: scaled(times["product"], work / operations)})
    sizes = {"rows": rows, "tokens": int(table.lengths.sum()), "arithmetic": str(dtype)}
    return row(
        "feature pass as a share of the machine's product rate",
        pair.against({peer: bench.goal(0.5, 0.4)}),
        limit="1",
        workload=sizes | {"TFLOP/s pass": work / times.median() / 1e12, "TFLOP/s product": rate / 1e12},
        profile=times.split("products", work / rate, "attention, norms, activations, copies"),
    )


def _product(bench: Bench, rows: int, dtype: torch.dtype) -> tuple[Callable[[], Tensor], float]:
    """One large product as work, and its operations."""
    a = torch.randn(rows, 768, device=bench.device).to(dtype)
    b = torch.randn(768, 3_072, device=bench.device).to(dtype)
    return lambda: a @ b, 2 * rows * 768 * 3_072


def pass_operations(backbone, lengths: np.ndarray) -> float:
    """Operations of the blocks over documents of these lengths (N,): products with weights, attention."""
    config = backbone.lm.config
    layers, width = config.num_hidden_layers, config.hidden_size
    blocks = [p for name, p in backbone.body.named_parameters() if p.dim() == 2 and ".h." in f".{name}"]
    weights = sum(p.numel() for p in blocks)
    return float(2 * weights * lengths.sum() + 4 * layers * width * (lengths.astype(float) ** 2).sum())


def roofline(bench: Bench) -> dict:
    """The two rates and every stage's {stage, operations, bytes, seconds, format}."""
    x = torch.ones(bench.size(1 << 26, 1 << 29, 1 << 24), device=bench.device)
    y = torch.empty_like(x)  # a copy too large for any cache, read and written
    rates = {"bytes/s": 2 * x.numel() * 4 / bench.median(lambda: y.copy_(x))}
    for dtype in (bench.fast, torch.float32):
        product, operations = _product(bench, bench.size(2_048, 16_384, 1_024), dtype)
        rates[short(dtype)] = operations / bench.median(product)
    points = [_features(bench), _head(bench), _mean_embeddings(bench), _nearest(bench), _decode(bench)]
    return shown("stages under the roof", rates=rates, points=points)


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
    weights = sum(p.numel() for p in backbone.body.parameters())
    moved = size * (weights + tokens * backbone.width * layers * 16)
    return _point("hidden states", pass_operations(backbone, table.lengths), moved, seconds, bench.fast)


def _head(bench: Bench) -> dict:
    work = HeadWork(bench, tokens := bench.size(1_020, 8_160, 128))
    vocab, width, size = work.weight.padded, work.weight.width, bench.fast.itemsize
    moved = vocab * width * size + tokens * width * size + tokens * vocab * (2 * size + 4)
    operations = 2 * tokens * vocab * (width + 3 * len(work.down))
    return _point(
        "head, forward and backward", operations, moved, bench.median(work.step(work.ours)), bench.fast
    )


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
    moved = 4 * (n * 768 + k * 768 + 2 * n * k)
    return _point("nearest centroid", 2 * n * k * 768, moved, bench.median(lambda: closest(x, c)))


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
