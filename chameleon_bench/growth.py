"""How time and memory grow: seconds per stage against rows, clusters, vocabulary and rank, and each slope.

Random text and the `tiny` backbone: what is measured is how a stage grows, not how fast it is. A slope is of
log seconds over log size through the larger half of the sizes: 1 is proportional, 0 is flat.
"""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

from chameleon_lite import HeadUpdate, arrange, fit_clusters, load_backbone, mean_embeddings
from chameleon_lite.loss import HeadWeight, head_losses
from chameleon_lite.states import ScoredStates, hidden_states
from chameleon_lite.text import Document, tokenise

from .bench import Bench
from .workload import random_inputs, texts

RESOLUTION = 16 << 20  # bytes; less is lost in the system's accounts of a process, and is shown as this much
# Slopes one expects. Clusters are fitted on at most 100,000 rows; above that only assigning the others grows.
EXPECTED = {"tokenise": 1, "mean embedding": 1, "fit clusters": 0, "hidden states": 1, "arrange": 1}
EXPECTED |= {"draw a batch": 0, "feature memory": 0}


def growth(bench: Bench) -> dict:
    """All curves, each {stage, against, sizes, values, unit, slope, expected}."""
    some = slice(2 if bench.quick else None)
    counts, threads = (1_000, 10_000, 100_000, 1_000_000)[some], torch.get_num_threads()
    backbone = load_backbone("tiny", device=bench.device)
    torch.set_num_threads(1)  # the tiny model's operations are too small to share: threads would only wait
    try:
        found = [measure_rows(bench, backbone, n) for n in counts]
    finally:
        torch.set_num_threads(threads)
    curves = [_curve(stage, "rows", counts, [f[stage] for f in found], e) for stage, e in EXPECTED.items()]
    g, n = torch.Generator().manual_seed(0), 4_000 if bench.quick else 20_000
    x, clusters = torch.randn(n, 64, generator=g).to(bench.device), (16, 64, 256, 1_024, 4_096)[some]
    values = [bench.seconds(lambda k=k: fit_clusters(x, k, seed=0)) for k in clusters]
    curves.append(_curve(f"fit clusters of {n:,} rows", "clusters", clusters, values, 1))
    vocabularies, ranks = (2_048, 8_192, 32_768, 131_072)[some], (1, 4, 16, 64)[some]
    # The large product is the same for every rank: only the small ones grow.
    for against, sizes, expected in (("vocabulary", vocabularies, 1), ("rank", ranks, 0)):
        values = [_head(bench, **{"vocabulary": 32_768, "rank": 4} | {against: size}) for size in sizes]
        curves.append(_curve("head, forward and backward", against, sizes, values, expected))
    return {"curves": curves}


def slope(sizes, values) -> float:
    """Slope of log value over log size through the larger half of the points, at least two."""
    half = max(2, (len(sizes) + 1) // 2)
    x, y = np.asarray(sizes[-half:], float), np.asarray(values[-half:], float)
    return float(np.polyfit(np.log(x), np.log(np.maximum(y, 1e-9)), 1)[0])


def _curve(stage: str, against: str, sizes, values, expected: float) -> dict:
    unit = "bytes" if stage.endswith("memory") else "s"
    points = {"sizes": list(sizes), "values": [float(v) for v in values], "unit": unit}
    return {"stage": stage, "against": against, **points, "slope": slope(sizes, values), "expected": expected}


def measure_rows(bench: Bench, backbone, n: int) -> dict[str, float]:
    """Seconds of each stage on n short documents, and bytes of the feature pass beyond the ids'."""
    few = texts(n, np.random.default_rng(1).integers(1, 4, n))  # words; with the ending two dozen characters
    documents = [Document(str(i), f"{text} and so on") for i, text in enumerate(few)]
    g, out, timed = torch.Generator().manual_seed(0), {}, bench.timed
    limits = {"max_length": 64, "prefix_tokens": 4, "min_scored": 4}
    out["tokenise"], table = timed(lambda: tokenise(documents, backbone.tokenizer, **limits))
    out["mean embedding"], x = timed(lambda: mean_embeddings(table, backbone.embedding, span="row"))
    out["fit clusters"], clustering = timed(lambda: fit_clusters(x, 64, seed=0))
    labels = clustering.labels.cpu()
    out["arrange"] = bench.seconds(lambda: arrange(n, labels, g).groups(32))
    with tempfile.TemporaryDirectory() as folder:
        states = partial(hidden_states, backbone, table, torch.float32, Path(folder), progress=False)
        out["hidden states"], peak = timed(lambda: bench.peak(states))
        # A second call finds all states on disk. What it takes is where the documents lie: a few numbers per
        # document, which grow with the ids and are counted with them.
        out["feature memory"] = max(peak - bench.peak(states), RESOLUTION)
        scored = ScoredStates(table, states(), bench.device, budget=0)
        rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:32]
        scored.batch(rows)
        out["draw a batch"] = bench.seconds(lambda: scored.batch(rows), 20)
    return out


def _head(bench: Bench, vocabulary: int, rank: int) -> float:
    """Seconds of the head's forward and backward."""
    width = 256
    h, target, down, up = random_inputs(bench.device, bench.size(512, 8_160, 128), width, vocabulary, rank)
    weight = HeadWeight(torch.randn(vocabulary, width, device=bench.device), dtype=bench.fast)
    h = h.to(bench.fast)

    def step() -> None:
        head_losses(h, target, weight, [HeadUpdate(down[None], up[None])]).sum().backward()

    step()
    return bench.seconds(step, 3)
