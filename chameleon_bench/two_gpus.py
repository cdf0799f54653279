"""More than one GPU: two processes against one, in steps they share and in seeds they share out.

    steps    torchrun, every step's documents split over the processes, gradients added: losses must be one process's
    seeds    the command line with one worker per GPU, each given the next seed: settings are sent, records come back

Where there is no second GPU the same runs on two CPU processes, which shows that it is right, not that it is fast.
Run as a module this file is the worker: it trains once in whatever group of processes it finds itself.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from chameleon_lite.batches import Arrangement, arrange
from chameleon_lite.errors import RunFailed, UserError
from chameleon_lite.heads import HyperHead, LoraHead
from chameleon_lite.loss import HeadWeight
from chameleon_lite.processes import Processes, leave
from chameleon_lite.settings import TrainSettings
from chameleon_lite.states import ScoredStates
from chameleon_lite.train import Member, train_heads
from chameleon_study.sources import BatchMean

from .measure import Gate, seconds_of
from .workload import Bench, topic_words

EPOCHS = 40  # of the experiment whose seeds are shared out
SAME = 1e-4  # nats a token that two processes may differ from one
ROOT = Path(__file__).resolve().parents[1]
# Multicast over NVLink needs rights that a rented machine may lack; sums are small here, nothing is lost.
QUIET = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def scaling(bench: Bench) -> dict:
    """Losses and seconds of steps done by one process and shared by two."""
    gpus = torch.cuda.device_count() if bench.gpu else 0
    with tempfile.TemporaryDirectory() as folder:
        found = {n: _trained(bench, n, Path(folder)) for n in (1, 2)}
    gap = max(
        abs((a[key] or 0.0) - (b[key] or 0.0))
        for name, curve in found[1]["curves"].items()
        for a, b in zip(curve, found[2]["curves"][name], strict=True)
        for key in ("train_nll", "validation_nll")
    )
    gate = Gate("losses of two processes against one's, nats a token", gap, SAME)
    steps = {str(n): result["seconds"] for n, result in found.items()}
    return {
        "what": "one process and two",
        "status": "shown" if gate.passed else "gate failed",
        "gates": [gate.as_json()],
        "backend": "nccl" if gpus > 1 else "gloo",
        "gpus": gpus,
        "processes": {str(n): result["processes"] for n, result in found.items()},
        "steps": {"seconds": steps, "speed-up": steps["1"] / steps["2"], "workload": found[1]["workload"]},
    }


def workers(bench: Bench) -> dict:
    """Seconds of an experiment with one worker, and with two that share out its seeds."""
    gpus = torch.cuda.device_count() if bench.gpu else 0
    if gpus < 2:
        raise UserError("needs two GPUs: two workers on one machine's CPU only wait for each other")
    with tempfile.TemporaryDirectory() as folder:
        found = _workers(bench, Path(folder))
    return {"what": "seeds shared out over two workers", "status": "shown", "gpus": gpus, "seeds": found}


def _trained(bench: Bench, processes: int, folder: Path) -> dict:
    """Start this file in a group of `processes` and read what it wrote."""
    out = folder / f"{processes}.json"
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    size = "quick" if bench.quick else "gpu" if bench.gpu else "cpu"
    _run([*launcher, "-m", "chameleon_bench.two_gpus", str(out), size, bench.model], bench)
    return json.loads(out.read_text())


def _run(command: list[str], bench: Bench, **extra: str) -> None:
    environment = os.environ | QUIET | extra
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    if not bench.gpu:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise RunFailed(f"{' '.join(command[1:6])} … failed: {said[-1] if said else 'it said nothing'}")


def work(out: Path, size: str, model: str) -> None:
    """Train two heads on made-up states in this group of processes; the first one writes losses and seconds."""
    processes = Processes()
    bench = Bench(processes.device, quick=size == "quick", model=model)
    documents, each, width = {"quick": (60, 8, 32), "cpu": (240, 24, 64), "gpu": (8_192, 64, 768)}[size]
    vocab = 50_257 if size == "gpu" else 2_000
    epochs = 3 if size == "gpu" else 2
    exact = _fit(processes, bench, documents // 4, each, (width, vocab), torch.float32, epochs)
    _fit(processes, bench, documents, each, (width, vocab), bench.fast, 1)
    again = partial(_fit, processes, bench, documents, each, (width, vocab), bench.fast, epochs)
    found = {
        "processes": processes.count,
        "seconds": seconds_of(again, bench.device),
        "curves": {m.name: m.curve for m in exact},
        "workload": {
            "documents": documents,
            "tokens": documents * each,
            "width": width,
            "vocabulary": vocab,
            "epochs": epochs,
            "heads": 2,
            "documents a step": 256,
        },
    }
    if processes.index == 0:
        out.write_text(json.dumps(found))
    leave()


def _fit(
    processes, bench: Bench, documents: int, each: int, shape, dtype: torch.dtype, epochs: int
) -> list[Member]:
    width, vocab = shape
    g = torch.Generator().manual_seed(0)
    data = ScoredStates.of_pairs(
        torch.randn(documents * each, width, generator=g).to(torch.float16),
        torch.randint(vocab, (documents * each,), generator=g).numpy(),
        np.full(documents, each),
        bench.device,
    )
    weight = HeadWeight((torch.randn(vocab, width, generator=g) * 0.02).to(bench.device), dtype=dtype)
    vectors = torch.randn(documents, width, generator=g).to(bench.device)

    source = BatchMean(vectors)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads = {"LoRA": LoraHead(width, vocab, 4), "hyper-network": HyperHead(width, vocab, 4)}
    members = [Member(n, h.to(bench.device), source, source, 1e-3) for n, h in heads.items()]
    settings = TrainSettings(epochs=epochs, rows_per_step=min(256, documents // 4), patience=99)
    train_heads(
        members,
        data,
        lambda n: arrange(documents, None, torch.Generator().manual_seed(n)),
        data,
        Arrangement.of(torch.arange(min(documents, 256)).split(64)),
        weight,
        settings,
        processes,
        progress=False,
    )
    return members


def _workers(bench: Bench, folder: Path) -> dict:
    """Seconds of one experiment (three regimes, four seeds, states at hand) with one worker and with two.

    A command's start, of which two workers have three, is in its seconds: a seed must take longer than that.
    """
    words, splits = topic_words(), ("train", "train", "train", "validation", "test")
    with open(folder / "texts.jsonl", "w") as file:
        for i in range(4_000):
            text = " ".join(words[i * 11 % 60_000 :][:40])
            row = {"split": splits[i % 5], "id": str(i), "text": text}
            file.write(json.dumps(row | dict.fromkeys(("group", "prompt", "instruction"), "")) + "\n")
    settings = {
        "name": "workers",
        "backbone": bench.model,
        "corpora": [str(folder / "texts.jsonl")],
        "seeds": 4,
        "regimes": ["R1", "R2", "R4"],
        "learning_rates": {"R1": 1e-3, "R2": 1e-3, "R4": 1e-3},
        "data": {"max_train_tokens": None},
    }
    for name, epochs in (("first", 1), ("workers", EPOCHS)):
        text = json.dumps(settings | {"train": {"epochs": epochs, "patience": EPOCHS}})  # JSON is YAML
        (folder / f"{name}.yaml").write_text(text)
    home = {"CHAMELEON_LITE_HOME": str(folder / "home")}

    def run(name: str, *more: str) -> float:
        started = time.perf_counter()
        words = [str(folder / f"{name}.yaml"), "--out", str(folder / "-".join([name, *more])), *more]
        _run([sys.executable, "-m", "chameleon_lite", "run", *words], bench, **home)
        return time.perf_counter() - started

    run("first", "--seeds", "1")
    seconds = {str(count): run("workers", "--workers", str(count)) for count in (1, 2)}
    return {
        "seconds": seconds,
        "speed-up": seconds["1"] / seconds["2"],
        "workload": {"seeds": 4, "regimes": 3, "documents": 4_000, "epochs": EPOCHS},
    }


if __name__ == "__main__":
    work(Path(sys.argv[1]), *sys.argv[2:4])
