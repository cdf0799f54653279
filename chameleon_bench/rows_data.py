"""B1 and B3: text to vectors, vectors to clusters."""

import torch

from chameleon_lite.cluster import MANY_PRODUCTS, nearest_centroid
from chameleon_lite.embed import mean_embeddings, normalise
from chameleon_lite.fast.lloyd import closest, lloyd
from chameleon_lite.text import Document, tokenise

from . import baselines
from .measure import Gate, Row, faster, interleaved, relative_error, seconds_of
from .workload import LENGTH, Bench, texts, trained_tokenizer


def prepare(bench: Bench) -> Row:
    """B1: tokenising and mean embeddings, batched and flat, against one row at a time."""
    rows = bench.size(cpu=1_000, gpu=3_000, quick=400)
    words, tokenizer = texts(rows), trained_tokenizer()
    documents = [Document(str(i), text) for i, text in enumerate(words)]
    g = torch.Generator().manual_seed(0)
    embedding = torch.randn(len(tokenizer), 768, generator=g).to(bench.device)
    positions = torch.randn(1_024, 768, generator=g).to(bench.device)

    def table():
        return tokenise(documents, tokenizer, max_length=LENGTH, prefix_tokens=1, min_scored=1)

    def ours():
        return mean_embeddings(table(), embedding, span="padded", length=LENGTH)

    def released():
        return baselines.prepare_one_by_one(words, tokenizer, embedding, positions, LENGTH)[1]

    def called():
        return tokenizer(words, add_special_tokens=False)["input_ids"]

    def alone():
        return tokenizer.backend_tokenizer.encode_batch(words, add_special_tokens=False)

    error = relative_error(ours(), released())
    contenders = {
        "ours": ours,
        "released way": released,
        "tokenizer called": called,
        "tokenizer alone": alone,
    }
    times = interleaved(contenders, bench.device, bench.repetitions())
    made = table()
    tokens = seconds_of(table, bench.device)
    embed = seconds_of(lambda: mean_embeddings(made, embedding, span="padded", length=LENGTH), bench.device)
    row = Row(
        "B1",
        "preparing: tokenise and mean embedding",
        [faster(times, "released way", bench.goal(20, 20))],
        [Gate("mean embeddings, relative", error, 1e-5)],
        limit="the Rust tokenizer's encode_batch alone: "
        f"{times['released way'].median / times['tokenizer alone'].median:.1f} times",
        workload={
            "rows": rows,
            "tokens": int(made.lengths.sum()),
            "rows/s": rows / times["ours"].median,
            "rows/s released": rows / times["released way"].median,
            "rows/s the tokenizer called": rows / times["tokenizer called"].median,
        },
        profile={"tokenise": tokens, "mean embedding": embed},
    )
    if row.status == "missed":
        share = times["tokenizer alone"].median / times["ours"].median
        row.reason = (
            f"the Rust tokenizer's encode_batch alone, on the whole list at once, is {share:.0%} of ours; "
            f"mean embeddings are {embed / (tokens + embed):.0%}"
        )
    return row


def clusters(bench: Bench) -> Row:
    """B3: Lloyd steps from the same start, against the released loop and scikit-learn on the host."""
    n, k = bench.size(23_767, 23_767, 4_096), bench.size(742, 742, 128)
    steps = bench.size(cpu=2, gpu=10, quick=2)
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(k, 768, generator=g)
    x = normalise(torch.randn(n, 768, generator=g) + 0.6 * centres[torch.randint(k, (n,), generator=g)])
    start = x[torch.randperm(n, generator=g)[:k]]
    x, start = x.to(bench.device), start.to(bench.device)
    many = n * k >= MANY_PRODUCTS  # as `fit_clusters` chooses
    on_host, start_on_host = x.cpu(), start.cpu()

    contenders = {
        "ours": lambda: (
            lloyd(x, start, steps, tolerance=-1.0)
            if many
            else baselines.kmeans_by_scikit_learn(x, start, steps)
        ),
        "released way": lambda: baselines.kmeans_by_loop(x, start, steps)[0],
        "scikit-learn on the host": lambda: baselines.kmeans_by_scikit_learn(on_host, start_on_host, steps),
    }
    inertia = {name: _inertia(x, work().to(x)) for name, work in contenders.items()}
    times = interleaved(contenders, bench.device, bench.repetitions(), warm_up=False)
    goals = {"released way": bench.goal(1.5, 100), "scikit-learn on the host": bench.goal(None, 50)}
    ideal = 2 * n * k * 768 * steps
    return Row(
        "B3",
        "k-means, the same start and steps",
        [faster(times, name, goal) for name, goal in goals.items()],
        [
            Gate(f"inertia against the {name}, relative", abs(inertia["ours"] / inertia[name] - 1), 1e-3)
            for name in goals
        ],
        limit="the products x·c alone",
        workload={
            "rows": n,
            "clusters": k,
            "width": 768,
            "steps": steps,
            "s/step": times["ours"].median / steps,
            "GFLOP/s of x·c": ideal / times["ours"].median / 1e9,
            "ours": "lloyd.py" if many else "scikit-learn, one thread",
        },
        profile=_stages(x, start, times["ours"].median / steps),
    )


def _stages(x, centroids, step: float) -> dict[str, float]:
    """Seconds of a step's two stages, as `lloyd.py` does them."""
    nearest = interleaved({"it": lambda: closest(x, centroids)}, x.device, 3)["it"].median
    return {"nearest centroids": nearest, "means and the host": max(0.0, step - nearest)}


def _inertia(x, centroids) -> float:
    return float(nearest_centroid(x, centroids)[1].double().square().sum())
