"""More than one GPU: two processes against one, in steps they share and in seeds they share out.

    steps    torchrun, every step's documents split over the processes: losses must be one process's
    seeds    the command line with one worker per GPU: settings are sent, records come back

Without a second GPU the steps run on two CPU processes: that shows that they are right, not how fast.
Run as a module this file is the worker: it trains once, as one process of the group it was started in.
"""

import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from chameleon_lite import HeadWeight, Member, ScoredStates
from chameleon_lite.errors import UserError
from chameleon_lite.processes import Processes, leave

from .bench import Bench, run
from .measure import gate
from .rows_train import REGIMES, trained
from .workload import random_inputs, topic_words

EPOCHS = 40  # of the experiment whose seeds are shared out
STEP = 256  # documents
SAME = 1e-4  # nats per token that two processes may differ from one
ROOT = Path(__file__).resolve().parents[1]
# Multicast over NVLink needs rights that a rented machine may lack; sums are small here, nothing is lost.
QUIET = {"NCCL_NVLS_ENABLE": "0", "TOKENIZERS_PARALLELISM": "false"}


def scaling(bench: Bench, **sizes: int) -> dict:
    """Losses and seconds of steps done by one process and shared by two."""
    gpus, found = torch.cuda.device_count() if bench.gpu else 0, {}
    with tempfile.TemporaryDirectory() as folder:
        for count in (1, 2):  # this file, in a group of processes
            out, group = Path(folder) / f"{count}.json", ["-m", "torch.distributed.run", "--standalone"]
            command = [*group, "--nproc_per_node", count] if count > 1 else []
            _run(bench, *command, "-m", "chameleon_bench.two_gpus", out, json.dumps(sizes))
            found[count] = json.loads(out.read_text())
    one, two = found.values()
    curves = [pd.concat({name: pd.DataFrame(c) for name, c in run["curves"].items()}) for run in (one, two)]
    apart = [curve[["train_nll", "validation_nll"]].fillna(0.0) for curve in curves]
    gap = (apart[0] - apart[1]).abs().to_numpy().max()  # nan, which fails, where one lacks an epoch
    gates = [gate("losses of two processes against one's, nats per token", gap, SAME)]
    workload = sizes | {"heads": len(REGIMES), "documents a step": STEP}
    steps = _speed_up(one["seconds"], two["seconds"], workload)
    found = {"gates": gates, "steps": steps, "processes": {"1": one["processes"], "2": two["processes"]}}
    return found | {"backend": "nccl" if gpus > 1 else "gloo", "gpus": gpus}


def _run(bench: Bench, *words, **environment: str) -> None:
    """Python with these arguments, which finds this project and, for a CPU's numbers, no GPU."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    alone = {} if bench.gpu else {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    run(*words, **QUIET | alone | {"PYTHONPATH": paths} | environment)


def _speed_up(one: float, two: float, workload: dict) -> dict:
    return {"seconds": {"1": one, "2": two}, "speed-up": one / two, "workload": workload}


def work(out: Path, documents: int, each: int, width: int, vocabulary: int, epochs: int) -> None:
    """Train two heads on random states in this group of processes; the first writes losses and seconds."""
    processes = Processes()
    bench = Bench(processes.device)

    def fit(documents: int, dtype: torch.dtype, epochs: int) -> list[Member]:
        h, target, _, _ = random_inputs(torch.device("cpu"), documents * each, width, vocabulary)
        counts = np.full(documents, each)
        data = ScoredStates.of_pairs(h.to(torch.float16), target.numpy(), counts, bench.device)
        g = torch.Generator().manual_seed(1)
        matrix = torch.randn(vocabulary, width, generator=g) * 0.02
        vectors = torch.randn(documents, width, generator=g).to(bench.device)
        weight = HeadWeight(matrix.to(bench.device), dtype=dtype)
        sizes = {"rows_per_step": min(STEP, documents // 4), "held_out": min(STEP, documents)}
        how = {"epochs": epochs, "dropout": 0.5, "processes": processes}
        return trained(REGIMES, vectors, data, weight, **how, **sizes)

    exact = fit(documents // 4, torch.float32, epochs)
    fit(documents, bench.fast, 1)
    seconds = bench.seconds(lambda: fit(documents, bench.fast, epochs))
    result = {"processes": processes.count, "seconds": seconds, "curves": {m.name: m.curve for m in exact}}
    if processes.index == 0:
        out.write_text(json.dumps(result))
    leave()


def workers(bench: Bench) -> dict:
    """Seconds of one experiment (three regimes, four seeds, states at hand) with one worker and with two.

    A command's start, of which two workers have three, is in its seconds: a seed must take longer than that.
    """
    if not bench.gpu or torch.cuda.device_count() < 2:
        raise UserError("needs two GPUs: two workers on one machine's CPU only wait for each other")
    regimes, words, count = ["R1", "R2", "R4"], topic_words(), 4_000
    texts = pd.DataFrame({"text": [" ".join(words[i * 11 % 60_000 :][:40]) for i in range(count)]})
    texts["id"] = texts.index.astype(str)
    texts["split"] = np.resize(["train", "train", "train", "validation", "test"], count)
    texts[["group", "prompt", "instruction"]] = ""
    sizes = {"seeds": 4, "regimes": len(regimes), "documents": count, "epochs": EPOCHS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts.to_json(folder / "texts.jsonl", orient="records", lines=True)
        settings = {"name": "workers", "backbone": bench.model, "corpora": [str(folder / "texts.jsonl")]}
        settings |= {"regimes": regimes, "learning_rates": dict.fromkeys(regimes, 1e-3), "seeds": 4}

        def seconds(epochs: int, *more: str) -> float:
            train = {"data": {"max_train_tokens": None}, "train": {"epochs": epochs, "patience": EPOCHS}}
            (folder / "settings.yaml").write_text(json.dumps(settings | train))  # JSON is YAML
            command = ["-m", "chameleon_lite", "run", folder / "settings.yaml", *more]
            out, home = folder / "-".join([str(epochs), *more]), str(folder / "home")
            return bench.seconds(partial(_run, bench, *command, "--out", out, CHAMELEON_LITE_HOME=home))

        seconds(1, "--seeds", "1")
        one, two = (seconds(EPOCHS, "--workers", str(count)) for count in (1, 2))
    return {"gpus": 2, "seeds": _speed_up(one, two, sizes)}


if __name__ == "__main__":
    work(Path(sys.argv[1]), **json.loads(sys.argv[2]))
