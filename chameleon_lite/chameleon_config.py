"""The configuration in an adapter's folder, and the check that it fits the backbone it is loaded on.

An adapter is a change of one particular head: on other weights it is noise that looks like a working model.
So the name, revision, weight hash and vocabulary of the backbone are written down and compared before use.
"""

import hashlib
import json

from transformers import AutoConfig, PreTrainedConfig

from .backbones.adapters import MODEL_TYPE, AdapterSettings, checked
from .errors import UserError


class ChameleonLiteConfig(PreTrainedConfig):
    """Settings of `ChameleonLiteForCausalLM` (see `AdapterSettings`); `text_config` is the backbone's.

    The default head is the paper's hyper-network. Raises UserError for a setting out of its range.
    """

    model_type = MODEL_TYPE
    sub_configs = {"text_config": AutoConfig}  # generation reads the backbone's geometry through it

    def __init__(self, text_config=None, **settings) -> None:
        own = {name: settings.pop(name) for name in AdapterSettings.model_fields if name in settings}
        for name, value in checked(own).items():
            setattr(self, name, value)
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config | {"_name_or_path": ""})
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
            part = name.removeprefix("backbone_").removesuffix("_hash")
            what = "weights" if part == "hash" else part
            both = f"was fitted on {_called(vars(config))} and cannot be used on {_called(fields)}"
            remedy = f"load {config.backbone_name}, or fit a new adapter (they differ in {what})"
            raise UserError(f"this adapter {both}: {remedy}")


def _called(fields: dict) -> str:
    revision = f" at revision {fields['backbone_revision']}" if fields["backbone_revision"] else ""
    return f"{fields['backbone_name']}{revision} (weights {fields['backbone_hash'][:12]})"
