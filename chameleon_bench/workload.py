"""What is benchmarked: rows as long as WikiText-2's, from text that every Python carries, and random GPT-2.

    topics of the language reference ─ cut to random lengths ─▶ texts ─ a BPE trained on them ─▶ TokenTable

Where the weights' values do not matter, the backbone is `random-gpt2`: GPT-2's geometry, no download.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chameleon_lite.backbone import Backbone, load_backbone
from chameleon_lite.backbones.formats import matmul_dtype
from chameleon_lite.loss import HeadWeight
from chameleon_lite.text import TokenTable, cumulative

from .measure import Samples, interleaved, peak_bytes, sample, seconds_of

LENGTH = 256  # tokens a row is cut or padded to (paper: WikiText-2)
RANK = 4


@dataclass
class Bench:
    """The machine a row runs on and how much time it may take."""

    device: torch.device
    quick: bool = False
    model: str = "random-gpt2"

    def __post_init__(self) -> None:
        self.gpu = self.device.type == "cuda"
        self.fast = matmul_dtype(self.device)  # the format of large products here
        self.served = torch.bfloat16 if self.gpu else torch.float32  # of weights while generating
        # in that format: of a gradient's relative error, of a mean loss's distance in nats
        self.limits = (1e-5, 1e-5) if self.fast == torch.float32 else (2e-2, 2e-3)

    def size(self, cpu: int, gpu: int, quick: int) -> int:
        """A workload's size: by machine, or small enough that all rows take two minutes on two cores."""
        return quick if self.quick else gpu if self.gpu else cpu

    def goal(self, cpu: float | None, gpu: float | None) -> float | None:
        """The goal for this kind of machine; quick runs are too small for any."""
        return None if self.quick else gpu if self.gpu else cpu

    def race(
        self, contenders: Mapping[str, Callable[[], Any]], repetitions: int = 5, warm_up: bool = True
    ) -> Samples:
        """Contenders timed in turns; a quick run repeats at most three times."""
        repetitions = min(repetitions, 3) if self.quick else repetitions
        return interleaved(contenders, self.device, repetitions, warm_up)

    def seconds(self, work: Callable[[], Any], times: int = 1) -> float:
        """Seconds per call, over `times` calls in a row."""
        return seconds_of(work, self.device, times)

    def median(self, work: Callable[[], Any]) -> float:
        """Median seconds of one piece of work by itself."""
        return interleaved({"ours": work}, self.device, 3).median()

    def peak(self, work: Callable[[], Any]) -> dict:
        """Bytes that work holds at its highest, as a sample of one."""
        return sample([float(peak_bytes(work, self.device))], "bytes")

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone in float32 on the device."""
        return load_backbone(self.model, device=self.device)

    def head_weight(self, dtype: torch.dtype | None = None) -> HeadWeight:
        """The backbone's W in a format, by default that of large products."""
        return HeadWeight(self.backbone.head.weight, self.backbone.head.bias, dtype=dtype or self.fast)

    def inputs(self, tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`random_inputs` of the backbone's sizes."""
        return random_inputs(self.device, tokens, self.backbone.width, self.backbone.vocab)

    def table(self, lengths: int | np.ndarray, *, last: bool = False) -> TokenTable:
        """Random tokens for the backbone: of these lengths (N,), or N rows as long as WikiText-2's."""
        lengths = row_lengths(lengths) if isinstance(lengths, int) else lengths
        return random_table(lengths, self.backbone.vocab, self.backbone.pad_id, last=last)


def short(dtype: torch.dtype) -> str:
    """A format's name without its library."""
    return str(dtype).removeprefix("torch.")


def row_lengths(n: int) -> np.ndarray:
    """Lengths (n,) like WikiText-2's rows: 30 % headings, the rest log-normal, about 5 % cut at 256."""
    generator = np.random.default_rng(0)
    body = np.exp(generator.normal(np.log(118), 0.55, n)).astype(np.int64)
    lengths = np.where(generator.random(n) < 0.3, generator.integers(4, 13, n), body.clip(24))
    return lengths.clip(4, LENGTH)


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


def random_inputs(
    device: torch.device, tokens: int, width: int, vocab: int, rank: int = RANK
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random states h (M, C) like a layer norm's output, targets (M,), and factors down (R, C), up (V, R)."""
    g = torch.Generator().manual_seed(0)
    h = torch.randn(tokens, width, generator=g).to(device)
    target = torch.randint(vocab, (tokens,), generator=g).to(device)
    down = (torch.randn(rank, width, generator=g) * 0.02).to(device)
    up = (torch.randn(vocab, rank, generator=g) * 0.02).to(device)
    return h, target, down.requires_grad_(), up.requires_grad_()
