"""Records to tables: every mean with its n and interval, every row with its circumstances; parameters, counted."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from chameleon_lite import HyperHead, LoraHead, files, matched_rank
from chameleon_lite.backbone import BUILT_IN, SHORT_NAMES
from chameleon_lite.backbones import tiny
from chameleon_lite.backbones.hub import load_config, reachable, readable
from chameleon_lite.errors import DamagedFile, Unreachable, UserError, unknown
from chameleon_lite.lora import add_lora, lora_parameters

from .claims.contrasts import articles_of, by_unit, shared_seeds
from .claims.paper import published
from .claims.statistics import contrast, mean_interval, verdict
from .records import Record, load_records, load_results, record_files
from .regimes import RANK, REGIMES
from .released.tables import released_frame
from .stored import read_losses


def parameter_frame(backbone: str) -> pd.DataFrame:
    """The parameter column derived for a backbone, beside the paper's (Tables 1 and 2) where it has one."""
    regimes = {"total": "R0", "lora_head": "R1", "hyper_head": "R4"} if "gpt2" in backbone else {}
    paper = {part: f"{published(1, regime, 'parameters'):,}" for part, regime in regimes.items()}
    rows = [(part, f"{n:,}", paper.get(part, "–")) for part, n in parameter_table(backbone).items()]
    return pd.DataFrame(rows, columns=["part", "derived", "paper"])


