"""B4 and B15: hidden states of real tokens, against the padded pass and against the machine's product rate."""

import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from chameleon_lite.states import ScoredStates, arithmetic, hidden_rows, hidden_states

from . import baselines
from .measure import Comparison, Gate, Row, faster, interleaved, scaled, seconds_of
from .workload import LENGTH, Bench, random_table, row_lengths

PADDED_ROWS = 32  # rows a padded batch, as released


def feature_pass(bench: Bench) -> Row:
    """B4: all hidden states, on disk at the end, against the padded float32 pass that keeps nothing."""
    rows = bench.size(cpu=32, gpu=2_048, quick=4)
    backbone, dtype = bench.backbone, bench.fast
    table = random_table(row_lengths(rows), backbone.vocab, backbone.pad_id)
    ids, labels = baselines.padded_rows(table, LENGTH, bench.device)
    with tempfile.TemporaryDirectory() as folder:
        passes = iter(range(10_000))

        def ours():
            return hidden_states(backbone, table, dtype, Path(folder) / str(next(passes)), progress=False)

        def released():
            return baselines.padded_states(backbone, ids, PADDED_ROWS)

        gate = _loss_gap(bench, table, ours(), released(), labels)
        times = interleaved(
            {"ours": ours, "released way": released}, bench.device, bench.repetitions(), warm_up=bench.gpu
        )
        with arithmetic(backbone, dtype):
            alone = seconds_of(lambda: hidden_rows(backbone, table, np.argsort(table.lengths)), bench.device)
    return Row(
        "B4",
        "hidden states of a corpus",
        [faster(times, "released way", bench.goal(6, 12))],
        [gate],
        limit=f"{rows * LENGTH / table.lengths.sum():.2f} (no padding) × the ratio of the product rates",
        workload={
            "rows": rows,
            "real tokens": int(table.lengths.sum()),
            "padded slots": rows * LENGTH,
            "arithmetic": str(dtype),
            "rows/s": rows / times["ours"].median,
            "rows/s released": rows / times["released way"].median,
        },
        profile={"backbone": alone, "storing and the rest": max(0.0, times["ours"].median - alone)},
    )


def _loss_gap(bench: Bench, table, states, padded, labels) -> Gate:
    """Mean next-token loss of the frozen head on our states against the padded float32 ones."""
    head, device = bench.backbone.head, bench.device
    ours, count = ScoredStates(table, states, device), int(table.n_scored.sum())
    found = expected = 0.0
    for rows in torch.arange(len(table)).split(PADDED_ROWS):
        h, target, _ = ours.batch(rows)
        found += sum(
            F.cross_entropy(head(a.float()), b, reduction="sum").item()
            for a, b in zip(h.split(512), target.split(512))
        )
    for h, target in zip(padded, labels.split(PADDED_ROWS)):
        keep = target != baselines.IGNORED
        pairs = zip(h[keep].split(512), target[keep].split(512))
        expected += sum(F.cross_entropy(head(a), b, reduction="sum").item() for a, b in pairs)
    # The states are kept in 16 bits whatever the arithmetic, so the 16-bit limit holds.
    return Gate("mean loss against float32, nats", abs(found - expected) / count, 2e-3)


def share_of_products(bench: Bench) -> Row:
    """B15: the operations a second of the feature pass, as a share of what one large product reaches here."""
    rows = bench.size(cpu=96, gpu=4_096, quick=24)
    backbone, dtype = bench.backbone, bench.fast
    table = random_table(row_lengths(rows), backbone.vocab, backbone.pad_id)
    order, work = np.argsort(table.lengths), pass_operations(backbone, table.lengths)
    a = torch.randn(bench.size(2_048, 32_768, 2_048), 768, device=bench.device).to(dtype)
    b = torch.randn(768, 3_072, device=bench.device).to(dtype)
    product = 2 * a.shape[0] * a.shape[1] * b.shape[1]
    with arithmetic(backbone, dtype):
        times = interleaved(
            {"pass": lambda: hidden_rows(backbone, table, order), "product": lambda: a @ b},
            bench.device,
            bench.repetitions(),
        )
    rate, peer = product / times["product"].median, "the same operations at the product rate"
    ideal = scaled(times["product"], work / product)
    return Row(
        "B15",
        "feature pass as a share of the machine's product rate",
        [Comparison(peer, "time", times["pass"], ideal, bench.goal(0.5, 0.4))],
        limit="1",
        workload={
            "rows": rows,
            "tokens": int(table.lengths.sum()),
            "arithmetic": str(dtype),
            "TFLOP/s pass": work / times["pass"].median / 1e12,
            "TFLOP/s product": rate / 1e12,
            "product": f"{tuple(a.shape)} × {tuple(b.shape)}",
        },
        profile={
            "products": work / rate,
            "attention, norms, activations, copies": times["pass"].median - work / rate,
        },
    )


def pass_operations(backbone, lengths: np.ndarray) -> float:
    """Floating-point operations of the blocks over documents of these lengths: products with weights, attention."""
    config = backbone.lm.config
    layers, width = config.num_hidden_layers, config.hidden_size
    weights = sum(
        p.numel() for name, p in backbone.body.named_parameters() if p.dim() == 2 and ".h." in f".{name}"
    )
    return float(2 * weights * lengths.sum() + 4 * layers * width * (lengths.astype(float) ** 2).sum())
