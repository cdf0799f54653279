"""What is benchmarked: rows as long as WikiText-2's, from text that every Python carries, and random GPT-2.

    topics of the language reference ─ cut to random lengths ─▶ texts ─ a BPE trained on them ─▶ TokenTable

Where the weights' values do not matter, the backbone is `random-gpt2`: GPT-2's geometry, no download.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from chameleon_lite.text import TokenTable, cumulative

LENGTH = 256  # tokens a row is cut or padded to (paper: WikiText-2)
RANK = 4


def short(dtype: torch.dtype) -> str:
    """A format's name without its library."""
    return str(dtype).removeprefix("torch.")


def row_lengths(n: int) -> np.ndarray:
    """Lengths (n,) like WikiText-2's rows: 30 % headings, the rest log-normal, about 5 % cut at 256."""
    generator = np.random.default_rng(0)
    body = np.exp(generator.normal(np.log(118), 0.55, n)).astype(np.int64)
    return np.where(generator.random(n) < 0.3, generator.integers(4, 13, n), body.clip(24)).clip(4, LENGTH)


def random_table(lengths: np.ndarray, vocab: int, pad_id: int, *, last: bool = False) -> TokenTable:
    """Random tokens in documents of these lengths (N,); all but the first are scored, or the last alone."""
    generator = np.random.default_rng(0)
    n = len(lengths)
    prefix = (lengths - 1 if last else np.ones(n)).astype(np.int32)
    return TokenTable(
        ids=generator.integers(0, vocab, int(lengths.sum()), dtype=np.int32),
        offsets=cumulative(lengths),
        prefix=prefix,
        condition=np.stack([np.zeros(n), prefix], axis=1).astype(np.int32),
        names=tuple(str(i) for i in range(n)),
        groups=("",) * n,
        scored_bytes=lengths - prefix,
        pad_id=pad_id,
    )


@lru_cache
def topic_words() -> tuple[str, ...]:
    """The words of the language reference that comes with Python, in order."""
    from pydoc_data.topics import topics

    return tuple(" ".join(topics[name] for name in sorted(topics)).split())


def texts(n: int, counts: np.ndarray | None = None) -> list[str]:
    """n texts of real words, `counts` (n,) in each; by default the token counts follow `row_lengths`."""
    words = topic_words()
    if counts is None:
        counts = (row_lengths(n) * 0.62).astype(int).clip(3)  # words per token, of this text and tokenizer
    starts = np.random.default_rng(0).integers(0, len(words) - LENGTH, n)
    return [" ".join(words[s : s + c]) for s, c in zip(starts, counts)]


@lru_cache
def trained_tokenizer(entries: int = 16_000):
    """A byte-level BPE trained on the language reference: a real tokenizer's speed on every machine."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    core, end = ByteLevelBPETokenizer(), "<|endoftext|>"
    options = {"vocab_size": entries, "special_tokens": [end], "show_progress": False}
    core.train_from_iterator([" ".join(topic_words())], **options)
    return PreTrainedTokenizerFast(tokenizer_object=core._tokenizer, eos_token=end, pad_token=end)


def random_inputs(device, tokens: int, width: int, vocab: int, rank: int = RANK) -> tuple[Tensor, ...]:
    """Random states h (M, C) like a layer norm's output, targets (M,), and factors down (R, C), up (V, R)."""
    g = torch.Generator().manual_seed(0)
    h = torch.randn(tokens, width, generator=g).to(device)
    target = torch.randint(vocab, (tokens,), generator=g).to(device)
    down = (torch.randn(rank, width, generator=g) * 0.02).to(device)
    up = (torch.randn(vocab, rank, generator=g) * 0.02).to(device)
    return h, target, down.requires_grad_(), up.requires_grad_()
