"""What a corpus is: documents in three splits, with a content hash that survives export and read back."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from ..tokens import Document

__all__ = ["SPLITS", "Corpus", "Document", "lines"]
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Corpus:
    """Documents by split, with one line on where they came from and JSON-able `notes` about them."""

    name: str
    splits: dict[str, tuple[Document, ...]]
    source: str
    notes: dict = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """Hex sha256 over the canonical JSON lines of all splits, in order; name, source and notes don't count."""
        digest = hashlib.sha256()
        for line in lines(self):
            digest.update(line.encode() + b"\n")
        return digest.hexdigest()

    def counts(self) -> dict[str, dict[str, int]]:
        """For each split the number of documents, of scored characters and of groups."""
        return {
            split: {
                "documents": len(documents),
                "characters": sum(len(d.text) for d in documents),
                "groups": len({d.group for d in documents}),
            }
            for split, documents in self.splits.items()
        }


def lines(corpus: Corpus) -> Iterator[str]:
    """One canonical JSON line a document: sorted keys, no spaces, every field written."""
    for split in sorted(corpus.splits, key=lambda s: (SPLITS.index(s) if s in SPLITS else len(SPLITS), s)):
        for d in corpus.splits[split]:
            row = dict(
                split=split, id=d.id, text=d.text, group=d.group, prompt=d.prompt, instruction=d.instruction
            )
            yield json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
