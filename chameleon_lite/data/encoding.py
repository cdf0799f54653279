"""Texts become token ids: what `tokens.py` asks of a tokenizer, and nothing besides.

    fast tokenizer of transformers ─▶ the Rust tokenizer inside it, on the whole list ─▶ ids, and characters where asked
    any other, any callable        ─▶ called on the whole list                        ─▶ ids (a fast one: characters)

What transformers lays around the Rust tokenizer, lists of every token's characters above all, takes longer than the
tokenizer itself. So it is left out wherever it would change no id: where the methods are the library's own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import numpy as np

OWN = (
    "__call__",
    "_encode_plus",
    "_convert_encoding",
    "set_truncation_and_padding",
)  # each the library's own, or else
ABSENT = ("_batch_encode_plus", "_switch_to_input_mode")  # each the library's own too, where there is one
LIBRARY = "transformers.tokenization_utils"  # how the names of the modules with the general classes begin


@dataclass(frozen=True, eq=False)
class Encoded:
    """N texts as L flat token ids; `characters` says which [start, stop) token t of text n covers, where it is known.

    It may hold on to all that the tokenizer returned, several hundred bytes a token: for a few thousand texts at most.
    """

    ids: np.ndarray  # (L,) int32
    lengths: np.ndarray  # (N,) int64
    characters: Callable[[int, int], tuple[int, int]] | None = None

    def stops(self, texts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The character (M,) int64 at which token tokens[m] of text texts[m] ends; 0 where tokens[m] is negative."""
        pairs = zip(texts.tolist(), tokens.tolist())
        return np.array([self.characters(n, t)[1] if t >= 0 else 0 for n, t in pairs], dtype=np.int64)


def encode(texts: list[str], tokenizer: Callable, *, characters: bool = True) -> Encoded:
    """Texts (N,) to their token ids, nothing added at the ends, nothing cut; `characters` only from a fast tokenizer.

    The tokenizer is left as it was found, except by its own call. Raises what the tokenizer raises.
    """
    if not texts:
        return _encoded([])
    if not characters and len(texts) > 1 and len(set(texts)) == 1:  # plain text: every prompt is empty
        one = encode(texts[:1], tokenizer, characters=False)
        return Encoded(np.tile(one.ids, len(texts)), np.repeat(one.lengths, len(texts)))
    rust = _inside(tokenizer)
    if rust is None:
        return _called(texts, tokenizer, characters)
    work = rust.encode_batch if characters else getattr(rust, "encode_batch_fast", rust.encode_batch)
    with _neither_cut_nor_padded(rust, tokenizer.split_special_tokens):
        found = work(texts, add_special_tokens=False)
    return _encoded([e.ids for e in found], (lambda n, t: found[n].token_to_chars(t)) if characters else None)


@contextmanager
def held(tokenizer: Callable) -> Iterator[bool]:
    """The settings of `encode` for a while; yields whether another thread may then encode beside this one.

    The Rust tokenizer works without Python's lock, so that what it returned can be sorted out while it goes on. A
    tokenizer that is called as a whole is called from one thread.
    """
    rust = _inside(tokenizer)
    if rust is None:
        yield False
        return
    with _neither_cut_nor_padded(rust, tokenizer.split_special_tokens):
        yield True


def _called(texts: list[str], tokenizer: Callable, characters: bool) -> Encoded:
    fast = getattr(tokenizer, "is_fast", False)
    options = (
        {"return_offsets_mapping": characters, "return_attention_mask": False, "verbose": False}
        if fast
        else {}
    )
    found = tokenizer(texts, add_special_tokens=False, **options)
    spans = found["offset_mapping"] if fast and characters else None
    return _encoded(found["input_ids"], None if spans is None else lambda n, t: spans[n][t])


def _encoded(rows: Sequence[Sequence[int]], characters: Callable | None = None) -> Encoded:
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))
    return Encoded(ids, lengths, characters)


def _inside(tokenizer: Callable):
    """The Rust tokenizer of a fast one that adds nothing of its own to it; None for every other tokenizer."""
    if not getattr(tokenizer, "is_fast", False) or not hasattr(tokenizer, "split_special_tokens"):
        return None
    kind = type(tokenizer)
    methods = [getattr(kind, name, None) for name in OWN] + [
        getattr(kind, n) for n in ABSENT if hasattr(kind, n)
    ]
    if not all(getattr(method, "__module__", "").startswith(LIBRARY) for method in methods):
        return None
    if any(name in vars(tokenizer) for name in (*OWN, *ABSENT)):
        return None
    from tokenizers import Tokenizer

    rust = getattr(tokenizer, "backend_tokenizer", None)
    return rust if isinstance(rust, Tokenizer) else None


@contextmanager
def _neither_cut_nor_padded(rust, split_special_tokens: bool) -> Iterator[None]:
    """The settings that transformers makes for a call without padding and truncation; afterwards those of before.

    Nothing is written where nothing differs: other threads may be using the tokenizer.
    """
    truncation, padding, split = rust.truncation, rust.padding, rust.encode_special_tokens
    try:
        if truncation is not None:
            rust.no_truncation()
        if padding is not None:
            rust.no_padding()
        if split != split_special_tokens:
            rust.encode_special_tokens = split_special_tokens
        yield
    finally:
        if truncation is not None:
            rust.enable_truncation(**truncation)
        if padding is not None:
            rust.enable_padding(**padding)
        if split != split_special_tokens:
            rust.encode_special_tokens = split
