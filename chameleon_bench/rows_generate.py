"""B11, B12 and B13: generation, one prompt at a time, adapted, and for many clusters in one batch."""

import copy
import warnings
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from chameleon_lite import ChameleonLiteForCausalLM
from chameleon_lite.app.score import left_padded
from chameleon_lite.backbones.formats import fused_activations, set_format
from chameleon_lite.heads import HeadUpdate, update_logits

from .bench import Bench
from .measure import gate, split
from .overhead import ratios
from .workload import RANK

FUSED = "plain generate, its activations fused too"
SAME_LOGITS = 1e-3  # two best logits nearer than this may change places: padding alone moves them by 1e-4


class Prompts:
    """Left-padded random prompts (B, T), 8 to 40 tokens each, and greedy continuation by any model."""

    def __init__(self, bench: Bench, count: int, new: int) -> None:
        self.bench, self.new = bench, new
        draw = np.random.default_rng(0).integers
        prompts = [draw(bench.backbone.vocab - 1, size=length) for length in draw(8, 41, count)]
        padded = left_padded(prompts, bench.backbone.pad_id)
        self.ids, self.mask = (x.to(bench.device) for x in padded)  # (B, T)

    def one_by_one(self, model, **extra) -> Tensor:
        """New tokens (B, new), each prompt unpadded and alone."""
        prompts = [row[real.bool()][None] for row, real in zip(self.ids, self.mask)]
        return torch.cat([self.batched(model, ids, torch.ones_like(ids), **extra) for ids in prompts])

    def batched(self, model, ids: Tensor | None = None, mask: Tensor | None = None, **extra) -> Tensor:
        """New tokens (B, new), all prompts, or those given, in one batch."""
        ids, mask = (self.ids, self.mask) if ids is None else (ids, mask)
        length = {"max_new_tokens": self.new, "min_new_tokens": self.new}
        greedy = length | {"do_sample": False, "pad_token_id": self.bench.backbone.pad_id}
        return model.generate(input_ids=ids, attention_mask=mask, **greedy, **extra)[:, ids.shape[1] :]

    @torch.no_grad()
    def gate(self, model, update, tokens: Tensor, expected: Tensor) -> dict:
        """Rows whose first differing token was no near tie, by the adapted model's logits."""
        ids = torch.cat([self.ids, expected], 1)
        mask = torch.cat([self.mask, torch.ones_like(expected)], 1)
        options = {"position_ids": (mask.cumsum(1) - 1).clamp_min(0), "logits_to_keep": self.new + 1}
        best = model(input_ids=ids, attention_mask=mask, head_update=update, **options).logits.topk(2).values
        differs = tokens != expected  # (B, new)
        first = differs.int().argmax(1, keepdim=True)
        apart = (best[:, :, 0] - best[:, :, 1]).gather(1, first) > SAME_LOGITS  # (B, 1)
        wrong = int((differs.any(1) & apart[:, 0]).sum())
        return gate("rows with other greedy tokens where the two best logits are apart", wrong, 0)


def one_at_a_time(bench: Bench, prompts: int, new_tokens: int) -> dict:
    """B11: 64 prompts in one left-padded batch, against one after another as released; both in float32."""
    prompts = Prompts(bench, prompts, new_tokens)
    model, factors = _adapted(bench, groups=1)
    update = update_logits(factors, rows=1)
    ours, released = (partial(w, model, head_update=update) for w in (prompts.batched, prompts.one_by_one))
    same = prompts.gate(model, update, ours(), released())
    contenders = {"ours": ours, "released way, one by one": released}
    times = bench.race(contenders, 1 if bench.quick else 3, warm_up=False)
    inputs = {"input_ids": prompts.ids, "attention_mask": prompts.mask, "logits_to_keep": 1}
    with torch.no_grad():
        first = bench.seconds(lambda: bench.backbone.lm(**inputs))
    profile = split(times, "the prompts", first, "single-token steps")
    return {"samples": {"time": times}, "gates": [same], "profile": profile}


