"""B1, B3, B4, B15 and the roofline: text to vectors, clusters and hidden states, and stages against the machine.

    roof = min(product rate, bandwidth × intensity)      both measured here, in the stage's number format

The roofline has each stage as a point: operations per second against operations per byte moved. Bytes are
those a stage cannot avoid: inputs read once, results written once. A stage far below the roof waits for
something that is neither arithmetic nor memory: launches, the interpreter, the tokenizer.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chameleon_lite import Arrangement, Backbone, Document, TokenTable, evaluate, head_losses, tokenise
from chameleon_lite.backbones.formats import arithmetic
from chameleon_lite.backbones.stored import stored
from chameleon_lite.cluster import nearest_centroid
from chameleon_lite.embed import mean_embeddings, normalise
from chameleon_lite.fast.lloyd import closest, lloyd
from chameleon_lite.states import ScoredStates, hidden_rows, hidden_states, read_at_once

from . import baselines
from .bench import Bench
from .measure import gate, relative_error, split
from .rows_head import HeadWork
from .workload import LENGTH, short, texts, trained_tokenizer

RELEASED, SKLEARN = "released way", "scikit-learn on the host"
PADDED_ROWS = 32  # rows per padded batch, as released


def prepare(bench: Bench, rows: int) -> dict:
    """B1: tokenising and mean embeddings, batched and flat, against one row at a time."""
    words, tokenizer = texts(rows), trained_tokenizer()
    documents = [Document(str(i), text) for i, text in enumerate(words)]
    g = torch.Generator().manual_seed(0)
    embedding = torch.randn(len(tokenizer), 768, generator=g).to(bench.device)
    positions = torch.randn(1_024, 768, generator=g).to(bench.device)
    tokens = partial(tokenise, documents, tokenizer, max_length=LENGTH, prefix_tokens=1, min_scored=1)
    vectors = partial(mean_embeddings, weight=embedding, span="padded", length=LENGTH)
    released = partial(baselines.prepare_one_by_one, words, tokenizer, embedding, positions, LENGTH)
    contenders = {
        "ours": lambda: vectors(tokens()),
        RELEASED: released,
        "tokenizer called": lambda: tokenizer(words, add_special_tokens=False)["input_ids"],
        "tokenizer alone": lambda: tokenizer.backend_tokenizer.encode_batch(words, add_special_tokens=False),
    }
    error = relative_error(contenders["ours"](), released()[1])
    times, table = bench.race(contenders), tokens()
    gates, workload = [gate("mean embeddings, relative", error, 1e-5)], {"tokens": int(table.lengths.sum())}
    stages = {"tokenise": tokens, "mean embedding": partial(vectors, table)}
    profile = {name: bench.seconds(stage) for name, stage in stages.items()}
    return {"samples": {"time": times}, "gates": gates, "workload": workload, "profile": profile}


def clusters(bench: Bench, rows: int, clusters: int, steps: int) -> dict:
    """B3: Lloyd steps from the same start, against the released loop and scikit-learn on the host."""
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(clusters, 768, generator=g)[torch.randint(clusters, (rows,), generator=g)]
    on_host = normalise(torch.randn(rows, 768, generator=g) + 0.6 * centres)
    start_on_host = on_host[torch.randperm(rows, generator=g)[:clusters]]
    x, start = on_host.to(bench.device), start_on_host.to(bench.device)
    contenders = {
        "ours": lambda: lloyd(x, start, steps, tolerance=-1.0),
        RELEASED: lambda: baselines.kmeans_by_loop(x, start, steps),
        SKLEARN: lambda: baselines.kmeans_by_scikit_learn(on_host, start_on_host, steps),
    }

    def inertia(name: str) -> float:
        return float(nearest_centroid(x, contenders[name]().to(x))[1].double().square().sum())

    apart = {peer: abs(inertia("ours") / inertia(peer) - 1) for peer in (RELEASED, SKLEARN)}
    gates = [gate(f"inertia against the {peer}, relative", gap, 1e-3) for peer, gap in apart.items()]
    times = bench.race(contenders, warm_up=False)
    step, nearest = float(times["ours"].median()) / steps, bench.median(lambda: closest(x, start))
    workload = {"width": 768, "s/step": step}
    profile = {"nearest centroids": nearest, "means and the host": max(0.0, step - nearest)}
    return {"samples": {"time": times}, "gates": gates, "workload": workload, "profile": profile}


def feature_pass(bench: Bench, rows: int) -> dict:
    """B4: all hidden states, on disk at the end, against the padded float32 pass that stores nothing."""
    backbone, dtype, table = bench.backbone, bench.fast, bench.table(rows)
    ids, labels = baselines.padded_rows(table, LENGTH, bench.device)
    parts = list(read_at_once(table.lengths, bench.device))
    with tempfile.TemporaryDirectory() as folder:
        folders = (Path(folder) / str(i) for i in itertools.count())
        contenders = {
            "ours": lambda: hidden_states(backbone, table, dtype, next(folders), progress=False),
            RELEASED: lambda: [backbone.hidden(part) for part in ids.split(PADDED_ROWS)],
        }
        gap = _loss_gap(bench, table, contenders["ours"](), contenders[RELEASED](), labels)
        times = bench.race(contenders, warm_up=bench.gpu)
        with arithmetic(backbone, dtype):
            alone = bench.median(lambda: [hidden_rows(backbone, table, part) for part in parts])
            ready = {part[0]: hidden_rows(backbone, table, part) for part in parts}
        given = (table.offsets, backbone.width, parts, lambda part: ready[part[0]], nullcontext(), False)
        writing = bench.median(lambda: stored(next(folders) / "states.npy", *given))
    # The states are stored in 16 bits whatever the arithmetic, so the 16-bit limit holds.
    gates = [gate("mean loss against float32, nats", gap, 2e-3)]
    workload = {
        "real tokens": int(table.lengths.sum()),
        "arithmetic": str(dtype),
        "s, writing alone": writing,
    }
    profile = split(times, "backbone", alone, "storing and the rest")
    return {"samples": {"time": times}, "gates": gates, "workload": workload, "profile": profile}


def _loss_gap(bench: Bench, table: TokenTable, states, padded: list[Tensor], labels: Tensor) -> float:
    """Mean loss of the frozen head on our states against that on padded float32 ones (B, T, C)."""
    weight, order = bench.head_weight(torch.float32), Arrangement(torch.arange(len(table)))
    scored = ScoredStates(table, states, bench.device)
    value = float(evaluate([(None, None)], scored, order, weight, rows=PADDED_ROWS).sum())
    pairs = zip(padded, labels.split(PADDED_ROWS))
    expected = sum(float(head_losses(h.flatten(0, 1), y.flatten(), weight, [None])) for h, y in pairs)
    return abs(value - expected) / scored.total


def share_of_products(bench: Bench, rows: int, product_rows: int) -> dict:
    """B15: the operations per second of the feature pass, as a share of one large product's."""
    backbone, dtype, table = bench.backbone, bench.fast, bench.table(rows)
    order, work = np.argsort(table.lengths), pass_operations(backbone, table.lengths)
    product, operations = _product(bench, product_rows, dtype)
    with arithmetic(backbone, dtype):
        times = bench.race({"ours": lambda: hidden_rows(backbone, table, order), "product": product})
    rate, peer = operations / float(times["product"].median()), "the same operations at the product rate"
    pair = times[["ours"]].assign(**{peer: times["product"] * work / operations})
    sizes = {"tokens": int(table.lengths.sum()), "arithmetic": str(dtype)}
    rates = {"TFLOP/s pass": work / float(times["ours"].median()) / 1e12, "TFLOP/s product": rate / 1e12}
    profile = split(times, "products", work / rate, "attention, norms, activations, copies")
    return {"samples": {"time": pair}, "workload": sizes | rates, "profile": profile}


