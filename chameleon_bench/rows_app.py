"""B16: the command `adapt` on many short texts, within a limit of memory; and what checksums cost a `fit`.

    docstrings ─ fit, small ─▶ adapter ┐
               ─ 24 words each ─▶ JSONL ┴─ chameleon-lite adapt, in a subprocess ─▶ peak, seconds

Memory is that of the whole process, libraries included: what a machine must have, not what was added. The
same command on one row shows what starting and loading take.
"""

import cProfile
import itertools
import json
import pstats
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd

from chameleon_lite.app.corpus import SPLITS, Corpus
from chameleon_lite.app.fit import FitSettings, fit
from chameleon_study.corpora import load_corpus

from .bench import Bench, run
from .measure import gate

WORDS = 24  # per text: at least a token each, which are the 16 of a prefix and 8 to be scored
LIMIT = 4e9  # bytes
THREADS = 1  # rows per second of one core: other work on the machine changes that least
# A small process between us and the command: the system hands the peak of whoever starts a program on to it.
DIGESTS = ("crc32", "openssl_sha256", "_hashlib.HASH")  # in names of functions
WATCH = """import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(code)"""


def short_texts_adapted(bench: Bench, rows: int, fitted_tokens: int) -> dict:
    """B16: scoring short texts with an adapter on SmolLM2 (quick: on the tiny model), from file to file."""
    backbone, corpus = "tiny" if bench.quick else "smollm2", load_corpus("docstrings")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # fitted in a minute or two: its quality does not matter here
        sizes = {"max_train_tokens": fitted_tokens, "max_held_out": 100}
        settings = FitSettings(head="hyper", tokens={"max_length": 96}, train={"epochs": 2}, **sizes)
        where = {"out": folder / "adapter", "device": str(bench.device), "progress": False}
        fit(corpus, backbone=backbone, settings=settings, **where)
        texts = list(itertools.islice(itertools.cycle(short_texts(corpus)), rows))
        few, _ = _adapted(bench, folder, texts[:1])
        used, results = _adapted(bench, folder, texts)
    samples = {"memory": pd.DataFrame([{"ours": used["peak bytes"], "the limit set": LIMIT}])}
    workload = {"distinct rows": len(set(texts)), "words a row": WORDS}
    workload |= {"scored tokens": sum(result.get("tokens", 0) for result in results)}
    workload |= {"backbone": backbone, "threads": THREADS, "rows/s": rows / used["s"]}
    workload |= used | {f"{name}, one row": few[name] for name in ("s", "peak bytes")}
    gates = [gate("rows that were not answered", rows - len(results), 0)]
    failed = sum("error" in result for result in results)
    gates.append(gate("share of rows without a number", failed / rows, 0.0))
    profile = {"start and load": few["s"], "rows": max(0.0, used["s"] - few["s"])}
    return {"samples": samples, "gates": gates, "workload": workload, "profile": profile}


def short_texts(corpus: Corpus) -> Iterator[str]:
    """A corpus's texts cut to pieces of WORDS words, remainders left out, in the order of the splits."""
    for split in SPLITS:
        for document in corpus.splits[split]:
            words = document.text.split()
            for start in range(0, len(words) - WORDS + 1, WORDS):
                yield " ".join(words[start : start + WORDS])


def _adapted(bench: Bench, folder: Path, texts: list[str]) -> tuple[dict, list[dict]]:
    """What the command used, {s, processor s, peak bytes}, on THREADS threads, and its results."""
    source, out = folder / "texts.jsonl", folder / "results.jsonl"
    pd.DataFrame({"text": texts}).to_json(source, orient="records", lines=True)
    command = [sys.executable, "-m", "chameleon_lite", "adapt", source, "--model", folder / "adapter"]
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(THREADS))
    started = time.perf_counter()
    printed = run("-c", WATCH, *command, "--out", out, "--device", bench.device, **limits)
    processor, peak = printed.split()[-2:]
    used = {"s": time.perf_counter() - started, "processor s": float(processor), "peak bytes": int(peak)}
    return used, [json.loads(line) for line in out.read_text().splitlines()]


def checksums(bench: Bench, fitted_tokens: int) -> dict:
    """Seconds that a warm `fit` (its states are stored) spends on checksums, beside 3 % of all its seconds.

    Counted are the reading and digesting of whole files, and every other digest and CRC.
    """
    backbone, corpus = "tiny" if bench.quick else "smollm2", load_corpus("docstrings")
    sizes = {"max_train_tokens": fitted_tokens, "max_held_out": 100}
    settings = FitSettings(head="hyper", train={"epochs": 2}, **sizes)
    watched = cProfile.Profile()
    with tempfile.TemporaryDirectory() as name:
        for number, call in enumerate((fit, partial(watched.runcall, fit))):
            where = {"out": Path(name, str(number)), "device": str(bench.device), "progress": False}
            started = time.perf_counter()
            call(corpus, backbone=backbone, settings=settings, **where)
            seconds = time.perf_counter() - started
    spent = 0.0
    for (_, _, function), (_, _, own, whole, callers) in pstats.Stats(watched).stats.items():
        if function == "file_digest":
            spent += whole
        elif any(part in function for part in DIGESTS):  # but for what file_digest has counted
            spent += own - sum(s[2] for (*_, caller), s in callers.items() if caller == "file_digest")
    samples = {"time": pd.DataFrame([{"ours": spent, "3 % of a fit": 0.03 * seconds}])}
    gates = [gate("digests that were not seen", float(not spent), 0)]
    workload = {"backbone": backbone, "fit, s": seconds, "share": spent / seconds}
    return {"samples": samples, "gates": gates, "workload": workload}
