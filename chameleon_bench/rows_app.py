"""B16: the command `adapt` on many short texts, within a limit of memory.

    docstrings ─ fit, small ─▶ adapter ┐
               ─ 24 words each ─▶ JSONL ┴─ chameleon-lite adapt, in a subprocess ─▶ peak, seconds

Memory is that of the whole process, libraries included: what a machine must have, not what was added. The
same command on one row shows what starting and loading take.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from chameleon_lite.app.corpus import SPLITS, Corpus
from chameleon_lite.app.fit import fit
from chameleon_lite.errors import RunFailed
from chameleon_lite.settings import FitSettings, TokenSettings, TrainSettings
from chameleon_study.corpora import load_corpus

from .measure import Samples, gate, row, sample
from .workload import Bench

WORDS = 24  # per text: at least a token each, which are the 16 of a prefix and 8 to be scored
LIMIT = 4e9  # bytes
THREADS = 1  # rows per second of one core: other work on the machine changes that least
# A small process between us and the command: the system hands the peak of whoever starts a program on to it.
WATCH = """import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(code)"""


def ten_thousand(bench: Bench) -> dict:
    """B16: scoring short texts with an adapter on SmolLM2 (quick: on the tiny model), from file to file."""
    rows = bench.size(cpu=10_000, gpu=10_000, quick=200)
    corpus = load_corpus("docstrings")
    with tempfile.TemporaryDirectory() as name:
        model = _adapter(bench, corpus, Path(name) / "adapter")
        texts = list(itertools.islice(itertools.cycle(short_texts(corpus)), rows))
        few, _ = _adapt(bench, Path(name), texts[:1])
        used, results = _adapt(bench, Path(name), texts)
    failed = sum("error" in result for result in results)
    sizes = {"ours": used["peak bytes"], "the limit set": LIMIT}
    peaks = Samples({name: sample([float(size)], "bytes") for name, size in sizes.items()})
    workload = {"rows": rows, "distinct rows": len(set(texts)), "words a row": WORDS}
    workload |= {"scored tokens": sum(result.get("tokens", 0) for result in results)}
    workload |= {"backbone": model.backbone.name, "threads": THREADS, "rows/s": rows / used["s"]}
    workload |= used | {f"{name}, one row": few[name] for name in ("s", "peak bytes")}
    return row(
        f"adapt: {rows:,} short texts scored, from file to file",
        peaks.against({"the limit set": bench.goal(1, None)}, "memory"),
        [
            gate("rows that were not answered", rows - len(results), 0),
            gate("share of rows without a number", failed / rows, 0.0),
        ],
        limit=f"the backbone's weights in 32 bits: {4 * model.backbone.parameters / 1e6:,.0f} MB",
        workload=workload,
        profile={"start and load": few["s"], "rows": max(0.0, used["s"] - few["s"])},
    )


def short_texts(corpus: Corpus) -> Iterator[str]:
    """A corpus's texts cut to pieces of WORDS words, remainders left out, in the order of the splits."""
    for split in SPLITS:
        for document in corpus.splits[split]:
            words = document.text.split()
            for start in range(0, len(words) - WORDS + 1, WORDS):
                yield " ".join(words[start : start + WORDS])


def _adapter(bench: Bench, corpus: Corpus, folder: Path):
    """A small adapter, fitted in a minute or two and saved: its quality does not matter here."""
    settings = FitSettings(
        max_train_tokens=bench.size(12_000, 12_000, 4_000),
        max_held_out=100,
        tokens=TokenSettings(max_length=96),
        train=TrainSettings(epochs=2),
    )
    options = {"settings": settings, "device": str(bench.device), "progress": False}
    return fit(corpus, backbone="tiny" if bench.quick else "smollm2", out=folder, **options).model


def _adapt(bench: Bench, folder: Path, texts: list[str]) -> tuple[dict, list[dict]]:
    """What the command used, and its results."""
    source, out = folder / "texts.jsonl", folder / "results.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = {"--model": folder / "adapter", "--out": out, "--device": bench.device}
    used = run([str(word) for word in ["adapt", source, *itertools.chain(*options.items())]])
    return used, [json.loads(line) for line in out.read_text().splitlines()]


def run(arguments: Sequence[str]) -> dict[str, float]:
    """`chameleon-lite` run on THREADS threads: {s, processor s, peak bytes}; RunFailed with its last line."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(THREADS))
    command = [sys.executable, "-c", WATCH, sys.executable, "-m", "chameleon_lite", *arguments]
    started = time.perf_counter()
    done = subprocess.run(command, env=os.environ | limits, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunFailed(f"chameleon-lite {arguments[0]} ended with code {done.returncode}: {last}")
    processor, peak = done.stdout.split()[-2:]
    return {"s": seconds, "processor s": float(processor), "peak bytes": int(peak)}