def _product(bench: Bench, rows: int, dtype: torch.dtype) -> tuple[Callable[[], Tensor], float]:
    """One large product as work, and its operations."""
    a = torch.randn(rows, 768, device=bench.device).to(dtype)
    b = torch.randn(768, 3_072, device=bench.device).to(dtype)
    return lambda: a @ b, 2 * rows * 768 * 3_072


def pass_operations(backbone: Backbone, lengths: np.ndarray) -> float:
    """Operations of the blocks over documents of these lengths (N,): products with weights, attention."""
    config = backbone.lm.config
    layers, width = config.num_hidden_layers, config.hidden_size
    blocks = [p for name, p in backbone.body.named_parameters() if p.dim() == 2 and ".h." in f".{name}"]
    weights = sum(p.numel() for p in blocks)
    return float(2 * weights * lengths.sum() + 4 * layers * width * (lengths.astype(float) ** 2).sum())


def roofline(bench: Bench, copied: int, product_rows: int, **sizes: int) -> dict:
    """The two rates and every stage's {stage, operations, bytes, seconds, format}."""
    x = torch.ones(copied, device=bench.device)
    y = torch.empty_like(x)
    rates = {"bytes/s": 2 * 4 * copied / bench.median(lambda: y.copy_(x))}  # read and written
    for dtype in (bench.fast, torch.float32):
        product, operations = _product(bench, product_rows, dtype)
        rates[short(dtype)] = operations / bench.median(product)
    columns = ("stage", "operations", "bytes", "seconds", "format")
    return {"rates": rates, "points": [dict(zip(columns, point)) for point in _points(bench, **sizes)]}


