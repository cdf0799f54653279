"""Stanford Alpaca and its cleaned variant: the prompt is instruction and input, the output is scored.

Released code: validation is a tenth of the rows that are also trained on. Here: equal instructions and
near-duplicates stay on one side.
"""

from pathlib import Path

from chameleon_lite.app import own_texts
from chameleon_lite.app.corpus import Corpus
from chameleon_lite.app.rows import parsed, read_rows
from chameleon_lite.errors import UserError

from . import hub

REPOSITORIES = {"alpaca": "tatsu-lab/alpaca", "alpaca-cleaned": "yahma/alpaca-cleaned"}
INSTEAD = "give --data-dir FOLDER with Alpaca's .json or .jsonl, or use the corpus docstrings-instructions"


def load(name: str = "alpaca", *, data_dir: Path | None = None, seed: int = 0) -> Corpus:
    """The rows of the hub's data set, or of the JSON or JSONL file in `data_dir` or `data_dir`/alpaca."""
    if data_dir is None:
        fetched = hub.fetch(REPOSITORIES[name], instead=INSTEAD)
        rows = parsed(row for split in fetched.values() for row in split)
        where = f"hub {REPOSITORIES[name]}"
    else:
        path = _file(Path(data_dir), name)
        rows, where = read_rows(path), f"file {path.name}"
    return own_texts.corpus(name, where, rows, where, seed=seed)


def _file(data_dir: Path, name: str) -> Path:
    if data_dir.is_file():
        return data_dir
    names = (name, f"{name}-data", name.replace("-", "-data-"))
    for folder in (data_dir / name, data_dir / "alpaca", data_dir):  # the most specific folder first
        files = sorted([*folder.glob("*.jsonl"), *folder.glob("*.json")])
        named = [f for f in files if f.stem.replace("_", "-") in names] or files
        if len(named) == 1:
            return named[0]
        if files:
            here = f"{folder} holds {len(files)} .json or .jsonl files"
            raise UserError(f"{here}; keep one, or name it {name}.jsonl")
    raise UserError(f"no .json or .jsonl in {data_dir}, nor in a folder alpaca in it; {INSTEAD}")
