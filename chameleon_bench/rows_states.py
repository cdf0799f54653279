"""B4 and B15: hidden states of real tokens, against the padded pass and against the machine's product rate."""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chameleon_lite.backbones.formats import arithmetic
from chameleon_lite.states import ScoredStates, hidden_rows, hidden_states

from . import baselines
from .measure import Samples, gate, row, scaled
from .workload import LENGTH, Bench

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
    """B15: the operations per second of the feature pass, as a share of what one large product reaches here."""
    rows = bench.size(cpu=96, gpu=4_096, quick=24)
    backbone, dtype, table = bench.backbone, bench.fast, bench.table(rows)
    order, work = np.argsort(table.lengths), pass_operations(backbone, table.lengths)
    a = torch.randn(bench.size(2_048, 32_768, 2_048), 768, device=bench.device).to(dtype)
    b = torch.randn(768, 3_072, device=bench.device).to(dtype)
    product = 2 * a.shape[0] * a.shape[1] * b.shape[1]
    with arithmetic(backbone, dtype):
        times = bench.race({"ours": lambda: hidden_rows(backbone, table, order), "product": lambda: a @ b})
    rate, peer = product / times.median("product"), "the same operations at the product rate"
    pair = Samples({"ours": times["ours"], peer: scaled(times["product"], work / product)})
    sizes = {"rows": rows, "tokens": int(table.lengths.sum()), "arithmetic": str(dtype)}
    return row(
        "feature pass as a share of the machine's product rate",
        pair.against({peer: bench.goal(0.5, 0.4)}),
        limit="1",
        workload=sizes | {"TFLOP/s pass": work / times.median() / 1e12, "TFLOP/s product": rate / 1e12},
        profile=times.split("products", work / rate, "attention, norms, activations, copies"),
    )


def pass_operations(backbone, lengths: np.ndarray) -> float:
    """Floating-point operations of the blocks over documents of these lengths: products with weights, attention."""
    config = backbone.lm.config
    layers, width = config.num_hidden_layers, config.hidden_size
    blocks = [p for name, p in backbone.body.named_parameters() if p.dim() == 2 and ".h." in f".{name}"]
    weights = sum(p.numel() for p in blocks)
    return float(2 * weights * lengths.sum() + 4 * layers * width * (lengths.astype(float) ** 2).sum())
