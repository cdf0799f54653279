"""Published corpora: any data set of the Hugging Face hub, WikiText-2 and Alpaca, from there or from their files.

WikiText-2   a document is a row, `group` is its article
               ␣=␣Title␣=␣   a level-1 heading begins an article       ␣=␣=␣Section␣=␣=␣   does not
Alpaca       the prompt is instruction and input, the output is scored; equal instructions and near-duplicates stay on
             one side (released code: validation is a tenth of the rows that are also trained on)

Without network and cache the answer comes within a second.
"""

import json
import lzma
import os
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from chameleon_lite.app import own_texts
from chameleon_lite.app.corpus import Corpus, overlaps
from chameleon_lite.app.files_read import read_rows
from chameleon_lite.app.rows import flaw_of, parsed
from chameleon_lite.backbones.hub import reachable
from chameleon_lite.errors import Unreachable, UserError
from chameleon_lite.text import Document

ANY = "use a file (--corpus FILE.jsonl), or the corpus docstrings, which needs no network"
SPLIT_NAMES = {"valid": "validation", "val": "validation", "dev": "validation"}
WIKITEXT, WIKITEXT_CONFIG = "Salesforce/wikitext", "wikitext-2-raw-v1"
WIKITEXT_INSTEAD = "give --data-dir FOLDER with train, validation and test.txt, or use the corpus docstrings"
ARTICLE = re.compile(r"\s*= [^=](.*[^=])? =\s*")
LITE = "training is the official test rows, validation"
NOTES = {
    "wikitext-2": "official, by article",
    "wikitext-2-lite": f"lite: {LITE} and test are the official validation rows, every other article each",
    "wikitext-2-lite-released": f"lite, as released: {LITE} all official validation rows",
}
ALPACAS = {"alpaca": "tatsu-lab/alpaca", "alpaca-cleaned": "yahma/alpaca-cleaned"}
ALPACA_INSTEAD = "give --data-dir FOLDER with Alpaca's .json or .jsonl, or use docstrings-instructions"


def load(repository: str, *, seed: int = 0) -> Corpus:
    """The data set `owner/name` with text, prompt/response or instruction/output columns.

    Its own train, validation and test are used where it has all three; otherwise its rows are split 80/10/10.
    """
    if repository.count("/") != 1:
        raise UserError(f"hub:{repository} is not hub:owner/name")
    rows = [{**row, "split": split} for split, part in fetch(repository).items() for row in part]
    name, source = repository.split("/")[1], f"hub {repository}"
    return own_texts.corpus(name, source, parsed(rows), f"hub:{repository}", seed=seed)


def fetch(repository: str, config: str | None = None, *, instead: str = ANY) -> dict[str, list[dict]]:
    """All rows by split; Unreachable, saying what to do `instead`, without network and cache."""
    online = reachable()
    if not online and not cached(repository):
        raise Unreachable(f"cannot reach the hub and {repository} is not cached: {instead}")
    try:
        from unittest.mock import patch  # sets a name and puts it back

        import transformers  # noqa: F401  (before datasets, which else prints an import error)
        from datasets import load_dataset
        from huggingface_hub import constants
    except ImportError:
        raise UserError(f"reading {repository} needs a library: pip install datasets; or {instead}") from None
    try:
        # the client's offline switch, without which a cached data set comes after 23 seconds of retries
        with nullcontext() if online else patch.object(constants, "HF_HUB_OFFLINE", True):
            loaded = load_dataset(repository, config)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().split("\n")[0][:160]
        raise Unreachable(f"cannot load {repository} from the hub ({first}): {instead}") from None
    return {SPLIT_NAMES.get(str(split), str(split)): part.to_list() for split, part in loaded.items()}


