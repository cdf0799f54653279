"""ChameleonLiteForCausalLM: a frozen causal LM, a head that adapts to the prompt, as a Hugging Face model.

    prompt ─ mean embedding ─▶ cluster ─▶ condition ─ hyper-network ─▶ update        once, before the first new token
    ids ── backbone (frozen, with or without LoRA) ─▶ h ── W h + α up down h ─▶ logits      every step, from the cache

A saved adapter holds the hyper-network, LoRA factors and centroids; the backbone is named, not copied. Without a
condition and without an update `forward` is the backbone itself (with its LoRA, where there is one), so nothing that
is scored can leak into it.
"""

import copy
import inspect
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .backbone import Backbone, load_backbone, set_format
from .backbones import hub
from .chameleon_config import ChameleonLiteConfig, check_backbone, identity
from .conditions import Grouped, grouped, prompt_vectors
from .errors import DamagedFile, UserError
from .heads import Condition, HeadUpdate, HyperHead, LoraHead, update_logits
from .text import IGNORED

WEIGHTS = "model.safetensors"
LORA = "lora."  # prefix of LoRA factors in a saved adapter


class ChameleonLiteForCausalLM(PreTrainedModel, GenerationMixin):
    """Build it with `from_backbone` (new adapter) or `from_pretrained` (saved adapter); UserError otherwise."""

    config_class = ChameleonLiteConfig
    base_model_prefix = "lm"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = True

    def __init__(self, config: ChameleonLiteConfig, backbone: Backbone | None = None) -> None:
        if backbone is None:
            raise UserError("an adapter needs its backbone: use from_backbone or from_pretrained")
        super().__init__(config)
        self.backbone, self.tokenizer, self.lm = backbone, backbone.tokenizer, backbone.lm
        self.lm.requires_grad_(False)
        sizes = (config.width, config.vocabulary, config.rank)
        self.head = (
            HyperHead(*sizes, config.dropout, hidden=tuple(config.hidden))
            if config.head == "hyper"
            else LoraHead(*sizes)
        )
        self.register_buffer("centroids", torch.zeros(config.clusters, backbone.embedding.shape[1]))
        self.head.to(backbone.device)
        self.centroids = self.centroids.to(backbone.device)
        self._body_arguments = set(inspect.signature(self.lm.base_model.forward).parameters)
        self.post_init()
        if (
            config.lora_rank
        ):  # after post_init, which would give new layers the backbone's random initialisation
            from .lora import add_lora

            add_lora(self.lm, rank=config.lora_rank, alpha=config.lora_alpha)
        self.generation_config = copy.deepcopy(self.lm.generation_config)
        if self.generation_config.pad_token_id is None:
            self.generation_config.pad_token_id = backbone.pad_id

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: head and backbone come initialised, and touching a loaded backbone would ruin it."""

    @classmethod
    def from_backbone(cls, backbone: Backbone | str, *, centroids: Tensor | None = None, **settings):
        """A new adapter on a backbone or a backbone's name; settings are `ChameleonLiteConfig`'s (rank, head, …).

        centroids (K, C): what prompts are assigned to. At the start the model's logits are the backbone's.
        Raises UserError where embeddings and hidden states differ in width, which the hyper-network joins.
        """
        backbone = load_backbone(backbone) if isinstance(backbone, str) else backbone
        if backbone.embedding.shape[1] != backbone.width:
            raise UserError(
                f"{backbone.name}: embeddings have {backbone.embedding.shape[1]} columns and hidden states "
                f"{backbone.width}; the hyper-network needs them equal: choose another backbone"
            )
        config = ChameleonLiteConfig(
            backbone.lm.config.to_dict(),
            **identity(backbone),
            clusters=0 if centroids is None else len(centroids),
            **settings,
        )
        model = cls(config, backbone)
        if centroids is not None:
            model.centroids.copy_(centroids)
        return model.eval()

    @classmethod
    def from_pretrained(
        cls,
        path,
        *_,
        backbone: Backbone | str | None = None,
        config=None,
        device="cpu",
        dtype: torch.dtype | None = None,
        trust_remote_code: bool = False,
        **ignored,
    ):
        """Load a saved adapter from a folder or hub id, on the backbone it names or on the one given.

        The backbone is loaded in the format it was fitted in, compared, and only then converted to `dtype`.
        Raises UserError for another backbone, vocabulary or revision; DamagedFile where a tensor is missing.
        """
        if trust_remote_code:
            raise UserError(
                "trust_remote_code is never needed here: an adapter is data, and no code is read with it"
            )
        folder = hub_folder(path)
        if not isinstance(config, ChameleonLiteConfig):
            config = ChameleonLiteConfig.from_pretrained(folder)
        if not isinstance(backbone, Backbone):
            backbone = load_backbone(
                backbone or config.backbone_name,
                device=device,
                dtype=getattr(torch, config.backbone_dtype),
                revision=None if backbone else config.backbone_revision or None,
            )
        check_backbone(config, backbone)
        model = cls(config, backbone)
        model._load_adapter(folder / WEIGHTS)
        if dtype not in (None, "auto"):
            set_format(model.lm, dtype)
        return model.eval()

    def adapter_state(self) -> dict[str, Tensor]:
        """What makes this adapter: head, centroids, LoRA factors."""
        state = {f"head.{name}": value for name, value in self.head.state_dict().items()}
        if self.config.lora_rank:
            from .lora import lora_state

            state |= {LORA + name: value for name, value in lora_state(self.lm).items()}
        return {**state, "centroids": self.centroids} if len(self.centroids) else state

    def save_pretrained(self, save_directory, is_main_process: bool = True, **kwargs) -> None:
        """Write configuration and adapter (safetensors) to a folder; config.json is put there last.

        A folder without config.json is therefore an interrupted save, and is refused when loaded.
        """
        if not is_main_process:
            return
        kwargs.pop("state_dict", None)
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        self.config.clusters = len(self.centroids)
        with tempfile.TemporaryDirectory(dir=target, prefix=".part-") as part:
            state = {name: value.contiguous() for name, value in self.adapter_state().items()}
            super().save_pretrained(part, state_dict=state, **kwargs)
            for name in sorted(os.listdir(part), key=lambda name: name == "config.json"):
                os.replace(Path(part) / name, target / name)

    def _load_adapter(self, path: Path) -> None:
        from safetensors.torch import load_file

        if not path.is_file():
            raise UserError(
                f"{path.parent} holds no {WEIGHTS}: it is no adapter, and no other format is read"
            )
        state = load_file(path)
        own = self.adapter_state()
        if different := sorted(set(own) ^ set(state)) or [n for n in own if own[n].shape != state[n].shape]:
            raise DamagedFile(
                f"{path} does not fit its config.json: {different[0]}; save or fetch the adapter again"
            )
        lora = {name.removeprefix(LORA): value for name, value in state.items() if name.startswith(LORA)}
        if lora:
            from .lora import load_lora_state

            load_lora_state(self.lm, lora)
        self.load_state_dict({n: v for n, v in state.items() if not n.startswith(LORA)}, strict=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.lm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.lm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm.set_output_embeddings(value)

    @torch.no_grad()
    def conditions(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, mode: str | None = None
    ) -> Grouped:
        """Prompts (B, T) to their groups and conditions; `mode` is the configuration's unless given."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        vectors = prompt_vectors(self.get_input_embeddings()(input_ids), mask)  # (B, C)
        return grouped(vectors, self.centroids, mode or self.config.condition)

    def update_for(self, condition: Condition | Tensor | int) -> HeadUpdate:
        """The head's update for conditions (G, C) or (C,), or for the stored cluster of a number; one head call.

        UserError for a cluster that the adapter does not have.
        """
        if isinstance(condition, int):
            if not 0 <= condition < len(self.centroids):
                raise UserError(f"no cluster {condition}: this adapter has {len(self.centroids)}")
            condition = self.centroids[condition]
        if isinstance(condition, Tensor):
            condition = Condition(condition.reshape(-1, condition.shape[-1]).to(self.centroids))
        return self.head.factors(condition)

    def prepare(
        self, condition: Condition | Tensor | int, group: Tensor | None = None, rows: int | None = None
    ) -> Callable[..., Tensor]:
        """The update of conditions (G, C) for the rows of a batch, group (B,); `forward` and `generate` take it."""
        return update_logits(self.update_for(condition), group, rows)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values=None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        condition: Condition | Tensor | None = None,
        group: Tensor | None = None,
        head_update: Callable[..., Tensor] | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """ids (B, T) to logits (B, T, V), adapted by `condition` (G, C) with `group` (B,), or by a ready `head_update`.

        labels (B, T), -100 where not scored, are shifted inside; the loss is their mean in nats a token. All names
        are spelled out: generation builds `position_ids`, which left padding needs, only for a model that has them.
        """
        given = dict(
            kwargs,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
        )
        out = self.lm.base_model(
            **{
                name: value
                for name, value in given.items()
                if value is not None and (name in self._body_arguments or "kwargs" in self._body_arguments)
            }
        )
        h = out.last_hidden_state  # (B, T, C)
        h = h[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else h[:, logits_to_keep]  # 0 keeps all
        if head_update is None and condition is not None:
            head_update = self.prepare(condition, group, rows=len(h))
        head = self.get_output_embeddings()
        logits = head(h) if head_update is None else head_update(head, h, self.config.scale)
        return CausalLMOutputWithPast(
            loss=None if labels is None else _loss(logits, labels),
            logits=logits,
            past_key_values=out.get("past_key_values"),
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        *args,
        condition: Condition | Tensor | str | None = None,
        group: Tensor | None = None,
        head_update: Callable[..., Tensor] | None = None,
        **kwargs,
    ):
        """Continue prompts (left-padded, with attention_mask) under an update fixed before the first new token.

        condition: None, "cluster", "centroid" or "row" take it from the prompts; a tensor (G, C) with `group` (B,)
        sets it. Everything else is transformers' `generate`. Raises UserError without input_ids.
        """
        ids = kwargs.get("input_ids") if inputs is None else inputs
        if ids is None:
            raise UserError("generate needs input_ids: the condition is read from the prompt's tokens")
        if head_update is None and (condition is None or isinstance(condition, str)):
            found = self.conditions(ids, self._mask(ids, kwargs.get("attention_mask")), condition)
            condition, group = found.condition, found.group
        # Not called `update`: generate takes every keyword that its own settings object has as a setting.
        head_update = head_update or self.prepare(condition, group, rows=len(ids))
        return super().generate(inputs, *args, head_update=head_update, **kwargs)

    def _mask(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """The mask generation itself would use: a pad that is also the end token cannot be told from a real one."""
        pad, end = self.generation_config.pad_token_id, self.generation_config.eos_token_id
        if mask is not None or pad is None or pad in (end if isinstance(end, list) else [end]):
            return torch.ones_like(ids) if mask is None else mask
        return (ids != pad).long()

    @torch.no_grad()
    def merge_for(self, condition: Condition | Tensor | int) -> PreTrainedModel:
        """A plain model of the backbone's class with the update for one condition merged into an untied head.

        Raises UserError unless it is a single condition (C,), or the number of a stored cluster.
        """
        update = self.eval().update_for(condition)
        if update.groups != 1:
            raise UserError(f"merging needs one condition, not {update.groups}")
        plain = copy.deepcopy(self.lm)
        if self.config.lora_rank:
            _merge_lora(plain)
        old = plain.get_output_embeddings()
        new = nn.Linear(*reversed(old.weight.shape), bias=old.bias is not None).to(old.weight)
        delta = self.config.scale * update.dense()
        new.weight.copy_(old.weight + delta.to(old.weight.dtype))
        if old.bias is not None:
            new.bias.copy_(old.bias)
        plain.set_output_embeddings(new.requires_grad_(False))
        plain.config.tie_word_embeddings = plain.config.get_text_config(decoder=True).tie_word_embeddings = (
            False
        )
        plain.all_tied_weights_keys = {}  # so that saving writes both matrices
        return plain.eval()


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean next-token loss of logits (B, T, V) on labels (B, T), position t against label t + 1."""
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED
    )


def _merge_lora(lm: nn.Module) -> None:
    """Replace every LoRA layer by its base layer with the factors added."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(lm.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            lm.set_submodule(name, module.get_base_layer())


def hub_folder(path) -> Path:
    """The folder of a saved adapter: local, or fetched from the hub; UserError where it holds none."""
    folder = Path(path).expanduser()
    if not folder.is_dir() and str(path).count("/") == 1 and hub.reachable():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors"]))
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{path} is no saved adapter: there is no config.json in it; make one with chameleon-lite fit"
        )
    return folder


AutoConfig.register(ChameleonLiteConfig.model_type, ChameleonLiteConfig)
AutoModelForCausalLM.register(ChameleonLiteConfig, ChameleonLiteForCausalLM)
