"""Does `fit --head auto` keep the right adapter? Three tasks of people's own texts, every candidate read on test.

    python -m chameleon_study.own_texts DATA [TASK …]    DATA holds alpaca/alpaca.jsonl, wikitext-2/test.txt

    1,200 instructions with answers (.jsonl) · a folder of documentation (.txt) · rows of WikiText-2 (.jsonl)
      ─ choose, heads alone ─▶ validation and test nats of each candidate ─▶ results/own-texts.json

Only here are all candidates read on test: `fit` reads the kept one.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from chameleon_lite import Backbone, load_backbone
from chameleon_lite.app.choose import choose
from chameleon_lite.app.fit_settings import FitSettings
from chameleon_lite.app.fitted import compared
from chameleon_lite.app.own_texts import load
from chameleon_lite.app.parts import parts_of
from chameleon_lite.processes import Processes

from .corpora import load_corpus
from .provenance import ROOT, provenance
from .stored import OWN_TEXTS, read, store_text

WITHIN = 0.002  # nats per token: how far the kept candidate's test loss may be from the best one's
ALPACA_ROWS = 1_200
PARAGRAPHS = 20  # of a file of documentation
LIMITED = FitSettings(layers=False, max_train_tokens=30_000, max_held_out=150)
# On all of the 1,200 records with the defaults of `fit`; elsewhere texts are plenty, and time on a CPU is not.
SETTINGS = {"alpaca": FitSettings(layers=False), "wikitext-2": LIMITED, "documentation": LIMITED}


def write_tasks(data: Path, folder: Path) -> dict[str, Path]:
    """What a person would hand to `fit`, made in `folder`: task's name to a file or folder."""
    paths = {name: folder / f"{name}.jsonl" for name in ("alpaca", "wikitext-2")}
    alpaca = (data / "alpaca" / "alpaca.jsonl").read_text(encoding="utf-8").splitlines()
    paths["alpaca"].write_text("\n".join(alpaca[:ALPACA_ROWS]), encoding="utf-8")
    rows = (data / "wikitext-2" / "test.txt").read_text(encoding="utf-8").splitlines()
    texts = pd.DataFrame({"text": [row for row in rows if row.strip()]})
    texts.to_json(paths["wikitext-2"], orient="records", lines=True)
    paths["documentation"] = folder / "docs"
    paths["documentation"].mkdir()
    documents = [vars(d) for part in load_corpus("docstrings").splits.values() for d in part]
    for library, group in pd.DataFrame(documents).groupby("group"):
        for first in range(0, len(group), PARAGRAPHS):
            text = "\n\n".join(group["text"][first : first + PARAGRAPHS])
            (paths["documentation"] / f"{library}-{first}.txt").write_text(text, encoding="utf-8")
    return paths


def measured(path: Path, backbone: Backbone, settings: FitSettings) -> dict:
    """The table of a task's candidates, with their test losses, and how far the kept one is from the best."""
    started = time.perf_counter()
    parts, clustering = parts_of(load(path, seed=settings.seed), backbone, settings)
    choice = choose(settings, backbone, parts, clustering, Processes())
    rows = choice.table.to_dict("records")
    for row, one in zip(rows, choice.outcomes):
        nll = np.asarray(one.cohort.nats("test", [one.member]))
        row["test"] = compared(nll, parts.tables["test"].n_scored, settings.seed)
    losses = [row["test"]["after"] for row in rows]
    gap = losses[choice.outcomes.index(choice.kept)] - min(losses)
    return {
        "settings": settings.model_dump(mode="json"),
        "texts": {split: len(table) for split, table in parts.tables.items()},
        "candidates": rows,
        "why": choice.why,
        "test gap to the best": gap,
        "within": bool(gap <= WITHIN),
        "seconds": time.perf_counter() - started,
    }


def main(data: str, *names: str, backbone: str = "smollm2", results: Path = ROOT / "results") -> None:
    """Measure the tasks of these names, or all, and store each in the record of `results` as it is finished."""
    facts = provenance("cpu", "python -m chameleon_study.own_texts DATA")  # of the code that begins
    facts |= {"backbone": backbone, "goal": WITHIN}
    loaded = load_backbone(backbone)
    with tempfile.TemporaryDirectory() as folder:
        for name, path in write_tasks(Path(data), Path(folder)).items():
            if name not in (names or [name]):
                continue
            task = measured(path, loaded, SETTINGS[name]) | facts
            print(f"{name}: {task['why']}; test gap {task['test gap to the best']:.4f}", flush=True)
            kept = json.loads(read(results / OWN_TEXTS)) if (results / OWN_TEXTS).is_file() else {}
            store_text(results / OWN_TEXTS, json.dumps(kept | {name: task}, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
