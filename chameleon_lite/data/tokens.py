"""Documents become one flat table of token ids.

    document n:  ids[offsets[n] : offsets[n + 1]]  =  prefix[n] tokens that are never scored, then scored ones
                 plain text: the first m tokens are the prefix · prompt and response: the prompt is the prefix

No padding is stored; `padded` makes it for the rows of one batch, with a mask, so that a pad token is never
confused with an ordinary token of the same id. No token is added at either end.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .corpora.documents import Document
from .encoding import Encoded, encode, held
from .ragged import cumulative, ragged

IGNORED = -100  # the label of a position that is not scored
CHUNK = (
    1024  # documents given to the tokenizer at once; more is slower: what it returns no longer fits a cache
)
SHORT = "shorter than prefix + scored"


@dataclass(frozen=True, eq=False)
class TokenTable:
    """N documents as flat token ids; L is the number of all tokens."""

    ids: np.ndarray  # (L,) int32
    offsets: np.ndarray  # (N + 1,) int64
    prefix: np.ndarray  # (N,) int32: tokens at the start that are never scored, at least 1
    condition: np.ndarray  # (N, 2) int32: span [start, stop) inside the document that the condition may read
    names: tuple[str, ...]
    groups: tuple[str, ...]
    scored_bytes: np.ndarray  # (N,) int64: UTF-8 bytes of the scored text
    dropped: dict[str, int] = field(default_factory=dict)  # why ▶ documents; also how many were truncated
    pad_id: int = 0

    def __len__(self) -> int:
        return len(self.prefix)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens a document, (N,) int64; kept, because every batch asks for some of them."""
        return np.diff(self.offsets)

    @cached_property
    def n_scored(self) -> np.ndarray:
        """Scored tokens a document, (N,) int64."""
        return self.lengths - self.prefix

    @property
    def hash(self) -> str:
        """Hex sha256 of everything that changes a loss or a condition."""
        digest = hashlib.sha256()
        for array in (self.ids, self.offsets, self.prefix, self.condition):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update("\n".join(self.names).encode())
        return digest.hexdigest()

    def take(self, index: Sequence[int] | np.ndarray | Tensor) -> "TokenTable":
        """The documents at `index`, in that order, as a table of their own."""
        index = np.asarray(index, dtype=np.int64)
        lengths = self.lengths[index]
        return TokenTable(
            ids=self.ids[ragged(self.offsets[index], lengths)],
            offsets=cumulative(lengths),
            prefix=self.prefix[index],
            condition=self.condition[index],
            names=tuple(self.names[i] for i in index),
            groups=tuple(self.groups[i] for i in index),
            scored_bytes=self.scored_bytes[index],
            dropped=self.dropped,
            pad_id=self.pad_id,
        )

    def padded(
        self, rows: Sequence[int] | np.ndarray | Tensor, length: int | None = None
    ) -> tuple[Tensor, Tensor]:
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
        """All S scored tokens: flat position of the state that predicts each, its id, its document; each (S,) int64.

        The prediction is shifted: the state at position t - 1 predicts the token at t.
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
    """Documents to a TokenTable; the tokenizer is called on lists of texts and adds nothing at the ends.

    Prompt and response are tokenised apart and joined. A document longer than `max_length` tokens loses the
    start of its prompt, down to what leaves room for `min_scored` response tokens, then the end of its text.
    Documents with fewer than `min_scored` scored tokens are dropped and counted. `condition_on` chooses what
    the condition reads where a prompt has an instruction: the whole "prompt" or the "instruction" alone.
    Raises UserError for settings that cannot be met and when nothing remains.
    """
    _check(max_length, prefix_tokens, min_scored, condition_on)
    documents = list(documents)
    with closing(_chunks(documents, tokenizer)) as chunks:
        parts = [
            _part(*chunk, tokenizer, max_length, prefix_tokens, min_scored, condition_on) for chunk in chunks
        ]
    if not sum(map(len, parts)):
        need = f"{prefix_tokens} prefix (or a prompt) + {min_scored} scored tokens"
        raise UserError(
            f"no document of {len(documents)} has {need}; lower prefix_tokens or min_scored, or add text"
        )
    arrays = ("ids", "prefix", "condition", "scored_bytes")
    return TokenTable(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays},
        offsets=cumulative(np.concatenate([part.lengths for part in parts])),
        names=tuple(chain.from_iterable(part.names for part in parts)),
        groups=tuple(chain.from_iterable(part.groups for part in parts)),
        dropped={why: sum(part.dropped[why] for part in parts) for why in parts[0].dropped},
        pad_id=_pad_id(tokenizer),
    )


def _chunks(
    documents: list[Document], tokenizer: Callable
) -> Iterator[tuple[list[Document], Encoded, Encoded]]:
    """Chunks of documents with their prompts and texts encoded, where that may be done a chunk ahead.

    What a tokenizer returns is many times larger than the ids: two chunks' are held at a time.
    """

    def both(chunk: list[Document]) -> tuple[list[Document], Encoded, Encoded]:
        prompts = [d.prompt for d in chunk]
        return chunk, encode(prompts, tokenizer, characters=False), encode([d.text for d in chunk], tokenizer)

    chunks = [documents[start : start + CHUNK] for start in range(0, len(documents), CHUNK)]
    with held(tokenizer) as beside:
        if not beside:
            yield from map(both, chunks)
            return
        with ThreadPoolExecutor(1) as other:
            before = None
            for chunk in [*chunks, None]:
                ahead = None if chunk is None else other.submit(both, chunk)
                if before is not None:
                    yield before.result()
                before = ahead


def _part(
    documents, prompt: Encoded, text: Encoded, tokenizer, max_length, prefix_tokens, min_scored, condition_on
) -> TokenTable:
    """The table of one chunk of documents; it may have none."""
    n_prompt = np.minimum(prompt.lengths, max_length - min_scored)
    n_text = np.minimum(text.lengths, max_length - n_prompt)
    prefix = np.where(n_prompt > 0, n_prompt, prefix_tokens)  # (N,)
    keep = np.flatnonzero(n_prompt + n_text - prefix >= min_scored)
    cut = prompt.lengths - n_prompt  # (N,) prompt tokens lost on the left
    dropped = {
        SHORT: len(documents) - len(keep),
        "truncated": int((n_text < text.lengths)[keep].sum()),
        "prompt truncated": int((cut > 0)[keep].sum()),
    }
    kept = [documents[i] for i in keep]
    n_prompt, n_text, prefix, cut = n_prompt[keep], n_text[keep], prefix[keep], cut[keep]
    span = np.stack([np.zeros_like(prefix), prefix], axis=1)  # (N, 2)
    if condition_on == "instruction":
        span = _instruction_spans(kept, tokenizer, cut, span)
    skipped = np.where(n_prompt > 0, 0, prefix)  # (N,) text tokens that are prefix, not scored
    prompt_from, text_from = cumulative(prompt.lengths)[keep] + cut, cumulative(text.lengths)[keep]
    return TokenTable(
        ids=_joined(prompt.ids, prompt_from, n_prompt, text.ids, text_from, n_text),
        offsets=cumulative(n_prompt + n_text),
        prefix=prefix.astype(np.int32),
        condition=span.astype(np.int32),
        names=tuple(d.id for d in kept),
        groups=tuple(d.group for d in kept),
        scored_bytes=_scored_bytes(kept, keep, text, skipped, n_text),
        dropped=dropped,
    )


def _check(max_length: int, prefix_tokens: int, min_scored: int, condition_on: str) -> None:
    if condition_on not in ("prompt", "instruction"):
        raise UserError(f"condition_on is 'prompt' or 'instruction', not {condition_on!r}")
    if prefix_tokens < 1 or min_scored < 0:
        raise UserError(
            "prefix_tokens must be at least 1 (nothing predicts a first token) and min_scored at least 0"
        )
    if max_length < prefix_tokens + max(min_scored, 1):
        need = f"{prefix_tokens} prefix and {min_scored} scored tokens"
        raise UserError(f"max_length {max_length} has no room for {need}; raise it")


def _joined(prompt, prompt_from, n_prompt, text, text_from, n_text) -> np.ndarray:
    """Of each document n_prompt ids of `prompt`, then n_text ids of `text`, all flat: (L,) int32."""
    starts = cumulative(n_prompt + n_text)
    ids = np.empty(starts[-1], dtype=np.int32)
    ids[ragged(starts[:-1], n_prompt)] = prompt[ragged(prompt_from, n_prompt)]
    ids[ragged(starts[:-1] + n_prompt, n_text)] = text[ragged(text_from, n_text)]
    return ids


def _scored_bytes(kept: list[Document], at: np.ndarray, text: Encoded, skipped, n_text) -> np.ndarray:
    """UTF-8 bytes of each document's scored text, (N,) int64; document n is number at[n] of `text`.

    Exact with a fast tokenizer; others don't say which characters a token covers, and the text's bytes are
    shared out evenly over its tokens (exact where every token has as many bytes).
    """
    if text.characters is None:
        total = np.array([len(d.text.encode()) for d in kept], dtype=np.int64)
        return total * (n_text - skipped) // np.maximum(text.lengths[at], 1)
    first, stop = text.stops(at, skipped - 1), text.stops(at, n_text - 1)
    return np.array([len(d.text[a:b].encode()) for d, a, b in zip(kept, first, stop)], dtype=np.int64)


def _instruction_spans(
    kept: list[Document], tokenizer: Callable, cut: np.ndarray, whole: np.ndarray
) -> np.ndarray:
    """Where in each document (N, 2) the instruction lies; the whole prefix where there is none left to read."""
    at = [d.prompt.find(d.instruction) if d.instruction else -1 for d in kept]
    before = [d.prompt[: max(a, 0)] for d, a in zip(kept, at)]
    until = [d.prompt[: max(a, 0) + len(d.instruction)] for d, a in zip(kept, at)]
    ends = [encode(texts, tokenizer, characters=False).lengths - cut for texts in (before, until)]
    span = np.stack(ends, axis=1).clip(0, whole[:, 1:])  # (N, 2)
    found = (np.array(at) >= 0) & (span[:, 1] > span[:, 0])
    return np.where(found[:, None], span, whole)


def _pad_id(tokenizer: Callable) -> int:
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return int(getattr(tokenizer, name))
    return 0
