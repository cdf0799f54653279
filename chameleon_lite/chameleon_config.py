"""What an adapter's folder says of itself, and the check that it meets the backbone it was made for.

An adapter is a change of one particular head: on other weights it is noise that looks like a working model. So
the name, revision, weight hash and vocabulary of the backbone are written down and compared before use.
"""

import hashlib
import json

from transformers import AutoConfig, PreTrainedConfig

from .conditions import MODES
from .errors import UserError, unknown

HEADS = ("hyper", "lora")


class ChameleonLiteConfig(PreTrainedConfig):
    """Settings of `ChameleonLiteForCausalLM`; `text_config` is the backbone's own configuration.

    head: "hyper" (the paper's) or "lora"; rank R; scale α; dropout inside the hyper-network; hidden: its two inner
    widths; clusters K: stored centroids; condition: how prompts are grouped (model/conditions.py); lora_rank: rank
    of LoRA in the layers, 0 for none; backbone_*: what it belongs to; prompts: how texts were cut; notes: what the
    training measured. Raises UserError for a head or a condition of another name.
    """

    model_type = "chameleon-lite"
    sub_configs = {"text_config": AutoConfig}  # generation reads the backbone's geometry through it

    def __init__(
        self,
        text_config=None,
        *,
        head: str = "hyper",
        rank: int = 4,
        scale: float = 1.0,
        dropout: float = 0.5,
        hidden=(64, 32),
        clusters: int = 0,
        condition: str = "cluster",
        lora_rank: int = 0,
        lora_alpha: float | None = None,
        backbone_name: str = "",
        backbone_revision: str = "",
        backbone_hash: str = "",
        backbone_dtype: str = "float32",
        vocabulary_hash: str = "",
        width: int = 0,
        vocabulary: int = 0,
        prompts: dict | None = None,
        notes: dict | None = None,
        **kwargs,
    ) -> None:
        if head not in HEADS:
            raise unknown("head", head, HEADS)
        if condition not in MODES:
            raise unknown("condition", condition, MODES)
        if isinstance(text_config, dict):
            values = dict(text_config)
            text_config = AutoConfig.for_model(values.pop("model_type"), **values)
        self.text_config = text_config
        self.head, self.rank, self.scale, self.dropout, self.hidden = head, rank, scale, dropout, list(hidden)
        self.clusters, self.condition = clusters, condition
        self.lora_rank, self.lora_alpha = lora_rank, lora_alpha
        self.backbone_name, self.backbone_revision = backbone_name, backbone_revision
        self.backbone_hash, self.backbone_dtype = backbone_hash, backbone_dtype
        self.vocabulary_hash, self.width, self.vocabulary = vocabulary_hash, width, vocabulary
        self.prompts, self.notes = prompts or {}, notes or {}
        kwargs["tie_word_embeddings"] = False  # the backbone ties its own matrices; the wrapper ties nothing
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            kwargs[name] = getattr(text_config, name, None)
        super().__init__(**kwargs)


def identity(backbone) -> dict:
    """What is written down of a Backbone, as the configuration's fields."""
    return {
        "backbone_name": backbone.name,
        "backbone_revision": backbone.revision,
        "backbone_hash": backbone.hash,
        "backbone_dtype": str(backbone.head.weight.dtype).removeprefix("torch."),
        "vocabulary_hash": vocabulary_hash(backbone.tokenizer),
        "width": backbone.width,
        "vocabulary": backbone.vocab,
    }


def vocabulary_hash(tokenizer) -> str:
    """Hex sha256 of the tokenizer's entries and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def check_backbone(config: ChameleonLiteConfig, backbone) -> None:
    """UserError, with both names, unless the backbone is the one the adapter was made for.

    The hash decides where the number format is the same (a folder may have moved); else name and revision do.
    """
    found = identity(backbone)
    both = (
        f"this adapter was made for {_called(vars(config))} and cannot be used on {_called(found)}: "
        f"load {config.backbone_name}, or fit a new adapter"
    )
    for what in ("vocabulary", "width", "vocabulary_hash"):
        if found[what] != getattr(config, what):
            raise UserError(f"{both} (they differ in {what.replace('_hash', '')})")
    same_format = found["backbone_dtype"] == config.backbone_dtype
    names = ("backbone_hash",) if same_format else ("backbone_name", "backbone_revision")
    differ = [name for name in names if found[name] != getattr(config, name)]
    if differ:
        raise UserError(
            f"{both} (they differ in {'weights' if same_format else differ[0].replace('backbone_', '')})"
        )


def _called(fields: dict) -> str:
    revision = f" at revision {fields['backbone_revision']}" if fields["backbone_revision"] else ""
    return f"{fields['backbone_name']}{revision} (weights {fields['backbone_hash'][:12]})"