def cached(repository: str) -> bool:
    """Whether the hub's caches hold anything of this data set."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub"))
    hub /= f"datasets--{repository.replace('/', '--')}"
    datasets = Path(os.environ.get("HF_DATASETS_CACHE") or Path(home, "datasets"))
    datasets /= repository.replace("/", "___")
    return any(folder.expanduser().is_dir() for folder in (hub, datasets))


def wikitext(name: str, *, data_dir: Path | None = None, seed: int = 0) -> Corpus:
    """One of the three corpora from WikiText-2's official splits; `seed` changes nothing, articles decide.

    NOTES has how each is split; wikitext-2-lite-released, as the released scripts have it, has no test part.
    """
    needed = ("train", "validation", "test") if name == "wikitext-2" else ("validation", "test")
    rows, source = _wikitext_rows(needed, data_dir)
    splits = {split: articles(rows[split], split) for split in needed}
    if name != "wikitext-2":
        held = splits["validation"]
        number = {group: i for i, group in enumerate(dict.fromkeys(d.group for d in held))}
        halves = [tuple(d for d in held if number[d.group] % 2 == side) for side in (0, 1)]
        validation, test = (held, ()) if name.endswith("released") else halves
        splits = {"train": splits["test"], "validation": validation, "test": test}
    return Corpus(name, splits, source, {"split": NOTES[name]} | overlaps(splits))


def articles(rows: Sequence[str], split: str) -> tuple[Document, ...]:
    """Rows that are not blank as documents in order, headings included, each with its article as group."""
    documents, article, title = [], 0, ""
    for row, after in zip((row.rstrip("\n") for row in rows), (*rows[1:], "")):
        if not row.strip():
            continue
        if ARTICLE.fullmatch(row) and not after.strip():  # a formula that looks like a heading has text below
            article, title = article + 1, row.strip(" =") or title  # two articles may share a title
        documents.append(Document(f"{split}-{len(documents)}", row, group=f"{split}-{article}: {title}"))
    return tuple(documents)


def _wikitext_rows(needed: Sequence[str], data_dir: Path | None) -> tuple[dict[str, list[str]], str]:
    if data_dir is None:
        fetched = fetch(WIKITEXT, WIKITEXT_CONFIG, instead=WIKITEXT_INSTEAD)
        rows = {split: [row["text"] for row in fetched[split]] for split in needed}
        return rows, f"hub {WIKITEXT} {WIKITEXT_CONFIG}"
    folder = data_dir / "wikitext-2" if (data_dir / "wikitext-2").is_dir() else data_dir
    missing = [f"{split}.txt" for split in needed if not (folder / f"{split}.txt").is_file()]
    if missing == ["train.txt"]:
        raise UserError(f"{folder} has no train.txt; add it, or use the corpus wikitext-2-lite")
    if missing:
        raise UserError(f"{folder} has no {' and '.join(missing)}; {WIKITEXT_INSTEAD}")
    rows = {split: _lines(folder / f"{split}.txt") for split in needed}
    return rows, f"folder {folder.name}: official files"


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    for number, line in enumerate(lines, start=1):
        if flaw := flaw_of(line):
            raise UserError(f"{path}, line {number} {flaw}")
    return lines


def alpaca(name: str, *, data_dir: Path | None = None, seed: int = 0) -> Corpus:
    """The hub's data set, or the .jsonl, .json or .json.xz file in `data_dir` or `data_dir`/alpaca."""
    if data_dir is None:
        rows = parsed(row for split in fetch(ALPACAS[name], instead=ALPACA_INSTEAD).values() for row in split)
        where = f"hub {ALPACAS[name]}"
    else:
        path = _alpaca_file(data_dir, name)
        rows = parsed(_unpacked(path)) if path.suffix == ".xz" else read_rows(path)
        where = f"file {path.name}"
    return own_texts.corpus(name, where, rows, where, seed=seed)


def _alpaca_file(data_dir: Path, name: str) -> Path:
    if data_dir.is_file():
        return data_dir
    names = (name, f"{name}-data", name.replace("-", "-data-"))
    for folder in (data_dir / name, data_dir / "alpaca", data_dir):  # the most specific folder first
        files = sorted(path for ending in ("jsonl", "json", "json.xz") for path in folder.glob(f"*.{ending}"))
        named = [f for f in files if f.name.partition(".")[0].replace("_", "-") in names] or files
        if len(named) == 1:
            return named[0]
        if files:
            here = f"{folder} holds {len(files)} .json(.xz) or .jsonl files"
            raise UserError(f"{here}; keep one, or name it {name}.jsonl")
    raise UserError(f"no .json or .jsonl in {data_dir}, nor in a folder alpaca in it; {ALPACA_INSTEAD}")


def _unpacked(path: Path) -> list:
    """The list of rows in a .json.xz file."""
    try:
        with lzma.open(path) as file:
            content = json.load(file)
    except (lzma.LZMAError, EOFError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged, or holds no JSON ({error}): fetch it again") from None
    if not isinstance(content, list):
        raise UserError(f"{path} holds one {type(content).__name__}; it must be a list of rows")
    return content
