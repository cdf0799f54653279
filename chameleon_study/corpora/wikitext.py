"""WikiText-2: a document is a row, `group` is its article.

    ␣=␣Title␣=␣        a level-1 heading begins an article       ␣=␣=␣Section␣=␣=␣   does not

Rows come from the hub, or from a folder that holds train.txt, validation.txt and test.txt, one row a line.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from chameleon_lite.app.corpus import Corpus, overlaps
from chameleon_lite.app.rows import flaw_of
from chameleon_lite.errors import UserError
from chameleon_lite.text import Document

from . import hub

REPOSITORY, CONFIG = "Salesforce/wikitext", "wikitext-2-raw-v1"
ARTICLE = re.compile(r"\s*= [^=](.*[^=])? =\s*")
INSTEAD = "give --data-dir FOLDER with train.txt, validation.txt and test.txt, or use the corpus docstrings"

LITE = "training is the official test rows, validation"
NOTES = {
    "wikitext-2-lite-released": f"lite, as released: {LITE} all official validation rows",
    "wikitext-2-lite": f"lite: {LITE} and test are the official validation rows, every other article each",
}


def load(name: str = "wikitext-2", *, data_dir: Path | None = None, seed: int = 0) -> Corpus:
    """One of the three corpora from WikiText-2's official splits; `seed` changes nothing, articles decide.

    "wikitext-2": the official splits. "wikitext-2-lite": training = the official test rows, validation and
    test = every other article of the official validation rows. "wikitext-2-lite-released": training = the
    official test rows, validation = all official validation rows, as the released scripts use them; no test.
    """
    needed = ("train", "validation", "test") if name == "wikitext-2" else ("validation", "test")
    rows, source = _rows(needed, data_dir)
    official = {split: articles(rows[split], split) for split in needed}
    note, splits = "official, by article", official
    if name != "wikitext-2":
        held, note = official["validation"], NOTES[name]
        validation, test = (held, ()) if name.endswith("released") else halve(held)
        splits = {"train": official["test"], "validation": validation, "test": test}
    return Corpus(name, splits, source, {"split": note} | overlaps(splits))


def articles(rows: Sequence[str], split: str) -> tuple[Document, ...]:
    """Rows that are not blank as documents in order, headings included, each with its article as group."""
    documents, article, title = [], 0, ""
    for row, after in zip((row.rstrip("\n") for row in rows), (*rows[1:], "")):
        if not row.strip():
            continue
        if ARTICLE.fullmatch(row) and not after.strip():  # a formula that looks like a heading has text below
            article, title = article + 1, row.strip(" =") or title  # two articles may share a title
        group = f"{split}-{article}: {title}"
        documents.append(Document(f"{split}-{len(documents)}", row, group=group))
    return tuple(documents)


def halve(documents: Sequence[Document]) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """Every other article to either half, in order."""
    order = {group: i for i, group in enumerate(dict.fromkeys(d.group for d in documents))}
    return tuple(tuple(d for d in documents if order[d.group] % 2 == side) for side in (0, 1))


def _rows(needed: Sequence[str], data_dir: Path | None) -> tuple[dict[str, list[str]], str]:
    if data_dir is None:
        fetched = hub.fetch(REPOSITORY, CONFIG, instead=INSTEAD)
        rows = {split: [row["text"] for row in fetched[split]] for split in needed}
        return rows, f"hub {REPOSITORY} {CONFIG}"
    folder = Path(data_dir)
    folder = folder / "wikitext-2" if (folder / "wikitext-2").is_dir() else folder
    missing = [f"{split}.txt" for split in needed if not (folder / f"{split}.txt").is_file()]
    if missing == ["train.txt"]:
        raise UserError(f"{folder} has no train.txt; add it, or use the corpus wikitext-2-lite")
    if missing:
        raise UserError(f"{folder} has no {' and '.join(missing)}; {INSTEAD}")
    texts = {split: _text(folder / f"{split}.txt") for split in needed}
    return {split: text.split("\n") for split, text in texts.items()}, f"folder {folder.name}: official files"


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    if flaw := flaw_of(text):
        raise UserError(f"{path} {flaw}")
    return text