def adapted_against_plain(bench: Bench, prompts: int, new_tokens: int) -> dict:
    """B12: generation with an adapted head against transformers' own on the same batch."""
    prompts = Prompts(bench, prompts, new_tokens)
    plain, peer = partial(prompts.batched, bench.backbone.lm), "plain generate"
    with set_format(bench.backbone.lm, bench.served):
        model, factors = _adapted(bench, groups=1)
        ours = partial(prompts.batched, model, head_update=update_logits(factors, rows=1))

        def fused() -> Tensor:
            with fused_activations(bench.backbone.lm):  # what ours does besides
                return plain()

        # The goal lies within a few per cent of 1, and the host of a GPU is noisier than that.
        times = bench.race({"ours": ours, peer: plain, FUSED: fused}, 25 if bench.gpu else 9)
    nothing = update_logits(HeadUpdate(factors.down, torch.zeros_like(factors.up)), rows=1)
    same = prompts.gate(model, nothing, prompts.batched(model, head_update=nothing), plain())
    profile = split(times, "the plain model", times[FUSED].median(), "the update")
    span = ratios(times[peer], times["ours"])["p50"]  # paired, by turns
    half = max(span["high"] - span["ratio"], span["ratio"] - span["low"])
    samples = {"time": times, "interval": pd.DataFrame([{"ours": half, "± 3 %": 0.03}])}
    workload = {"95 % interval": [span["low"], span["high"]]}
    return {"samples": samples, "gates": [same], "workload": workload, "profile": profile}


def mixed_clusters(bench: Bench, clusters: int, new_tokens: int) -> dict:
    """B13: a batch of many clusters, each with its own update, against PEFT's `adapter_names` on the head."""
    prompts, peer = Prompts(bench, clusters, new_tokens), "PEFT adapter_names"
    with set_format(bench.backbone.lm, bench.served):
        model, factors = _adapted(bench, clusters)
        update = update_logits(factors, torch.arange(clusters))  # one prompt per cluster
        ours = partial(prompts.batched, model, head_update=update)
        plain = partial(prompts.batched, bench.backbone.lm)
        times = bench.race({"ours": ours, peer: _peft(bench, factors, prompts), "plain": plain})
    same = prompts.gate(model, update, ours(), _peft(bench, factors, prompts)())  # in float32
    workload = {"over the plain model": float(times["ours"].median() / times["plain"].median()) - 1}
    profile = split(times, "the plain model", times["plain"].median(), "the updates")
    return {"samples": {"time": times}, "gates": [same], "workload": workload, "profile": profile}


def _adapted(bench: Bench, groups: int):
    """The adapted model on the benchmark's backbone, and random factors of `groups` groups."""
    g, backbone = torch.Generator().manual_seed(1), bench.backbone
    down = torch.randn(groups, RANK, backbone.width, generator=g) * 0.05
    up = torch.randn(groups, backbone.vocab, RANK, generator=g) * 0.05
    model = ChameleonLiteForCausalLM.from_backbone(backbone, rank=RANK)
    return model, HeadUpdate(down.to(bench.device), up.to(bench.device))


def _peft(bench: Bench, factors: HeadUpdate, prompts: Prompts) -> partial:
    """Generation by PEFT: one adapter per group on the head, of the same factors, in the format that W has now."""
    from peft import LoraConfig, get_peft_model

    names = [f"c{g}" for g in range(factors.groups)]
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["lm_head"], task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it remarks that the head is tied; nothing is merged here
        model = get_peft_model(copy.deepcopy(bench.backbone.lm), config, names[0])
        for name in names[1:]:
            model.add_adapter(name, copy.copy(config))
    head = model.base_model.model.get_output_embeddings()
    with torch.no_grad():
        for name, down, up in zip(names, factors.down, factors.up):
            head.lora_A[name].weight.copy_(down)
            head.lora_B[name].weight.copy_(up)
    return partial(prompts.batched, model.eval(), adapter_names=names)
