"""Documents become one flat table of token ids.

    document n:  ids[offsets[n] : offsets[n + 1]]  =  prefix[n] tokens that are never scored, then scored ones
                 prefix: a first token, if any, then the prompt or `prefix_tokens` of a plain text

No padding is stored; `padded` makes it for the rows of one batch, with a mask, so that a pad token is never
taken for an ordinary one. No special token is added, except a first token where the tokenizer puts one.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .backbones.formats import opening
from .errors import UserError

IGNORED = -100  # the label of a position that is not scored
CHUNK = 1024  # documents per call of the tokenizer: its lists of offsets are many times larger than the ids
SHORT = "shorter than prefix + scored"
Rows = Sequence[int] | np.ndarray | Tensor  # document indices


@dataclass(frozen=True)
class Document:
    """One text. Only `text` is ever scored; `prompt` is the context before it.

    `instruction` is the part of `prompt` that is the bare instruction. `group` is where the document comes
    from (a library, an article): no conditioning group; no model reads it, the study compares it to clusters.
    """

    id: str
    text: str
    group: str = ""
    prompt: str = ""
    instruction: str = ""


def cumulative(lengths: np.ndarray) -> np.ndarray:
    """Lengths (N,) to offsets (N + 1,) int64."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def ragged(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Flat indices of N runs: starts (N,), lengths (N,) to (lengths.sum(),) int64, run after run."""
    lengths = np.asarray(lengths, dtype=np.int64)
    run = cumulative(lengths)
    return np.arange(run[-1]) + np.repeat(np.asarray(starts, dtype=np.int64) - run[:-1], lengths)


