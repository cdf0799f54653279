"""B16, B19 and B20: what a person waits for, within limits; and what checksums cost a `fit`.

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
from chameleon_study.provenance import ROOT, device_minutes, load_spans
from chameleon_study.records import load_records

from .bench import Bench, run
from .measure import gate

WORDS = 24  # per text: at least a token each, which are the 16 of a prefix and 8 to be scored
LIMIT = "the limit set"
WAITS = ROOT / "benchmarks" / "waits.json"  # seconds of runs that take minutes, with commit, date and machine
THREADS = 1  # rows per second of one core: other work on the machine changes that least
# A small process between us and the command: the system hands the peak of whoever starts a program on to it.
DIGESTS = ("crc32", "openssl_sha256", "_hashlib.HASH")  # in names of functions
WATCH = """import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(code)"""


def short_texts_adapted(
    bench: Bench, rows: int, fitted_tokens: int, most_megabytes: int, most_seconds: int
) -> dict:
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
    samples = {
        "memory": _limited(used["peak bytes"], most_megabytes * 1e6),
        "time": _limited(used["s"], most_seconds),
    }
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


def _limited(ours: float, limit: float) -> pd.DataFrame:
    return pd.DataFrame([{"ours": ours, LIMIT: limit}])


def study_bill(bench: Bench, most_minutes: int) -> dict:
    """B19: minutes in which a GPU had work of the honest study on its five corpora, from the stored spans."""
    results = ROOT / "results"
    names = [path.stem for path in results.glob("honest-*.jsonl") if path.stem != "honest-layers"]
    spans = [span for span in load_spans(results) if span.experiment in names]
    bill = device_minutes(spans).set_index("experiment")["device minutes"]
    records = [record for name in names for record in load_records(results / f"{name}.jsonl")]
    profile = pd.DataFrame([record.seconds for record in records]).sum().to_dict()
    workload = bill.add_prefix("minutes, ").to_dict() | {"runs": len(records)}
    workload |= {"cards": ", ".join(sorted({span.device_name for span in spans}))}
    samples = {"GPU time": _limited(60 * bill["all of them"], 60 * most_minutes)}
    return {"samples": samples, "workload": workload, "profile": profile}


def waiting(bench: Bench, limits: dict[str, float]) -> dict:
    """B20: commands in processes of their own; what takes minutes as WAITS has it, of runs by hand."""
    samples, noted = {}, {} if bench.quick else json.loads(WAITS.read_text(encoding="utf-8"))
    words = {"--help": ["--help"], "claims": ["claims", "--results", ROOT / "results"]}
    for name, limit in limits.items():
        if name in words:
            command = partial(run, "-m", "chameleon_lite", *words[name])
            samples[name] = bench.race({"ours": command}, warm_up=False).assign(**{LIMIT: limit})
        elif name in noted:
            samples[name] = _limited(noted[name]["seconds"], limit)
    profile = {name: float(times["ours"].median()) for name, times in samples.items()}
    return {"samples": samples, "workload": {"by hand": noted}, "profile": profile}


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
