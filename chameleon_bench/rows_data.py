"""B1 and B3: text to vectors, vectors to clusters."""

import torch

from chameleon_lite.cluster import nearest_centroid
from chameleon_lite.embed import mean_embeddings, normalise
from chameleon_lite.fast.lloyd import closest, lloyd
from chameleon_lite.text import Document, tokenise

from . import baselines
from .bench import Bench
from .measure import gate, relative_error
from .workload import LENGTH, texts, trained_tokenizer

RELEASED, SKLEARN = "released way", "scikit-learn on the host"


def prepare(bench: Bench, rows: int) -> dict:
    """B1: tokenising and mean embeddings, batched and flat, against one row at a time."""
    words, tokenizer = texts(rows), trained_tokenizer()
    documents = [Document(str(i), text) for i, text in enumerate(words)]
    g = torch.Generator().manual_seed(0)
    embedding = torch.randn(len(tokenizer), 768, generator=g).to(bench.device)
    positions = torch.randn(1_024, 768, generator=g).to(bench.device)

    def tokens():
        return tokenise(documents, tokenizer, max_length=LENGTH, prefix_tokens=1, min_scored=1)

    def vectors(table):
        return mean_embeddings(table, embedding, span="padded", length=LENGTH)

    def released():
        return baselines.prepare_one_by_one(words, tokenizer, embedding, positions, LENGTH)[1]

    contenders = {
        "ours": lambda: vectors(tokens()),
        RELEASED: released,
        "tokenizer called": lambda: tokenizer(words, add_special_tokens=False)["input_ids"],
        "tokenizer alone": lambda: tokenizer.backend_tokenizer.encode_batch(words, add_special_tokens=False),
    }
    error = relative_error(contenders["ours"](), released())
    times, table = bench.race(contenders), tokens()
    stages = {"tokenise": tokens, "mean embedding": lambda: vectors(table)}
    return {
        "samples": {"time": times},
        "gates": [gate("mean embeddings, relative", error, 1e-5)],
        "workload": {"tokens": int(table.lengths.sum())},
        "profile": {name: bench.seconds(stage) for name, stage in stages.items()},
    }


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
    times = bench.race(contenders, warm_up=False)
    step, nearest = float(times["ours"].median()) / steps, bench.median(lambda: closest(x, start))
    return {
        "samples": {"time": times},
        "gates": [gate(f"inertia against the {peer}, relative", gap, 1e-3) for peer, gap in apart.items()],
        "workload": {"width": 768, "s/step": step},
        "profile": {"nearest centroids": nearest, "means and the host": max(0.0, step - nearest)},
    }