def parameter_table(backbone_name: str) -> dict[str, int]:
    """Parameter counts for a backbone, without its weights.

    total: the frozen model, a tied matrix once · lora_head, lora_layers, lora_everywhere: LoRA in the head,
    all layers, both · hyper_head: the hyper-network · matched_rank: the LoRA head's rank that matches it.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        with readable(f"the configuration of {backbone_name}"):
            config = _config(backbone_name)
            lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        total = sum(p.numel() for p in lm.parameters())
        vocab, width = lm.get_output_embeddings().weight.shape
        lora_head = LoraHead(width, vocab, RANK).trainable_parameters()
        hyper_head = HyperHead(width, vocab, RANK).trainable_parameters()
        adapted = add_lora(lm, rank=RANK)
    layers = sum(p.numel() for p in lora_parameters(lm).values())
    counts = {"total": total, "lora_head": lora_head, "hyper_head": hyper_head, "lora_layers": layers}
    counts |= {"lora_everywhere": layers + lora_head, "matched_rank": matched_rank(width, vocab, RANK)}
    return counts | {"width": width, "vocab": vocab, "adapted_layers": len(adapted)}


def _config(name: str):
    if name in (*BUILT_IN, "gpt2"):  # of which random-gpt2 has the geometry
        return tiny.built_in_config("random-gpt2" if name == "gpt2" else name)
    folder = Path(name).is_dir()
    if "/" not in name and name not in SHORT_NAMES and not folder:
        raise unknown("backbone", name, [*BUILT_IN, *SHORT_NAMES])
    source = SHORT_NAMES.get(name, name)
    try:
        with readable(f"the configuration of {source}") if folder else nullcontext():
            return load_config(source, local_files_only=folder or not reachable())
    except (OSError, ValueError) as error:
        message = f"no configuration of {source!r} is at hand: use random-gpt2, smollm2 or a local folder"
        raise Unreachable(f"{message}, or check the name, connect and try again") from error


def losses_of(records: list[Record], folder: Path) -> dict[str, tuple]:
    """Run to nll and tokens (N,) of its test units: from `runs/<name>/` or a packed parquet in `folder`."""
    packed = {folder / f"{r.experiment}.parquet" for r in records}
    raw = {r.name: folder / r.name / "documents.parquet" for r in records}
    frames = [read_losses(path) for path in packed if path.is_file()]
    # Another process may be writing one of these runs again.
    with files.locked(folder / "runs") if any(p.parent.is_dir() for p in raw.values()) else nullcontext():
        frames += [read_losses(path).assign(run=name) for name, path in raw.items() if path.is_file()]
    if not frames:
        raise UserError(f"no per-document losses in {folder}: run the experiment there first")
    rows, articles = pd.concat(frames, ignore_index=True), articles_of(folder)
    rows = rows[(rows["split"] == "test") & rows["run"].isin([r.name for r in records])]
    keyed, out = rows.assign(corpus=rows["run"].map({r.name: r.corpus for r in records}).astype(str)), {}
    for name, of_corpus in keyed.groupby("corpus", sort=False):
        out |= {run: losses for (run, _), losses in by_unit(of_corpus, name, articles).items()}
    if lost := [r.name for r in records if r.name not in out]:
        what = f"has the record of {lost[0]} and not its losses: restore them, or run it again"
        raise DamagedFile(f"{folder} {what}")
    return out


def summary_frame(records: list[Record], folder: Path) -> pd.DataFrame:
    """One row per regime, corpus and budget: n seeds, nats per token and the difference from R0, with intervals."""
    runs: dict[tuple, list[Record]] = {}
    for r in sorted(records, key=lambda r: r.seed):
        budget = r.settings.get("data", {}).get("max_train_tokens")
        runs.setdefault((r.corpus, r.backbone, r.regime, budget), []).extend([r] * (r.status == "done"))
    done, rows = [r for of_regime in runs.values() for r in of_regime], []
    losses = losses_of(done, Path(folder)) if done else {}
    several = len({budget for *_, budget in runs}) > 1
    for (corpus, backbone, name, budget), of_regime in runs.items():
        if not of_regime:
            rows.append({"regime": name, "corpus": corpus, "n seeds": 0, "test nll": "diverged"})
            continue
        nll, tokens = np.stack([losses[r.name][0] for r in of_regime]), losses[of_regime[0].name][1]
        mean, first, against = mean_interval(nll, tokens), of_regime[0], "–"
        frozen = runs.get((corpus, backbone, "R0", budget), [])[: len(nll)]
        if frozen and name != "R0":
            against = contrast(nll, np.stack([losses[r.name][0] for r in frozen]), tokens).text(".4f")
        row = {"regime": name, "what": REGIMES[name].title if name in REGIMES else ""}
        row |= {"backbone": backbone, "corpus": corpus, "n seeds": mean.n, "documents": mean.documents}
        row |= {"parameters": first.trainable_parameters, "learning rate": first.learning_rate}
        row |= {"test nll": mean.text(".4f"), "difference from R0": against, "profile": first.profile}
        rows.append(row | ({"training tokens": budget or "all"} if several else {}))
    return pd.DataFrame(rows)


def nll_by_size(records: list[Record], folder: Path) -> tuple[dict[int, dict[str, np.ndarray]], np.ndarray]:
    """A corpus's learning curve: training tokens to each regime's nll (S, N) of the seeds all finished; tokens (N,)."""
    runs: dict[int, dict[str, dict[int, str]]] = {}
    done = [r for r in records if r.status == "done"]
    for r in done:
        runs.setdefault(r.data["tokens"]["train"], {}).setdefault(r.regime, {})[r.seed] = r.name
    losses, out = losses_of(done, Path(folder)), {}
    for size, of_size in sorted(runs.items()):
        seeds = shared_seeds([*of_size.values()])
        out[size] = {name: np.stack([losses[own[s]][0] for s in seeds]) for name, own in of_size.items()}
    return out, losses[done[0].name][1]


def sizes_frame(records: list[Record], folder: Path, first="R4-best", second="R3-best") -> pd.DataFrame:
    """Per size of the training text: each regime's gain over R0 in nats per token, and "difference".

    That is first minus second, with its 95 % interval and a verdict on "first is lower" (without Holm).
    """
    (by_size, tokens), rows = nll_by_size(records, folder), []
    for size, nll in by_size.items():
        means = {name: sums.sum() / (len(sums) * tokens.sum()) for name, sums in nll.items()}
        apart = contrast(nll[first], nll[second], tokens)
        row = {"training tokens": size} | {name: means["R0"] - mean for name, mean in means.items()}
        rows.append(row | apart.row() | {"verdict": verdict(apart, apart.p)})
    return pd.DataFrame(rows)


def all_rows(results: Path) -> list[dict]:
    """Rows of the released tables, then of the honest study's experiments, by column; what a row lacks is left out."""
    frames, rows = [], []
    for path in record_files(results):
        records = load_records(path)
        if "protocol" in records[0].data:
            continue
        frame = summary_frame(records, Path(results))
        frame.insert(0, "experiment", path.stem)
        frames.append(frame.assign(command=records[0].provenance["command"]))
    honest = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    for frame in (released_frame(load_results(results)), honest):
        plain = json.loads(frame.to_json(orient="records", double_precision=15))
        rows += [{name: value for name, value in row.items() if value is not None} for row in plain]
    return rows


def curve_frame(records: list[Record]) -> pd.DataFrame:
    """Validation and training loss by epoch, one row per record and validation."""
    fields = ("regime", "corpus", "seed", "learning_rate")
    return pd.DataFrame([{f: getattr(r, f) for f in fields} | point for r in records for point in r.curve])
