"""Records to tables: every mean with its n and interval, every row with its circumstances."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd

from chameleon_lite import files
from chameleon_lite.errors import DamagedFile, UserError

from .claims.contrasts import articles_of, by_unit, shared_seeds
from .claims.paper import published_parameters
from .claims.statistics import contrast, mean_interval, verdict
from .parameters import parameter_table
from .records import Record, load_records, load_results, record_files
from .regimes import REGIMES
from .released.tables import released_frame
from .stored import read_losses


def parameter_frame(backbone: str) -> pd.DataFrame:
    """The parameter column derived for a backbone, beside the paper's (Tables 1 and 2) where it has one."""
    paper = published_parameters() if "gpt2" in backbone else {}
    counts = parameter_table(backbone)
    rows = [(part, f"{n:,}", f"{paper[part]:,}" if part in paper else "–") for part, n in counts.items()]
    return pd.DataFrame(rows, columns=["part", "derived", "paper"])


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
            base = np.stack([losses[r.name][0] for r in frozen])
            against = contrast(nll, base, tokens).text(".4f")
        row = {"regime": name, "what": REGIMES[name].title if name in REGIMES else ""}
        row |= {"backbone": backbone, "corpus": corpus, "n seeds": mean.n, "documents": mean.documents}
        row |= {"parameters": first.trainable_parameters, "learning rate": first.learning_rate}
        row |= {"test nll": mean.text(".4f"), "difference from R0": against, "profile": first.profile}
        rows.append(row | ({"training tokens": budget or "all"} if several else {}))
    return pd.DataFrame(rows)


def nll_by_size(records: list[Record], folder: Path) -> tuple[dict[int, dict[str, np.ndarray]], np.ndarray]:
    """A corpus's learning curve: training tokens to each regime's nll sums (S, N), and the scored tokens (N,).

    Of a size only the seeds that all of its regimes finished.
    """
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


def results_frame(results: Path) -> pd.DataFrame:
    """The summary of every packed experiment of the honest study, with its command."""
    frames = []
    for path in record_files(results):
        records = load_records(path)
        if "protocol" in records[0].data:
            continue
        frame = summary_frame(records, Path(results))
        frame.insert(0, "experiment", path.stem)
        frame["command"] = records[0].provenance["command"]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def all_rows(results: Path) -> list[dict]:
    """Rows of the released tables, then of the honest study, by column; what a row lacks is left out."""
    rows = []
    for frame in (released_frame(load_results(results)), results_frame(results)):
        plain = json.loads(frame.to_json(orient="records", double_precision=15))
        rows += [{name: value for name, value in row.items() if value is not None} for row in plain]
    return rows


def curve_frame(records: list[Record]) -> pd.DataFrame:
    """Validation and training loss by epoch, one row per record and validation."""
    fields = ("regime", "corpus", "seed", "learning_rate")
    return pd.DataFrame([{f: getattr(r, f) for f in fields} | point for r in records for point in r.curve])