def by_length(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Places in lengths (N,), shortest first, in runs of up to `budget` padded tokens, or of one row."""
    order = np.argsort(lengths, kind="stable")
    first = 0
    for last in range(1, len(order) + 1):
        if last == len(order) or lengths[order[last]] * (last + 1 - first) > budget:
            yield order[first:last]
            first = last


@dataclass(frozen=True, eq=False)
class TokenTable:
    """N documents as flat token ids; L is the number of all tokens."""

    ids: np.ndarray  # (L,) int32
    offsets: np.ndarray  # (N + 1,) int64
    prefix: np.ndarray  # (N,) int32: how many first tokens, at least 1, are never scored
    condition: np.ndarray  # (N, 2) int32: span [start, stop) inside the document that the condition may read
    names: tuple[str, ...]
    groups: tuple[str, ...]
    scored_bytes: np.ndarray  # (N,) int64: UTF-8 bytes of the scored text
    dropped: dict[str, int] = field(default_factory=dict)  # reason ▶ documents; truncated ones are kept
    pad_id: int = 0

    def __len__(self) -> int:
        return len(self.prefix)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens per document, (N,) int64."""
        return np.diff(self.offsets)

    @cached_property
    def n_scored(self) -> np.ndarray:
        """Scored tokens per document, (N,) int64."""
        return self.lengths - self.prefix

    @property
    def hash(self) -> str:
        """Hex sha256 of token ids, offsets, prefixes, condition spans and names; not of `pad_id`."""
        digest = hashlib.sha256()
        for array in (self.ids, self.offsets, self.prefix, self.condition):
            digest.update(array.tobytes())
        digest.update("\n".join(self.names).encode())
        return digest.hexdigest()

    def take(self, index: Rows) -> "TokenTable":
        """The documents at `index`, in that order, as a table."""
        index = np.asarray(index, dtype=np.int64)
        lengths = self.lengths[index]
        parts = {name: getattr(self, name)[index] for name in ("prefix", "condition", "scored_bytes")}
        parts |= {name: tuple(getattr(self, name)[i] for i in index) for name in ("names", "groups")}
        ids = self.ids[ragged(self.offsets[index], lengths)]
        return replace(self, ids=ids, offsets=cumulative(lengths), **parts)

    def padded(self, rows: Rows, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Documents `rows` (B,) as ids (B, T) int64 and mask (B, T) bool, padded on the right.

        T is `length` (longer documents are cut there), or the longest of the rows.
        """
        rows = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths[rows]
        time = np.arange(length or lengths.max(initial=1))  # (T,)
        mask = time < lengths[:, None]  # (B, T)
        index = np.where(mask, self.offsets[rows][:, None] + time, 0)
        ids = np.where(mask, self.ids[index], self.pad_id).astype(np.int64)  # (B, T)
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def targets(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The study's: of S scored tokens the place of the predicting state, id, document; each (S,) int64.

        The prediction is shifted: the state at place t - 1 predicts the token at t.
        """
        flat = ragged(self.offsets[:-1] + self.prefix, self.n_scored)  # (S,)
        return flat - 1, self.ids[flat].astype(np.int64), np.repeat(np.arange(len(self)), self.n_scored)


def tokenise(
    documents: Sequence[Document],
    tokenizer: Callable,
    *,
    max_length: int = 256,
    prefix_tokens: int = 16,
    min_scored: int = 8,
    condition_on: str = "prompt",
) -> TokenTable:
    """Documents to a TokenTable; the tokenizer is called on lists of texts.

    Prompt and response are tokenised apart and joined. A prompt keeps its last max_length − min_scored tokens
    (less a first token); then the end of the text is cut, to `max_length` in all. Documents with fewer than
    `min_scored` scored tokens are dropped and counted. Of a prompt with an instruction the condition reads
    what `condition_on` says. Raises UserError for contradictions and when nothing remains.
    """
    _check(max_length, prefix_tokens, min_scored, condition_on)
    documents, begin = list(documents), opening(tokenizer)
    rows, dropped = [], {SHORT: 0, "truncated": 0, "prompt truncated": 0}
    for start in range(0, len(documents), CHUNK):
        for e in _encoded(documents[start : start + CHUNK], tokenizer, condition_on):
            text_prefix = 0 if e.prompt else prefix_tokens  # tokens of the text that are not scored
            cut = max(0, len(begin + e.prompt) + min_scored - max_length)  # prompt tokens lost on the left
            prompt = begin + e.prompt[cut:]
            n_text = min(len(e.text), max_length - len(prompt))
            if n_text - text_prefix < min_scored:
                dropped[SHORT] += 1
                continue
            dropped["truncated"] += n_text < len(e.text)
            dropped["prompt truncated"] += cut > 0
            ids, prefix = np.array(prompt + e.text[:n_text], dtype=np.int32), len(prompt) + text_prefix
            span = tuple(min(max(0, place - cut) + len(begin), prefix) for place in e.instruction)
            span = span if span[0] < span[1] else (0, prefix)
            rows.append((e.document, ids, prefix, span, e.bytes(text_prefix, n_text)))
    if not rows:
        need = f"{prefix_tokens} prefix (or prompt) + {min_scored} scored tokens"
        raise UserError(f"no document of {len(documents)} has {need}; lower prefix_tokens or min_scored")
    documents, ids, prefix, span, scored_bytes = zip(*rows)
    return TokenTable(
        ids=np.concatenate(ids),
        offsets=cumulative([len(row) for row in ids]),
        prefix=np.array(prefix, dtype=np.int32),
        condition=np.array(span, dtype=np.int32),
        names=tuple(d.id for d in documents),
        groups=tuple(d.group for d in documents),
        scored_bytes=np.array(scored_bytes, dtype=np.int64),
        dropped=dropped,
        pad_id=pad_id(tokenizer),
    )


def pad_id(tokenizer: Callable) -> int:
    """The tokenizer's padding token, its end-of-text token where it has none, else 0."""
    ids = (getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
    return next((int(i) for i in ids if i is not None), 0)


def _check(max_length: int, prefix_tokens: int, min_scored: int, condition_on: str) -> None:
    if condition_on not in ("prompt", "instruction"):
        raise UserError(f"condition_on is 'prompt' or 'instruction', not {condition_on!r}")
    if prefix_tokens < 1 or min_scored < 0:
        raise UserError("prefix_tokens is at least 1 (nothing predicts a first token), min_scored at least 0")
    if max_length < prefix_tokens + max(min_scored, 1):
        need = f"{prefix_tokens} prefix and {min_scored} scored tokens"
        raise UserError(f"max_length {max_length} has no room for {need}")


class _Encoded(NamedTuple):
    document: Document
    prompt: list[int]  # token ids
    text: list[int]
    spans: list[tuple[int, int]] | None  # characters [start, stop) of each token of `text`
    instruction: tuple[int, int]  # prompt tokens [start, stop) of the instruction; (0, 0) where there is none

    def bytes(self, start: int, stop: int) -> int:
        """UTF-8 bytes of the text's tokens [start, stop); without `spans` in equal shares."""
        if self.spans is None:
            return len(self.document.text.encode()) * (stop - start) // max(len(self.text), 1)
        first, last = (self.spans[n - 1][1] if n else 0 for n in (start, stop))
        return len(self.document.text[first:last].encode())


def _encoded(chunk: list[Document], tokenizer: Callable, condition_on: str) -> Iterator[_Encoded]:
    """The documents of one chunk with their token ids, one call of the tokenizer per kind of text."""
    fast = getattr(tokenizer, "is_fast", False)

    def ids(texts: list[str], **options) -> dict:
        if not any(texts):  # plain text: every prompt is empty
            return {"input_ids": [[]] * len(texts)}
        options = options | {"return_attention_mask": False, "verbose": False} if fast else {}
        return tokenizer(texts, add_special_tokens=False, **options)

    text = ids([d.text for d in chunk], return_offsets_mapping=True)
    prompts = ids([d.prompt for d in chunk])["input_ids"]
    before = until = [[]] * len(chunk)
    if condition_on == "instruction":
        parts = [d.prompt.partition(d.instruction) if d.instruction else ("", "", "") for d in chunk]
        # An instruction that the prompt lacks gives twice the same length: an empty span.
        before = ids([head for head, _, _ in parts])["input_ids"]
        until = ids([head + part for head, part, _ in parts])["input_ids"]
    instructions = [(len(first), len(last)) for first, last in zip(before, until)]
    spans = text.get("offset_mapping") or [None] * len(chunk)
    yield from map(_Encoded, chunk, prompts, text["input_ids"], spans, instructions)
