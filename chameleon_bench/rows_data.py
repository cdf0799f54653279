"""B1 and B3: text to vectors, vectors to clusters."""

import torch

from chameleon_lite.cluster import MANY_PRODUCTS, nearest_centroid
from chameleon_lite.embed import mean_embeddings, normalise
from chameleon_lite.fast.lloyd import closest, lloyd
from chameleon_lite.text import Document, tokenise

from . import baselines
from .measure import gate, relative_error, row
from .workload import LENGTH, Bench, texts, trained_tokenizer

RELEASED, SKLEARN, CALLED = "released way", "scikit-learn on the host", "tokenizer called"


def prepare(bench: Bench) -> dict:
    """B1: tokenising and mean embeddings, batched and flat, against one row at a time."""
    rows = bench.size(cpu=1_000, gpu=3_000, quick=400)
    words, tokenizer = texts(rows), trained_tokenizer()
    documents = [Document(str(i), text) for i, text in enumerate(words)]
    g = torch.Generator().manual_seed(0)
    embedding = torch.randn(len(tokenizer), 768, generator=g).to(bench.device)
    positions = torch.randn(1_024, 768, generator=g).to(bench.device)
    arguments = (words, tokenizer, embedding, positions, LENGTH)

    def tokens():
        return tokenise(documents, tokenizer, max_length=LENGTH, prefix_tokens=1, min_scored=1)

    def vectors(table):
        return mean_embeddings(table, embedding, span="padded", length=LENGTH)

    contenders = {
        "ours": lambda: vectors(tokens()),
        RELEASED: lambda: baselines.prepare_one_by_one(*arguments)[1],
        CALLED: lambda: tokenizer(words, add_special_tokens=False)["input_ids"],
        "tokenizer alone": lambda: tokenizer.backend_tokenizer.encode_batch(words, add_special_tokens=False),
    }
    error = relative_error(contenders["ours"](), contenders[RELEASED]())
    times, table = bench.race(contenders), tokens()
    most = times.median(RELEASED) / times.median("tokenizer alone")
    speeds = {"rows/s": "ours", "rows/s released": RELEASED, "rows/s the tokenizer called": CALLED}
    workload = {"rows": rows, "tokens": int(table.lengths.sum())}
    return row(
        "preparing: tokenise and mean embedding",
        times.against({RELEASED: bench.goal(20, 20)}),
        [gate("mean embeddings, relative", error, 1e-5)],
        limit=f"the Rust tokenizer's encode_batch alone: {most:.1f} times",
        workload=workload | {name: rows / times.median(of) for name, of in speeds.items()},
        profile={"tokenise": bench.seconds(tokens), "mean embedding": bench.seconds(lambda: vectors(table))},
    )


def clusters(bench: Bench) -> dict:
    """B3: Lloyd steps from the same start, against the released loop and scikit-learn on the host."""
    n, k = bench.size(23_767, 23_767, 4_096), bench.size(742, 742, 128)
    steps = bench.size(cpu=2, gpu=10, quick=2)
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(k, 768, generator=g)
    on_host = normalise(torch.randn(n, 768, generator=g) + 0.6 * centres[torch.randint(k, (n,), generator=g)])
    start_on_host = on_host[torch.randperm(n, generator=g)[:k]]
    x, start = on_host.to(bench.device), start_on_host.to(bench.device)
    many = n * k >= MANY_PRODUCTS  # as `fit_clusters` chooses

    def ours():
        if many:
            return lloyd(x, start, steps, tolerance=-1.0)
        return baselines.kmeans_by_scikit_learn(x, start, steps)

    contenders = {
        "ours": ours,
        RELEASED: lambda: baselines.kmeans_by_loop(x, start, steps),
        SKLEARN: lambda: baselines.kmeans_by_scikit_learn(on_host, start_on_host, steps),
    }
    inertia = {
        name: float(nearest_centroid(x, work().to(x))[1].double().square().sum())
        for name, work in contenders.items()
    }
    times = bench.race(contenders, warm_up=False)
    step, nearest = times.median() / steps, bench.median(lambda: closest(x, start))
    workload = {"rows": n, "clusters": k, "width": 768, "steps": steps, "s/step": step}
    workload |= {"ours": "lloyd.py" if many else "scikit-learn, one thread"}
    peers = (RELEASED, SKLEARN)
    return row(
        "k-means, the same start and steps",
        times.against({RELEASED: bench.goal(1.5, 100), SKLEARN: bench.goal(None, 50)}),
        [
            gate(f"inertia against the {peer}, relative", abs(inertia["ours"] / inertia[peer] - 1), 1e-3)
            for peer in peers
        ],
        limit="the products x·c alone",
        workload=workload | {"GFLOP/s of x·c": 2 * n * k * 768 / step / 1e9},
        profile={"nearest centroids": nearest, "means and the host": max(0.0, step - nearest)},
    )
