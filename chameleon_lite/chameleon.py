"""ChameleonLiteForCausalLM: a frozen causal LM, a head that adapts to the prompt, as a Hugging Face model.

    prompt ─ mean embedding ─▶ cluster ─▶ condition ─ head ─▶ update       once, before the first new token
    ids ─ backbone (or with LoRA) ─▶ h ─ h Wᵀ + b + α (h downᵀ) upᵀ ─▶ logits every step, from the cache

A saved adapter holds the head, LoRA factors and centroids; the backbone is named, not copied. Without a
condition and without an update `forward` is the backbone itself (with its LoRA, if any).
"""

import copy
import inspect
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .backbone import BUILT_IN, Backbone, load_backbone
from .backbones.adapters import check_tensors, placed, portable, read_settings
from .backbones.card import push_to_hub, write_card
from .backbones.formats import fused_activations, set_format
from .backbones.hub import adapter_folder
from .chameleon_config import ChameleonLiteConfig, check_backbone, identity
from .conditions import Grouped, grouped, prompt_vectors
from .errors import DamagedFile, UserError
from .heads import Condition, HeadUpdate, HyperHead, LoraHead, update_logits
from .lora import add_lora, lora_parameters, merge_lora
from .text import IGNORED

WEIGHTS = "model.safetensors"
LORA = "lora."  # prefix of LoRA factors in a saved adapter


