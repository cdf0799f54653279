"""Any causal language model, opened at the one place the method needs: between its body and its output head.

    ids (B, T) ── body ─▶ hidden (B, T, C) ── head: h Wᵀ (+ bias) ─▶ logits (B, T, V)

The hidden states are exactly what the head is applied to. One probe of eight tokens checks this for every
model: one that scales, caps or re-projects between body and logits is refused by name, for there an update of
W would mean something else. All weights are frozen and the model is in evaluation mode.
"""

import copy
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .backbones import hub, smollm2, tiny
from .backbones.formats import device_of, words_cached
from .errors import UserError, unknown
from .text import pad_id

BUILT_IN = ("smollm2", "random-gpt2", "tiny", "tiny-llama")
GPT2 = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
SHORT_NAMES = {name: f"openai-community/{name}" for name in GPT2} | {"distilgpt2": "distilbert/distilgpt2"}


@dataclass(frozen=True)
class Backbone:
    """A frozen causal LM and the parts of it that the method uses."""

    name: str
    revision: str  # the hub's commit, "" where there is none
    lm: Any  # transformers model for causal LM
    tokenizer: Any
    body: nn.Module  # everything below the head
    embedding: Tensor  # (V, C') input embeddings; C' differs from C in a few models
    head: nn.Linear  # weight (V, C)
    width: int  # C, the columns of the head's weight
    vocab: int  # V, the rows of the head's weight
    pad_id: int
    hash: str  # sha256 that changes whenever a weight or the number format does
    parameters: int  # scalars of the whole model, a tied matrix counted once
    max_length: int  # tokens the model has positions for

    @property
    def device(self) -> torch.device:
        """Where the head's weight lies, and with it the model."""
        return self.head.weight.device

    def hidden(self, ids: Tensor, mask: Tensor | None = None, position: Tensor | None = None) -> Tensor:
        """ids (B, T) int64 and mask (B, T), 1 for real tokens, to hidden states (B, T, C).

        Several documents per row: a mask (B, 1, T, T) bool of which token attends to which, and position (B,
        T) inside the document; not every model takes them, see fast/layers.py.
        """
        positions = {} if position is None else {"position_ids": position}
        return self.body(input_ids=ids, attention_mask=mask, use_cache=False, **positions).last_hidden_state


def load_backbone(
    name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, revision: str = ""
) -> Backbone:
    """A backbone by built-in name, hub id, or folder (transformers' layout or a single .gguf file).

    Raises UserError for an unknown name or a model whose head cannot be reached exactly, Unreachable (at
    once) where a download is needed and impossible, DamagedFile where weights are missing.
    """
    device = device_of(device)
    lm, tokenizer, commit, weights = _open(name, dtype, revision)
    lm.requires_grad_(False).eval()
    with hub.readable(f"backbone {name!r}"):
        body, embedding, head = head_access(lm, name)
    lm.to(device)
    return Backbone(
        name=str(Path(name).resolve()) if name not in BUILT_IN and Path(name).is_dir() else name,
        revision=commit,
        lm=lm,
        tokenizer=words_cached(tokenizer),
        body=body,
        embedding=embedding,
        head=head,
        width=head.weight.shape[1],
        vocab=head.weight.shape[0],
        pad_id=pad_id(tokenizer),
        hash=hashlib.sha256(f"{weights}:{dtype}".encode()).hexdigest(),
        parameters=sum(p.numel() for p in lm.parameters()),  # parameters() yields a tied matrix once
        max_length=getattr(lm.config.get_text_config(decoder=True), "max_position_embeddings", None) or 1024,
    )


def copied(backbone: Backbone) -> Backbone:
    """A copy of the backbone, to put LoRA into while the shared one stays as it is."""
    lm = copy.deepcopy(backbone.lm)
    parts = {"embedding": lm.get_input_embeddings().weight, "head": lm.get_output_embeddings()}
    return replace(backbone, lm=lm, body=lm.base_model, **parts)


def _open(name: str, dtype: torch.dtype, revision: str):
    """(lm, tokenizer, revision, hash of the weights) for any kind of name."""
    if name == "smollm2":
        lm, tokenizer = hub.load_checkpoint(str(smollm2.fetch_smollm2()), dtype, local_files_only=True)
        return lm, tokenizer, "", smollm2.GGUF_SHA256
    if name in BUILT_IN:
        lm, tokenizer = tiny.build(name, dtype)
        return lm, tokenizer, "", weight_hash(lm)
    if Path(name).expanduser().is_dir():
        lm, tokenizer, weights = hub.load_folder(Path(name).expanduser(), dtype)
        return lm, tokenizer, "", weights
    if Path(name).expanduser().is_absolute() or "/" not in name and name not in SHORT_NAMES:
        raise unknown("backbone", name, [*BUILT_IN, *SHORT_NAMES, "owner/name on the hub", "a local folder"])
    return hub.load_hub(SHORT_NAMES.get(name, name), dtype, revision)


@torch.no_grad()
def head_access(lm, name: str = "") -> tuple[nn.Module, Tensor, nn.Linear]:
    """(body, input embedding (V, C'), head) of a causal LM; UserError unless head(body(x)) is lm(x) exactly.

    Exactly, because a soft cap is nearly the identity on small logits and would pass any tolerance.
    """
    who = f"{type(lm).__name__} ({name})" if name else type(lm).__name__
    body, head, embedding = lm.base_model, lm.get_output_embeddings(), lm.get_input_embeddings().weight
    if body is lm or not isinstance(head, nn.Linear):
        raise UserError(f"{who} has no linear output head of its own: choose a causal model with one")
    probe = torch.arange(2, 10, device=head.weight.device)[None] % embedding.shape[0]  # (1, 8)
    h = body(input_ids=probe, use_cache=False).last_hidden_state
    logits = lm(input_ids=probe, use_cache=False).logits
    if h.shape[-1] != head.weight.shape[1] or not torch.equal(head(h), logits):
        what = "scales, caps or re-projects between hidden states and logits"
        so = "an update of its head is not what the method describes: choose another backbone"
        raise UserError(f"{who} {what}, so {so}")
    return body, embedding, head


@torch.no_grad()
def weight_hash(lm: nn.Module) -> str:
    """sha256 over names, shapes and bytes of all weights."""
    digest = hashlib.sha256()
    for key, value in sorted(lm.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
