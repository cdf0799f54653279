"""LoRA inside the layers, through PEFT: W x becomes W x + (α / r) B A x, B = 0 at the start, and its own α.

    Linear  weight (out, in)  Llama and most others         ┐ both are adapted; the head and the embeddings
    Conv1D  weight (in, out)  GPT-2, four in every layer    ┘ never are: only the model's body is searched

Paper: every layer carries LoRA / released code: only nn.Linear is searched for, of which GPT-2's layers have
none, so nothing is adapted, without any message. Here a search that matches nothing is an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .errors import UserError


def add_lora(model, *, rank: int, alpha: float | None = None, dropout: float = 0.0) -> list[str]:
    """Adapt every linear layer of a backbone's body in place; returns the adapted modules' names, sorted.

    model: a Backbone or its `lm`; alpha: numerator of the scale α / r, by default the rank. The new
    parameters are float32 (or float64) whatever the model's format, and the only ones that get gradient.
    Raises UserError where nothing matches or LoRA is there already.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    body, name = _body(model), type(getattr(model, "lm", model)).__name__
    if adapted_layers(model):
        raise UserError(f"{name} carries LoRA already: load the backbone again")
    kinds = {type(module) for module in body.modules() if isinstance(module, nn.Linear | Conv1D)}
    if not kinds:
        raise UserError(f"{name} has no Linear or Conv1D layer: LoRA would adapt nothing")
    # A fresh configuration for each model: injection writes the matched names into it.
    scale = {"r": rank, "lora_alpha": rank if alpha is None else alpha, "lora_dropout": dropout}
    config = LoraConfig(target_modules="all-linear", fan_in_fan_out=Conv1D in kinds, **scale)
    inject_adapter_in_model(config, body, low_cpu_mem_usage=body.device.type == "meta")
    for parameter in lora_parameters(model).values():
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    return sorted(adapted_layers(model))


def adapted_layers(model) -> dict[str, nn.Module]:
    """PEFT's layers by name, relative to the body; empty without LoRA."""
    return {name: layer for name, layer in _body(model).named_modules() if hasattr(layer, "lora_A")}


def lora_parameters(model) -> dict[str, nn.Parameter]:
    """The LoRA factors by name, relative to the body."""
    return {name: p for name, p in _body(model).named_parameters() if ".lora_" in name}


@contextmanager
def without_lora(model) -> Iterator[None]:
    """Exactly the frozen model inside the block, and no gradient to the factors; the adapted one after it."""
    layers = [x for x in adapted_layers(model).values() if not x.disable_adapters]  # blocks may nest
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge_lora(lm: nn.Module) -> None:
    """Replace every adapted layer by its base layer with the factors added."""
    for name, layer in adapted_layers(lm).items():
        layer.merge()
        lm.base_model.set_submodule(name, layer.get_base_layer())


def _body(model) -> nn.Module:
    return getattr(model, "lm", model).base_model
