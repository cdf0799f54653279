"""export: an adapter as other tools load it, for one condition at a time.

    adapter ─ a cluster's condition, or the clusters' mean ─▶ update ─┬▶ peft    low-rank factors, beside the backbone
                                                                      └▶ merged  a whole model, the update in its head

What `adapt` decides anew for each group of texts is decided here once. `every` writes a folder per cluster, the
centroids, and in routing.json which text goes where: a server that mixes adapters in a batch then does what
`adapt --condition centroid` does. Only PEFT's file layout is used, not PEFT: its own saver stores the base head too.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files
from ..backbones.adapters import placed, read_settings
from ..backbones.card import hub_id, write_card
from ..backbones.hub import adapter_folder
from ..errors import UserError, known
from ..heads import HeadUpdate
from ..lora import adapted_layers
from . import SENTENCES
from .outputs import claimed, writing
from .stream import open_model

FORMATS = ("peft", "merged")
CONFIG, WEIGHTS, ROUTING = "adapter_config.json", "adapter_model.safetensors", "routing.json"
STALE = (ROUTING, "cluster-*/adapter_*", "*.index.json", "adapter_*", "config.json", "generation_config.json")
STALE += ("centroids.safetensors", "model*.safetensors", "pytorch_model*.bin")


def export(
    model: Any,
    out: Path | str,
    *,
    format: str = "peft",
    cluster: int | None = None,
    every: bool = False,
    condition: Tensor | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write an adapter for other tools to the folder `out`, and return that.

    model: a ChameleonLiteForCausalLM, or a saved adapter's folder or hub id; format: "peft" or "merged"; cluster: a
    stored cluster's number; every: all of them; condition (C,): any other; default: the mean of the centroids. A static
    head needs none. `say` is given what to mind. Raises UserError for what a format cannot hold, with what can, and for
    an `out` that may not be replaced; RunFailed where it cannot be written.
    """
    known("format", [format], FORMATS)
    if (cluster is not None) + every + (condition is not None) > 1:
        raise UserError("one cluster, all clusters or a condition exclude each other: choose one")
    if every and format == "merged":
        raise UserError("merged writes the whole model for each cluster: use peft, or one cluster at a time")
    folder = [adapter_folder(model)] if isinstance(model, str | os.PathLike) else []
    name = read_settings(*folder)["backbone_name"] if folder else model.backbone.name
    inputs = [*folder, name, files.home() / name]  # stay as they are; the cache holds what `fetch` got
    with claimed(out, inputs, folder=True, overwrite=overwrite) as target:
        model = open_model(model, "cpu").eval()
        with writing(target):
            if every:
                _every(model, target)
            else:
                write = _merged if format == "merged" else _peft
                write(model, target, *_chosen(model, cluster, condition))
        for limit in _limits(model) if format == "peft" else ():
            say(limit)
        return target


def _chosen(model, cluster: int | None, condition: Tensor | None) -> tuple[Tensor | int, str]:
    """The condition (C,), or the cluster, whose update is to be written, and the card's sentence on it."""
    if not model.head.conditioned:
        if cluster is not None:
            raise UserError("this adapter's head is the same for every text: leave out the cluster")
        return model.centroids.new_zeros(model.config.width), "It is the same for every text."
    if condition is not None:
        return condition, "Its update is that of one condition, which was given."
    if cluster is not None:
        return cluster, f"Its update is that of cluster {cluster}, for texts of that kind."
    if not len(model.centroids):
        raise UserError("this adapter has no stored centroids: give a condition (C,), in Python")
    return model.centroids.mean(0), "Its update is that of the mean of all clusters."


def _update(model, condition: Tensor | int) -> HeadUpdate:
    """The one update of that condition; UserError for one that other tools cannot express."""
    with torch.no_grad():
        update = model.update_for(condition)
    if update.groups != 1 or update.bias is not None or update.down is None:
        raise UserError("this head adds more than one low-rank update, which no other tool loads: use adapt")
    return update


def _every(model, target: Path) -> None:
    """A folder for each cluster, then the centroids, then the table that names them."""
    from safetensors.torch import save_file

    if not model.head.conditioned or not len(model.centroids):
        raise UserError("this adapter has no updates by cluster: leave out --all")
    _clear(target)
    names = {str(k): f"cluster-{k}" for k in range(len(model.centroids))}
    for k, name in enumerate(names.values()):
        _peft(model, target / name, *_chosen(model, k, None))
    with placed(target, last=ROUTING) as part:
        save_file({"centroids": model.centroids.float().cpu().contiguous()}, part / "centroids.safetensors")
        table = {"clusters": names, "centroids": "centroids.safetensors", "how": SENTENCES["routing"]}
        table |= {"prompts": model.config.prompts}  # how texts were cut and written
        (part / ROUTING).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        what = f"Here are {len(names)} of them, one for each cluster of texts, in a folder each."
        write_card(model, part, target, "peft", what=what, limits=_limits(model), use="clusters")


