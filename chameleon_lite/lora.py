"""LoRA inside the transformer layers, through PEFT: W x becomes W x + (α / r) B A x, with B = 0 at the start.

    Linear  weight (out, in)  Llama and most others          ┐ both are adapted; the head and the embeddings
    Conv1D  weight (in, out)  GPT-2, four in every layer     ┘ never are, since only the model's body is searched

Paper: every layer carries LoRA / released code: only nn.Linear is searched for, of which GPT-2's layers have none,
so nothing is adapted and nothing is said. Here a search that matches nothing is an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from . import errors, files


def add_lora(model, *, rank: int, alpha: float | None = None, dropout: float = 0.0) -> list[str]:
    """Adapt every linear layer of a backbone's body in place; returns the adapted modules' names, sorted.

    model: a Backbone or its `lm`; alpha: numerator of the scale α / r, by default the rank. The new parameters
    are float32 (or float64) whatever the model's format, and the only ones that get gradient.
    Raises UserError where nothing matches or LoRA is there already.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    lm = getattr(model, "lm", model)
    body = lm.base_model
    if lora_names(lm):
        raise errors.UserError(f"{type(lm).__name__} carries LoRA already: load the backbone again")
    kinds = {type(module) for module in body.modules() if isinstance(module, nn.Linear | Conv1D)}
    if not kinds:
        raise errors.UserError(f"{type(lm).__name__} has no Linear or Conv1D layer: LoRA would adapt nothing")
    # A fresh configuration for each model: injection writes the matched names into it.
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        fan_in_fan_out=Conv1D in kinds,
    )
    inject_adapter_in_model(config, body, low_cpu_mem_usage=body.device.type == "meta")
    for parameter in lora_parameters(lm).values():
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    names = lora_names(lm)
    if not names:
        raise errors.UserError(f"no layer of {type(lm).__name__} was adapted")
    return names


def lora_names(model) -> list[str]:
    """Names of the adapted modules, relative to the body; empty without LoRA."""
    body = getattr(model, "lm", model).base_model
    return sorted({name.split(".lora_A.")[0] for name, _ in body.named_parameters() if ".lora_A." in name})


def lora_parameters(model) -> dict[str, nn.Parameter]:
    """The LoRA factors by name, relative to the body."""
    body = getattr(model, "lm", model).base_model
    return {name: p for name, p in body.named_parameters() if ".lora_" in name}


def enable_lora(model, enabled: bool = True) -> None:
    """Switch the adaptation on or off; off gives exactly the frozen model, and stops gradients to the factors."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in getattr(model, "lm", model).base_model.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(enabled)


@contextmanager
def without_lora(model) -> Iterator[None]:
    """The frozen model inside the block, the adapted one after it."""
    enable_lora(model, False)
    try:
        yield
    finally:
        enable_lora(model, True)


def lora_state(model) -> dict[str, Tensor]:
    """A copy of the LoRA factors, by name, to be given to `load_lora_state`."""
    return {name: p.detach().clone() for name, p in lora_parameters(model).items()}


def load_lora_state(model, state: dict[str, Tensor]) -> None:
    """Put factors back into a model that was adapted in the same way; UserError if names or shapes differ."""
    own = lora_parameters(model)
    different = sorted(set(own) ^ set(state)) or [
        name for name in own if own[name].shape != state[name].shape
    ]
    if different:
        raise errors.UserError(
            f"these LoRA factors are for another model or rank: {different[0]} does not fit"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def save_lora(model, path: Path | str) -> None:
    """Write the LoRA factors to a safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    with files.atomic(path) as part:
        save_file({name: value.contiguous().cpu() for name, value in lora_state(model).items()}, part)


def load_lora(model, path: Path | str) -> None:
    """Read factors written by `save_lora`."""
    from safetensors.torch import load_file

    load_lora_state(model, load_file(path))