class ChameleonLiteForCausalLM(PreTrainedModel, GenerationMixin):
    """Built with `from_backbone` (a new adapter) or `from_pretrained` (a saved one); UserError otherwise."""

    config_class = ChameleonLiteConfig
    base_model_prefix = "lm"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = True

    def __init__(self, config: ChameleonLiteConfig, backbone: Backbone | None = None) -> None:
        if backbone is None:
            raise UserError("an adapter needs its backbone: use from_backbone or from_pretrained")
        super().__init__(config)
        self.backbone, self.tokenizer, self.lm = backbone, backbone.tokenizer, backbone.lm
        self.lm.requires_grad_(False)
        self.head = new_head(config).to(backbone.device)
        centroids = torch.zeros(config.clusters, backbone.embedding.shape[1], device=backbone.device)
        self.register_buffer("centroids", centroids)  # (K, C)
        self._accepted = set(inspect.signature(self.lm.base_model.forward).parameters)
        self.post_init()
        if config.lora_rank:  # after post_init, which would initialise the new layers as the backbone's
            add_lora(self.lm, rank=config.lora_rank, alpha=config.lora_alpha)
        # Greedy, one continuation per prompt, whatever penalties, beams or samples the checkpoint asks for.
        ids = {name: getattr(self.lm.generation_config, name) for name in ("bos_token_id", "eos_token_id")}
        self.generation_config = GenerationConfig(**ids, pad_token_id=backbone.pad_id, do_sample=False)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: head and backbone come initialised, and touching a loaded backbone would ruin it."""

    @classmethod
    def from_backbone(cls, backbone: Backbone | str, *, centroids: Tensor | None = None, **settings):
        """A new adapter on a backbone or a backbone's name; settings are `ChameleonLiteConfig`'s (rank, …).

        centroids (K, C): what prompts are assigned to. At the start the model's logits are the backbone's.
        Raises UserError where embeddings and hidden states differ in width, which the hyper-network joins.
        """
        backbone = load_backbone(backbone) if isinstance(backbone, str) else backbone
        if (columns := backbone.embedding.shape[1]) != backbone.width:
            widths = f"embeddings have {columns} columns and hidden states {backbone.width}"
            raise UserError(f"{backbone.name}: {widths}; they must be equal: choose another backbone")
        centroids = torch.zeros(0, backbone.width) if centroids is None else centroids
        geometry, settings = backbone.lm.config.to_dict(), settings | {"clusters": len(centroids)}
        model = cls(ChameleonLiteConfig(geometry, **identity(backbone), **settings), backbone)
        model.centroids.copy_(centroids)
        return model.eval()

    @classmethod
    def from_pretrained(
        cls, path, *_, backbone: Backbone | str | None = None, device="cpu", dtype=None, **options
    ):
        """Load a saved adapter from a folder or hub id, on the backbone it names or on the one given.

        The backbone is loaded in the format it was fitted in, compared, and only then converted to `dtype`.
        Raises UserError for another backbone, vocabulary or revision; DamagedFile where a tensor is missing.
        """
        if options.get("trust_remote_code"):
            raise UserError("trust_remote_code is never needed here: an adapter is data, without code")
        folder = adapter_folder(path, **options)
        fields = read_settings(folder)
        with torch.device("meta"):  # sizes alone: nothing is allocated before they fit the file
            head = new_head(ChameleonLiteConfig(**fields)).state_dict()
        check_tensors(folder / WEIGHTS, fields, {name: value.shape for name, value in head.items()})
        if not isinstance(backbone, Backbone):
            how = {"device": device, "dtype": getattr(torch, fields["backbone_dtype"])}
            how["revision"] = "" if backbone else fields["backbone_revision"]
            backbone = load_backbone(backbone or fields["backbone_name"], **how)
        config = ChameleonLiteConfig(backbone.lm.config.to_dict(), **fields)
        check_backbone(config, backbone)
        model = cls(config, backbone)
        model._load_adapter(folder / WEIGHTS)
        if dtype not in (None, "auto"):
            set_format(model.lm, dtype)
        return model.eval()

    def adapter_state(self) -> dict[str, Tensor]:
        """What makes this adapter: head, centroids, LoRA factors."""
        state = {f"head.{name}": value for name, value in self.head.state_dict().items()}
        state |= {LORA + name: value.detach().clone() for name, value in lora_parameters(self.lm).items()}
        return {**state, "centroids": self.centroids} if len(self.centroids) else state

    def save_pretrained(self, save_directory, is_main_process: bool = True, **kwargs) -> None:
        """Write configuration, adapter and card to a folder; without config.json it is an interrupted save."""
        if not is_main_process:
            return
        target, push = Path(save_directory), kwargs.pop("push_to_hub", False)
        self.config.clusters, name = len(self.centroids), self.config.backbone_name
        state = {name: value.contiguous() for name, value in self.adapter_state().items()}
        with placed(target) as part:
            if Path(name).is_absolute() or (name not in BUILT_IN and Path(name).expanduser().is_dir()):
                self.config.backbone_name = portable(name, target)
            try:
                super().save_pretrained(part, **kwargs | {"state_dict": state})
            finally:
                self.config.backbone_name = name
            write_card(self, part, target)
        if push:
            self.push_to_hub(**{"repo_id": target.name} | kwargs)

    push_to_hub = push_to_hub

    def _load_adapter(self, path: Path) -> None:
        from safetensors.torch import load_file

        state, expected = load_file(path), self.adapter_state()
        wrong = set(expected) ^ set(state) or {n for n in state if expected[n].shape != state[n].shape}
        if wrong:
            raise DamagedFile(f"{path} does not fit its config.json: {min(wrong)}; save or fetch it again")
        for name, factor in lora_parameters(self.lm).items():
            factor.data.copy_(state.pop(LORA + name))
        self.load_state_dict(state, strict=False)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm.get_output_embeddings()

    @torch.no_grad()
    def conditions(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, mode: str | None = None
    ) -> Grouped:
        """Prompts (B, T) to their groups and conditions; `mode` is the configuration's unless given.

        Without a mask pads are what generation takes for pads: none where the pad is also an end token.
        """
        if attention_mask is None:
            pad, end = self.generation_config.pad_token_id, self.generation_config.eos_token_id
            no_pads = pad is None or pad in (end if isinstance(end, list) else [end])
            attention_mask = torch.ones_like(input_ids) if no_pads else (input_ids != pad).long()
        vectors = prompt_vectors(self.get_input_embeddings()(input_ids), attention_mask)  # (B, C)
        return grouped(vectors, self.centroids, mode or self.config.condition)

    def update_for(self, condition: Condition | Tensor | int) -> HeadUpdate:
        """Update for conditions (G, C), (C,) or a cluster's number, else UserError; a static head has one."""
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
        """A function for `head_update=`: adapts row b by row `group[b]` of condition (G, C); group (B,)."""
        return update_logits(self.update_for(condition), group if self.head.conditioned else None, rows)

    def body(self, **inputs):
        """The model below its head; inputs that are None or that it does not take are left out."""
        inputs = {n: x for n, x in inputs.items() if x is not None and self._accepted & {n, "kwargs"}}
        return self.lm.base_model(**inputs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        condition: Condition | Tensor | None = None,
        group: Tensor | None = None,
        head_update: Callable[..., Tensor] | None = None,
        **more,
    ) -> CausalLMOutputWithPast:
        """ids (B, T) to logits (B, T, V), adapted by condition (G, C) with group (B,) or by a `head_update`.

        labels (B, T), -100 where not scored, are shifted inside; the loss is their mean in nats per token.
        `more` goes to the body. Generation builds position_ids, which left padding needs, only if they are
        named here. head_update(head, h (B, T, C), scale), as `prepare` makes one, gives the adapted logits.
        """
        out = self.body(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **more)
        h = out.last_hidden_state  # (B, T, C)
        h = h[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else h[:, logits_to_keep]  # 0 keeps all
        if head_update is None and condition is not None:
            head_update = self.prepare(condition, group, rows=len(h))
        head, loss = self.get_output_embeddings(), None
        logits = head(h) if head_update is None else head_update(head, h, self.config.scale)
        if labels is not None:  # position t against label t + 1
            flat = logits[:, :-1].flatten(0, 1).float()  # (B·(T - 1), V)
            loss = nn.functional.cross_entropy(flat, labels[:, 1:].flatten(), ignore_index=IGNORED)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.get("past_key_values"))

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
        """Continue prompts (left-padded, with attention_mask) under an update fixed before the first token.

        condition: None, "cluster", "centroid" or "row" take it from the prompts; a tensor (G, C) with `group`
        (B,) sets it. Everything else is transformers' `generate`. Raises UserError without input_ids.
        """
        ids = kwargs.get("input_ids") if inputs is None else inputs
        if ids is None:
            raise UserError("generate needs input_ids: the condition is read from the prompt's tokens")
        if head_update is None:  # not called `update`: generate takes names of its settings for settings
            if condition is None or isinstance(condition, str):
                prompts = self.conditions(ids, kwargs.get("attention_mask"), condition)
                condition, group = prompts.condition, prompts.group
            head_update = self.prepare(condition, group, rows=len(ids))
        with fused_activations(self.lm):
            return super().generate(inputs, *args, head_update=head_update, **kwargs)

    @torch.no_grad()
    def merge_for(self, condition: Condition | Tensor | int) -> PreTrainedModel:
        """A plain model with one condition's (C,) or cluster's update in its head; UserError for more."""
        update = self.eval().update_for(condition)
        if update.groups != 1:
            raise UserError(f"merging needs one condition, not {update.groups}")
        plain = copy.deepcopy(self.lm)
        merge_lora(plain)
        head = copy.deepcopy(plain.get_output_embeddings())
        change = (self.config.scale * update.dense()).to(head.weight.dtype)
        head.weight = nn.Parameter(head.weight + change, requires_grad=False)
        plain.set_output_embeddings(head)
        for config in (plain.config, plain.config.get_text_config(decoder=True)):
            config.tie_word_embeddings = False
        plain.all_tied_weights_keys = {}  # so that saving writes both matrices
        return plain.eval()


def new_head(config: ChameleonLiteConfig) -> HyperHead | LoraHead:
    """A head of the configuration's kind and sizes."""
    sizes = (config.width, config.vocabulary, config.rank)
    if config.head == "lora":
        return LoraHead(*sizes)
    return HyperHead(*sizes, config.dropout, hidden=tuple(config.hidden))


AutoConfig.register(ChameleonLiteConfig.model_type, ChameleonLiteConfig)
AutoModelForCausalLM.register(ChameleonLiteConfig, ChameleonLiteForCausalLM)
