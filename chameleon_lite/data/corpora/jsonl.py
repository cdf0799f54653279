"""A corpus as one file, so that a machine with other library versions can run on the very same text."""

import json
from pathlib import Path

from ... import cache
from ...errors import DamagedFile, UserError
from .documents import SPLITS, Corpus, Document, lines

MARK = "chameleon_lite_corpus"  # the key that tells an exported corpus from any other JSONL


def write_jsonl(corpus: Corpus, path: Path | str) -> Path:
    """Write a header line (name, source, notes, hash), then one line a document; atomic."""
    header = {
        MARK: 1,
        "name": corpus.name,
        "source": corpus.source,
        "notes": corpus.notes,
        "hash": corpus.hash,
    }
    with cache.atomic(path) as part, open(part, "w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(header, ensure_ascii=False) + "\n")
        file.writelines(line + "\n" for line in lines(corpus))
    return Path(path)


def is_exported(path: Path | str) -> bool:
    """Whether a file begins with the header that `write_jsonl` writes."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.readline().startswith(f'{{"{MARK}"')


def read_jsonl(path: Path | str) -> Corpus:
    """Read back what `write_jsonl` wrote, with the same hash; DamagedFile when the content has another."""
    if not Path(path).is_file():
        raise UserError(f"no file at {path}; export one with: chameleon-lite corpus docstrings --out {path}")
    if not is_exported(path):
        raise UserError(
            f"{path} is not an exported corpus: its first line is not the header that export writes"
        )
    documents: dict[str, list[Document]] = {split: [] for split in SPLITS}
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            header = json.loads(file.readline())
            for line in file:
                row = json.loads(line)
                documents.setdefault(row.pop("split"), []).append(Document(**row))
        splits = {split: tuple(rows) for split, rows in documents.items()}
        corpus = Corpus(header["name"], splits, header["source"], header["notes"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path} is damaged ({type(error).__name__}: {error}); export it again") from None
    if corpus.hash != header["hash"]:
        found, promised = corpus.hash[:12], header["hash"][:12]
        raise DamagedFile(f"{path} is damaged: content {found}…, header {promised}…; export it again")
    return corpus
