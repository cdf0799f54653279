"""More than one GPU: two processes against one, in steps they share and in seeds they share out.

    steps    torchrun, every step's documents split over the processes: losses must be one process's
    seeds    the command line with one worker per GPU: settings are sent, records come back

Without a second GPU the steps run on two CPU processes: that shows that they are right, not how fast.
Run as a module this file is the worker: it trains once, as one process of the group it was started in.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from chameleon_lite.errors import RunFailed, UserError
from chameleon_lite.loss import HeadWeight
from chameleon_lite.processes import Processes, leave
from chameleon_lite.states import ScoredStates
from chameleon_lite.train import Member

from .measure import gate, shown
from .rows_train import REGIMES, new_members, train
from .workload import Bench, random_inputs, topic_words

EPOCHS = 40  # of the experiment whose seeds are shared out
SAME = 1e-4  # nats per token that two processes may differ from one
ROOT = Path(__file__).resolve().parents[1]
# Multicast over NVLink needs rights that a rented machine may lack; sums are small here, nothing is lost.
QUIET = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
QUIET |= {"TOKENIZERS_PARALLELISM": "false"}
# documents, tokens in each, width, vocabulary, epochs
SIZES = {"quick": (60, 8, 32, 2_000, 2), "cpu": (240, 24, 64, 2_000, 2), "gpu": (8_192, 64, 768, 50_257, 3)}


def scaling(bench: Bench) -> dict:
    """Losses and seconds of steps done by one process and shared by two."""
    gpus = torch.cuda.device_count() if bench.gpu else 0
    with tempfile.TemporaryDirectory() as folder:
        one, two = (_trained(bench, n, Path(folder)) for n in (1, 2))
    gap = max(
        abs((a[key] or 0.0) - (b[key] or 0.0))
        for name, curve in one["curves"].items()
        for a, b in zip(curve, two["curves"][name], strict=True)
        for key in ("train_nll", "validation_nll")
    )
    gates = [gate("losses of two processes against one's, nats per token", gap, SAME)]
    about = {"backend": "nccl" if gpus > 1 else "gloo", "gpus": gpus}
    about["processes"] = {"1": one["processes"], "2": two["processes"]}
    about["steps"] = _speed_up(one["seconds"], two["seconds"], one["workload"])
    return shown("one process and two", gates, **about)


def workers(bench: Bench) -> dict:
    """Seconds of one experiment (three regimes, four seeds, states at hand) with one worker and with two.

    A command's start, of which two workers have three, is in its seconds: a seed must take longer than that.
    """
    if not bench.gpu or torch.cuda.device_count() < 2:
        raise UserError("needs two GPUs: two workers on one machine's CPU only wait for each other")
    regimes, words = ["R1", "R2", "R4"], topic_words()
    sizes = {"seeds": 4, "regimes": len(regimes), "documents": 4_000, "epochs": EPOCHS}
    splits, empty = (
        ("train", "train", "train", "validation", "test"),
        {"group": "", "prompt": "", "instruction": ""},
    )
    texts = [" ".join(words[i * 11 % 60_000 :][:40]) for i in range(sizes["documents"])]
    rows = [{"split": splits[i % 5], "id": str(i), "text": text} | empty for i, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {"name": "workers", "backbone": bench.model, "corpora": [str(folder / "texts.jsonl")]}
        settings |= {"regimes": regimes, "learning_rates": dict.fromkeys(regimes, 1e-3), "seeds": 4}

        def run(epochs: int, *more: str) -> float:
            train = {"data": {"max_train_tokens": None}, "train": {"epochs": epochs, "patience": EPOCHS}}
            (folder / "settings.yaml").write_text(json.dumps(settings | train))  # JSON is YAML
            out = folder / "-".join([str(epochs), *more])
            command = [sys.executable, "-m", "chameleon_lite", "run", str(folder / "settings.yaml")]
            started = time.perf_counter()
            _run([*command, "--out", str(out), *more], bench, CHAMELEON_LITE_HOME=str(folder / "home"))
            return time.perf_counter() - started

        run(1, "--seeds", "1")
        one, two = (run(EPOCHS, "--workers", str(count)) for count in (1, 2))
    return shown("seeds shared out over two workers", gpus=2, seeds=_speed_up(one, two, sizes))


def _speed_up(one: float, two: float, workload: dict) -> dict:
    return {"seconds": {"1": one, "2": two}, "speed-up": one / two, "workload": workload}


def _trained(bench: Bench, processes: int, folder: Path) -> dict:
    """Start this file in a group of `processes` and read what it wrote."""
    out, command = folder / f"{processes}.json", [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    size = "quick" if bench.quick else "gpu" if bench.gpu else "cpu"
    _run([*command, "-m", "chameleon_bench.two_gpus", str(out), size, bench.model], bench)
    return json.loads(out.read_text())


def _run(command: list[str], bench: Bench, **extra: str) -> None:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | QUIET | {"PYTHONPATH": os.pathsep.join(paths)} | extra
    if not bench.gpu:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RunFailed(f"{' '.join(command[1:6])} … failed: {lines[-1] if lines else 'no message'}")


def work(out: Path, size: str, model: str) -> None:
    """Train two heads on random states in this group of processes; the first writes losses and seconds."""
    processes = Processes()
    bench = Bench(processes.device, quick=size == "quick", model=model)
    documents, each, width, vocab, epochs = SIZES[size]

    def fit(documents: int, dtype: torch.dtype, epochs: int) -> list[Member]:
        h, target, _, _ = random_inputs(torch.device("cpu"), documents * each, width, vocab)
        counts = np.full(documents, each)
        data = ScoredStates.of_pairs(h.to(torch.float16), target.numpy(), counts, bench.device)
        g = torch.Generator().manual_seed(1)
        matrix = torch.randn(vocab, width, generator=g) * 0.02
        vectors = torch.randn(documents, width, generator=g).to(bench.device)
        members = new_members(REGIMES, vectors, vocab, dropout=0.5)
        sizes = {"epochs": epochs, "step": min(256, documents // 4), "held_out": min(256, documents)}
        weight = HeadWeight(matrix.to(bench.device), dtype=dtype)
        train(members, data, weight, processes=processes, **sizes)
        return members

    exact = fit(documents // 4, torch.float32, epochs)
    fit(documents, bench.fast, 1)
    seconds = bench.seconds(lambda: fit(documents, bench.fast, epochs))
    sizes = {"documents": documents, "tokens": documents * each, "width": width, "vocabulary": vocab}
    workload = sizes | {"epochs": epochs, "heads": len(REGIMES), "documents a step": 256}
    result = {"processes": processes.count, "seconds": seconds, "curves": {m.name: m.curve for m in exact}}
    if processes.index == 0:
        out.write_text(json.dumps(result | {"workload": workload}))
    leave()


if __name__ == "__main__":
    work(Path(sys.argv[1]), *sys.argv[2:4])