def _points(bench: Bench, rows, tokens, embedded, vectors, centroids, prompts: int) -> Iterator[tuple]:
    """Each stage with its operations, the bytes it cannot avoid, seconds and number format."""
    model, exact, fast, item = bench.backbone, "float32", short(bench.fast), bench.fast.itemsize
    width, vocab, layers = model.width, model.vocab, model.lm.config.num_hidden_layers

    table = bench.table(rows)
    work, order = pass_operations(model, table.lengths), np.argsort(table.lengths)
    with arithmetic(model, bench.fast):
        times = bench.race({"ours": lambda: hidden_rows(model, table, order)}, 3, warm_up=False)
    # the weights once, and 16 activations per token and block, written and read
    moved = sum(p.numel() for p in model.body.parameters()) + int(table.lengths.sum()) * width * layers * 16
    yield "hidden states", work, item * moved, float(times["ours"].median()), fast

    head = HeadWork(bench, tokens)
    columns = head.weight.padded
    moved = columns * width * item + tokens * width * item + tokens * columns * (2 * item + 4)
    work = 2 * tokens * columns * (width + 3 * len(head.down))
    yield "head, forward and backward", work, moved, bench.median(head.step(head.ours)), fast

    ids, matrix = torch.randint(vocab, (embedded,), device=bench.device), model.embedding.detach()
    offsets = torch.arange(0, embedded, 100, device=bench.device)
    seconds = bench.median(lambda: F.embedding_bag(ids, matrix, offsets, mode="mean"))
    yield "mean embeddings", embedded * width, embedded * (4 * width + 8), seconds, exact

    x, c = (torch.randn(n, 768, device=bench.device) for n in (vectors, centroids))
    moved = 4 * (vectors * 768 + centroids * 768 + 2 * vectors * centroids)
    yield "nearest centroid", 2 * vectors * centroids * 768, moved, bench.median(lambda: closest(x, c)), exact

    past = 64  # and one new token for each of several prompts, from the cache
    ids = torch.randint(vocab - 1, (prompts, past + 1), device=bench.device)
    cache = model.lm(input_ids=ids[:, :past], use_cache=True).past_key_values

    def decode() -> None:
        model.lm(input_ids=ids[:, past:], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.crop(-1)

    moved = 4 * model.parameters + 2 * 4 * prompts * past * layers * model.lm.config.hidden_size
    yield "decoding, one token a row", 2 * prompts * model.parameters, moved, bench.median(decode), exact