def _peft(model, target: Path, condition: Tensor | int, what: str) -> None:
    """The two files that PEFT loads; every scale is the same, for tools that read one for all modules."""
    from safetensors.torch import save_file

    factors, scale = _factors(model, _update(model, condition)), model.config.scale
    ranks = {name: len(down) for name, (down, _) in factors.items()}
    rank, other = max(ranks.values()), {name: r for name, r in ranks.items() if r < max(ranks.values())}
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True}
    config |= {"base_model_name_or_path": hub_id(model.backbone), "revision": model.backbone.revision or None}
    config |= {"r": rank, "lora_alpha": _whole(rank * scale), "lora_dropout": 0.0, "bias": "none"}
    layers = [type(layer.get_base_layer()).__name__ for layer in adapted_layers(model.lm).values()]
    config |= {"target_modules": sorted(factors), "fan_in_fan_out": "Conv1D" in layers}  # weights (in, out)
    if other:
        config |= {"rank_pattern": other, "alpha_pattern": {n: _whole(r * scale) for n, r in other.items()}}
    tensors = {}
    for name, pair in factors.items():
        for letter, factor in zip("AB", pair):
            factor = factor.detach().float().cpu().contiguous()
            tensors[f"base_model.model.{name}.lora_{letter}.weight"] = factor
    with placed(target, last=CONFIG) as part:
        save_file(tensors, part / WEIGHTS, metadata={"format": "pt"})
        (part / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        write_card(model, part, target, "peft", what=what, limits=_limits(model))
        _clear(target)


def _factors(model, update: HeadUpdate) -> dict[str, tuple[Tensor, Tensor]]:
    """down (R, in) and up (out, R) by the module's full name, all to be scaled by the configuration's α."""
    names = {id(module): name for name, module in model.lm.named_modules()}
    up = update.up[0] if update.mix is None else update.up[0] * update.mix
    factors = {names[id(model.get_output_embeddings())]: (update.down[0], up)}
    for layer in adapted_layers(model.lm).values():
        (kind,) = layer.active_adapters
        up = layer.lora_B[kind].weight * (layer.scaling[kind] / model.config.scale)
        factors[names[id(layer)]] = (layer.lora_A[kind].weight, up)
    ends = tuple(f".{name}" for name in factors)
    if more := [name for name in names.values() if name not in factors and name.endswith(ends)]:
        raise UserError(f"PEFT would change {more[0]} too, whose name ends alike: use the format merged")
    return factors


def _merged(model, target: Path, condition: Tensor | int, what: str) -> None:
    """A model of its own, its head untied from its embeddings, and its tokenizer."""
    from transformers import GenerationConfig

    _update(model, condition)
    plain = model.merge_for(condition)
    kind = str(plain.dtype).removeprefix("torch.")
    rounded = [f"The update is rounded to {kind}, as the weights are."] if plain.dtype.itemsize < 4 else []
    try:
        plain.generation_config.validate(strict=True)
    except ValueError:  # as many a checkpoint's, which transformers reads and then refuses to write
        ids = {name: getattr(plain.generation_config, name) for name in ("bos_token_id", "eos_token_id")}
        plain.generation_config = GenerationConfig(**ids, pad_token_id=plain.generation_config.pad_token_id)
    plain.config._name_or_path = plain.name_or_path = ""
    with placed(target) as part:
        plain.save_pretrained(part)
        model.tokenizer.save_pretrained(part)
        write_card(model, part, target, "merged", what=what, limits=rounded)
        _clear(target)


def _clear(target: Path) -> None:
    """Take away what another export or model left in `target`, lest both be read as one."""
    for path in (path for pattern in STALE for path in target.glob(pattern)):
        path.unlink()


def _limits(model) -> list[str]:
    """What whoever loads the factors must mind."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    holds = {"tied": tied, "gpt2": model.lm.config.model_type == "gpt2"}
    return [SENTENCES[name] for name in holds if holds[name]]


def _whole(number: float) -> int | float:
    """The same number, an integer where it is one: some tools expect that."""
    return int(number) if number == int(number) else number
