"""How time and memory grow: seconds a stage against rows, clusters, vocabulary and rank, and the slope of each.

Made-up text and the `tiny` backbone: what is measured is how a stage grows, not how fast it is. A slope is that of
log seconds over log size through the larger half of the sizes: 1 is proportional, 0 is flat.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from chameleon_lite.backbone import load_backbone
from chameleon_lite.batches import arrange
from chameleon_lite.cluster import fit_clusters
from chameleon_lite.embed import mean_embeddings
from chameleon_lite.heads import HeadUpdate
from chameleon_lite.loss import HeadWeight, head_losses
from chameleon_lite.states import ScoredStates, hidden_states
from chameleon_lite.text import Document, tokenise

from .measure import peak_bytes, seconds_of, timed
from .workload import Bench, topic_words

RESOLUTION = 16 << 20  # bytes; less is lost in the system's accounts of a process, and is shown as this much
# Slopes one expects. Clusters are fitted on at most 100,000 rows; above that only assigning the others grows.
EXPECTED = {
    "tokenise": 1,
    "mean embedding": 1,
    "fit clusters": 0,
    "hidden states": 1,
    "arrange": 1,
    "draw a batch": 0,
    "feature memory": 0,
}


def growth(bench: Bench) -> dict:
    """All curves, each {stage, against, sizes, values, unit, slope, expected}."""
    some = slice(2 if bench.quick else 4)
    curves = [*_against_rows(bench), _against_clusters(bench)]
    curves.append(_head(bench, "vocabulary", (2_048, 8_192, 32_768, 131_072)[some], expected=1))
    # The large product is the same for every rank: only the small ones grow.
    curves.append(_head(bench, "rank", (1, 4, 16, 64)[some], expected=0))
    return {"what": "growth of time and memory", "status": "shown", "curves": curves}


def slope(sizes, values) -> float:
    """Slope of log value over log size through the larger half of the points, at least two."""
    keep = max(2, (len(sizes) + 1) // 2)
    x, y = np.asarray(sizes[-keep:], float), np.asarray(values[-keep:], float)
    return float(np.polyfit(np.log(x), np.log(np.maximum(y, 1e-9)), 1)[0])


def _curve(stage: str, against: str, sizes, values, unit: str, expected: float) -> dict:
    return {
        "stage": stage,
        "against": against,
        "sizes": list(sizes),
        "values": [float(v) for v in values],
        "unit": unit,
        "slope": slope(sizes, values),
        "expected": expected,
    }


def _against_rows(bench: Bench) -> list[dict]:
    sizes = (1_000, 10_000) if bench.quick else (1_000, 10_000, 100_000, 1_000_000)
    found: dict[str, list[float]] = {stage: [] for stage in EXPECTED}
    backbone, threads = load_backbone("tiny", device=bench.device), torch.get_num_threads()
    torch.set_num_threads(1)  # the tiny model's operations are too small to share: threads would only wait
    try:
        for n in sizes:
            for stage, value in measure_rows(bench, backbone, n).items():
                found[stage].append(value)
    finally:
        torch.set_num_threads(threads)
    unit = {"feature memory": "bytes"}
    return [_curve(s, "rows", sizes, found[s], unit.get(s, "s"), slope) for s, slope in EXPECTED.items()]


def measure_rows(bench: Bench, backbone, n: int) -> dict[str, float]:
    """Seconds of each stage on n short documents, and bytes of the feature pass beyond the ids'."""
    out: dict[str, float] = {}
    documents = made_up_documents(n)
    limits, generator = (
        {"max_length": 64, "prefix_tokens": 4, "min_scored": 4},
        torch.Generator().manual_seed(0),
    )

    def stage(name: str, work: Callable, device: torch.device = bench.device):
        out[name], result = timed(work, device)
        return result

    host = torch.device("cpu")
    table = stage("tokenise", lambda: tokenise(documents, backbone.tokenizer, **limits), host)
    x = stage("mean embedding", lambda: mean_embeddings(table, backbone.embedding, span="row"))
    labels = stage("fit clusters", lambda: fit_clusters(x, 64, seed=0)).labels.cpu()
    stage("arrange", lambda: arrange(n, labels, generator).groups(32), host)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        stores = []
        peak = peak_bytes(
            lambda: stores.append(
                hidden_states(backbone, table, torch.float32, Path(folder), progress=False)
            ),
            bench.device,
        )
        out["hidden states"] = time.perf_counter() - started
        # A second call finds all states on disk. What it takes is where the documents lie: a few numbers a document,
        # which grow with the ids and are counted with them.
        places = peak_bytes(
            lambda: hidden_states(backbone, table, torch.float32, Path(folder), progress=False), bench.device
        )
        out["feature memory"] = max(peak - places, RESOLUTION)
        scored = ScoredStates(table, stores[0], bench.device, budget=0)
        rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:32]
        scored.batch(rows)
        out["draw a batch"] = seconds_of(lambda: scored.batch(rows), bench.device, 20)
    return out


def made_up_documents(n: int, seed: int = 0) -> list[Document]:
    """n documents of one to three words and an ending, about two dozen characters."""
    words, g = topic_words(), np.random.default_rng(seed)
    starts, counts = g.integers(0, len(words) - 8, n).tolist(), g.integers(1, 4, n).tolist()
    texts = [" ".join(words[s : s + c]) + " and so on" for s, c in zip(starts, counts)]
    return [Document(str(i), text) for i, text in enumerate(texts)]


def _against_clusters(bench: Bench) -> dict:
    sizes = (16, 64) if bench.quick else (16, 64, 256, 1_024, 4_096)
    n = 4_000 if bench.quick else 20_000
    x = torch.randn(n, 64, generator=torch.Generator().manual_seed(0)).to(bench.device)
    values = [seconds_of(lambda k=k: fit_clusters(x, k, seed=0), bench.device) for k in sizes]
    return _curve(f"fit clusters of {n:,} rows", "clusters", sizes, values, "s", 1)


def _head(bench: Bench, against: str, sizes, expected: float) -> dict:
    """Seconds of the head's forward and backward."""
    tokens, width, values = bench.size(512, 8_160, 128), 256, []
    for size in sizes:
        vocab, rank = (size, 4) if against == "vocabulary" else (32_768, size)
        g = torch.Generator().manual_seed(0)
        weight = HeadWeight(torch.randn(vocab, width, generator=g).to(bench.device), dtype=bench.fast)
        h = torch.randn(tokens, width, generator=g).to(bench.device, weight.weight.dtype)
        target = torch.randint(vocab, (tokens,), generator=g).to(bench.device)
        down = torch.randn(1, rank, width, generator=g).to(bench.device).requires_grad_()
        up = torch.zeros(1, vocab, rank, device=bench.device, requires_grad=True)

        def step(args=(h, target, weight, [HeadUpdate(down, up)])) -> None:
            head_losses(*args).sum().backward()

        step()
        values.append(seconds_of(step, bench.device, 3))
    return _curve("head, forward and backward", against, sizes, values, "s", expected)
