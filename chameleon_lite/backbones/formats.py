"""Formats: of numbers (what a machine multiplies fast, a model held in one), of a text's first token, of JSON."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UserError

ALWAYS_EXACT = ("inv_freq",)  # ends of the names of buffers that stay as they are in every number format
CPU_FLAGS = {"avx512_bf16", "amx_bf16"}  # 16-bit units, as /proc/cpuinfo spells them
PLAINLY_CAUSAL = ("gpt2", "llama")  # kinds of models whose every token sees all before it
FP16_CAPABILITY = (7, 0)  # tensor cores for IEEE half precision: V100, T4 and later
BF16_CAPABILITY = (8, 0)  # tensor cores for brain float: A100 and later


@lru_cache
def cpu_flags(path: str = "/proc/cpuinfo") -> frozenset[str]:
    """The instruction-set flags of the first processor; empty where the system does not list them."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), ":").split(":", 1)[1].split())


def matmul_dtype(device: str | torch.device) -> torch.dtype:
    """The format for large matrix products: float16 on GPUs with tensor cores, bfloat16 on CPUs that have it.

    Decided by the chip's units, because libraries also accept formats that they emulate several times slower.
    float16 also on GPUs that have both: same speed, eight times finer, and nothing here comes near its range.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.float16 if torch.cuda.get_device_capability(device) >= FP16_CAPABILITY else torch.float32
    return torch.bfloat16 if device.type == "cpu" and CPU_FLAGS & cpu_flags() else torch.float32


def backbone_dtype(device: str | torch.device) -> torch.dtype:
    """The format for a transformer's forward pass: bfloat16 where fast, for its range; else as above."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= BF16_CAPABILITY:
        return torch.bfloat16
    return matmul_dtype(device)


def device_of(name: str | torch.device | None = None) -> torch.device:
    """The device of that name, by default the fastest kind; UserError for one that is not there."""
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    there = [name for kind, n in counts.items() if n for name in (kind, *(f"{kind}:{i}" for i in range(n)))]
    if str(name or there[0]) not in there:
        raise UserError(f"device {str(name)!r} is not there; choose one of {', '.join(there)}")
    return torch.device(name or there[0])


def sums_on(device: torch.device) -> torch.device:
    """Where exact sums of a device's numbers are formed: Apple's GPUs lack float64 and sums by segment."""
    return torch.device("cpu") if device.type == "mps" else device


def number_format(name: str, device: str | torch.device) -> torch.dtype:
    """A format by its name; "auto" is the one the device multiplies fast."""
    return matmul_dtype(device) if name == "auto" else getattr(torch, name)


def set_format(lm: nn.Module, dtype: torch.dtype) -> ExitStack:
    """Convert a model's weights and buffers but rotary frequencies, for good, or for the body of a `with`.

    `lm.to(dtype)` alone also rounds rotary frequencies, which libraries keep in float32 in a 16-bit model and
    which are in no state dict (hidden states of SmolLM2 off by 0.1 %). Parameters keep their identity, and a
    `with` gives back bit for bit what it took.
    """
    weights = [(p, p.data) for p in lm.parameters()]
    buffers = [(m._buffers, name, b) for m in lm.modules() for name, b in m._buffers.items() if b is not None]
    undo = ExitStack()
    for p, data in weights:
        undo.callback(setattr, p, "data", data)
    for owner, name, value in buffers:
        undo.callback(owner.__setitem__, name, value)
    if any(p.dtype != dtype for p, _ in weights):
        lm.to(dtype)
        for owner, name, value in buffers:
            if name.endswith(ALWAYS_EXACT):
                owner[name] = value
    return undo


@contextmanager
def arithmetic(backbone, dtype: torch.dtype) -> Iterator[None]:
    """Hold the backbone in `dtype`, its activations fused, and give it back as it was."""
    with fused_activations(backbone.lm), set_format(backbone.lm, dtype):
        yield


@contextmanager
def fused_activations(lm: nn.Module) -> Iterator[None]:
    """Inside, GPT-2's activation of eight elementwise passes, which keep five tensors, is one that keeps one."""
    every = dict(lm.named_modules(remove_duplicate=False))
    slow = {name: module for name, module in every.items() if type(module).__name__ == "NewGELUActivation"}
    try:
        for name in slow:
            lm.set_submodule(name, nn.GELU(approximate="tanh"))
        yield
    finally:
        for name, module in slow.items():
            lm.set_submodule(name, module)


@contextmanager
def unmasked(lm: nn.Module) -> Iterator[None]:
    """Inside, GPT-2 and Llama make no mask: only to see that none is needed each pass would wait for a GPU.

    Other kinds may have layers that see less, and stay as they are. A mask given meanwhile is not read.
    """
    config = lm.config
    if config.model_type not in PLAINLY_CAUSAL or config._attn_implementation != "sdpa":
        yield
        return
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    # Under a name for which no kind of mask is registered.
    AttentionInterface.register("sdpa_unmasked", sdpa_attention_forward)
    config._attn_implementation = "sdpa_unmasked"
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def opening(tokenizer: Callable) -> list[int]:
    """The token that a tokenizer puts before every text, which its model was trained with; [] where it puts none."""
    token = getattr(tokenizer, "bos_token_id", None)
    return [token] if token is not None and tokenizer("")["input_ids"][:1] == [token] else []


def words_cached(tokenizer: Any) -> Any:
    """The tokenizer, without its cache, 10,000 entries per thread, where an entry is a whole text of kilobytes.

    Whole texts hardly come twice. A tokenizer that splits texts first keeps the cache: words come again.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    split = core and core.pre_tokenizer
    if hasattr(core and core.model, "_resize_cache"):  # BPE and Unigram have one
        if split is None or len(split.pre_tokenize_str("a b")) == 1:
            core.model._resize_cache(0)
    return tokenizer


def once(pairs: list[tuple[str, Any]]) -> dict:
    """The object of a JSON text (`object_pairs_hook`); ValueError for a key named twice, whose last would win."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"the key {max(names, key=names.count)[:40]!r} stands there twice")
    return dict(pairs)
