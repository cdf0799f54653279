"""The configuration in an adapter's folder, and the check that it fits the backbone it is loaded on.

An adapter is a change of one particular head: on other weights it is noise that looks like a working model.
So the name, revision, weight hash and vocabulary of the backbone are written down and compared before use.
"""

import copy
import hashlib
import json

from transformers import AutoConfig, PreTrainedConfig

from .conditions import MODES
from .errors import UserError, unknown

HEADS = ("hyper", "lora")
DEFAULTS = {
    "head": "hyper",  # the paper's hyper-network, or "lora"
    "rank": 4,
    "scale": 1.0,  # α
    "dropout": 0.5,  # inside the hyper-network
    "hidden": [64, 32],  # its two inner widths
    "clusters": 0,  # stored centroids, K
    "condition": "cluster",  # how prompts are grouped, see conditions.py
    "lora_rank": 0,  # of LoRA in the layers; 0: none
    "lora_alpha": None,  # None: the rank
    "backbone_name": "",
    "backbone_revision": "",
    "backbone_hash": "",
    "backbone_dtype": "float32",
    "vocabulary_hash": "",
    "width": 0,  # C
    "vocabulary": 0,  # V
    "prompts": {},  # how texts were cut into tokens
    "notes": {},  # what the training measured
}


class ChameleonLiteConfig(PreTrainedConfig):
    """Settings of `ChameleonLiteForCausalLM`, listed in DEFAULTS; `text_config` is the backbone's.

    The default head is the paper's hyper-network. Raises UserError for an unknown head or condition.
    """

    model_type = "chameleon-lite"
    sub_configs = {"text_config": AutoConfig}  # generation reads the backbone's geometry through it

    def __init__(self, text_config=None, **settings) -> None:
        for name, default in copy.deepcopy(DEFAULTS).items():
            setattr(self, name, settings.pop(name, default))
        if self.head not in HEADS:
            raise unknown("head", self.head, HEADS)
        if self.condition not in MODES:
            raise unknown("condition", self.condition, MODES)
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = text_config
        settings["tie_word_embeddings"] = False  # the backbone ties its matrices; the wrapper ties nothing
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            settings[name] = getattr(text_config, name, None)
        super().__init__(**settings)


def identity(backbone) -> dict:
    """What identifies a Backbone, as the configuration's fields."""
    vocabulary = json.dumps(sorted(backbone.tokenizer.get_vocab().items()))
    return {
        "backbone_name": backbone.name,
        "backbone_revision": backbone.revision,
        "backbone_hash": backbone.hash,
        "backbone_dtype": str(backbone.head.weight.dtype).removeprefix("torch."),
        "vocabulary_hash": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "width": backbone.width,
        "vocabulary": backbone.vocab,
    }


def check_backbone(config: ChameleonLiteConfig, backbone) -> None:
    """UserError, with both names, unless the backbone is the one the adapter was trained on.

    The hash decides where the number format is the same (a folder may have moved); else name and revision do.
    """
    fields, names = identity(backbone), ["vocabulary", "width", "vocabulary_hash"]
    same_format = fields["backbone_dtype"] == config.backbone_dtype
    names += ["backbone_hash"] if same_format else ["backbone_name", "backbone_revision"]
    for name in names:
        if fields[name] != getattr(config, name):
            what = {"backbone_hash": "weights"}.get(
                name, name.removeprefix("backbone_").removesuffix("_hash")
            )
            raise UserError(
                f"this adapter was fitted on {_called(vars(config))} and cannot be used on {_called(fields)}"
                f": load {config.backbone_name}, or fit a new adapter (they differ in {what})"
            )


def _called(fields: dict) -> str:
    revision = f" at revision {fields['backbone_revision']}" if fields["backbone_revision"] else ""
    return f"{fields['backbone_name']}{revision} (weights {fields['backbone_hash'][:12]})"
