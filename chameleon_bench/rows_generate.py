"""B11, B12 and B13: generation, one prompt at a time, adapted, and for many clusters in one batch."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from chameleon_lite.backbone import in_format
from chameleon_lite.fast import aligned_head
from chameleon_lite.heads import HeadUpdate, update_logits

from .measure import Gate, Row, faster, interleaved, seconds_of
from .workload import RANK, Bench

SAME_LOGITS = 1e-3  # two best logits nearer than this may change places: padding alone moves them by 1e-4


class Prompts:
    """Left-padded random prompts (B, T), 8 to 40 tokens each, and greedy continuation by any model."""

    def __init__(self, bench: Bench, count: int, new: int) -> None:
        self.bench, self.count, self.new = bench, count, new
        g = torch.Generator().manual_seed(0)
        lengths = torch.randint(8, 41, (count,), generator=g)
        width = int(lengths.max())
        ids = torch.randint(0, bench.backbone.vocab - 1, (count, width), generator=g)
        mask = torch.arange(width)[None] >= (width - lengths)[:, None]  # (B, T)
        self.mask = mask.long().to(bench.device)
        self.ids = torch.where(self.mask.bool(), ids.to(bench.device), bench.backbone.pad_id)

    def batched(self, model, rows: slice = slice(None), **extra) -> Tensor:
        """New tokens (B, new) of some rows in one batch."""
        ids, mask = self.ids[rows], self.mask[rows]
        out = model.generate(input_ids=ids, attention_mask=mask, **self._greedy(), **extra)
        return out[:, ids.shape[1] :]

    def one_by_one(self, model, update: Callable[[int], dict]) -> Tensor:
        """New tokens (B, new), each prompt unpadded and alone; `update` gives row b's own keywords."""
        rows = []
        for b in range(self.count):
            ids = self.ids[b : b + 1, self.mask[b].bool()]
            mask = torch.ones_like(ids)
            out = model.generate(input_ids=ids, attention_mask=mask, **self._greedy(), **update(b))
            rows.append(out[0, -self.new :])
        return torch.stack(rows)

    def _greedy(self) -> dict:
        count = {"max_new_tokens": self.new, "min_new_tokens": self.new}
        return count | {"do_sample": False, "pad_token_id": self.bench.backbone.pad_id}

    @property
    def tokens(self) -> int:
        return self.count * self.new


def one_at_a_time(bench: Bench) -> Row:
    """B11: 64 prompts in one left-padded batch, against one after another as released; float32 on both sides."""
    prompts = Prompts(bench, 64, bench.size(cpu=8, gpu=32, quick=2))
    model, factors = _adapted(bench, groups=1)
    update = _laid_out(factors, None)

    def ours() -> Tensor:
        return prompts.batched(model, head_update=update)

    def released() -> Tensor:
        return prompts.one_by_one(model, lambda b: {"head_update": update})

    found, expected = ours(), released()
    heavy = 1 if bench.quick else 3
    peer = "released way, one by one"
    times = interleaved({"ours": ours, peer: released}, bench.device, heavy, warm_up=False)
    return Row(
        "B11",
        "generating for 64 prompts",
        [faster(times, peer, bench.goal(4, 25))],
        [_token_gate(prompts, found, expected, _next_logits(model, prompts, update))],
        limit="reading the weights once a token, whatever the batch",
        workload={
            "prompts": prompts.count,
            "new tokens": prompts.new,
            "arithmetic": "float32",
            "tok/s": prompts.tokens / times["ours"].median,
            "tok/s one by one": prompts.tokens / times[peer].median,
        },
        profile=_decode_profile(bench, prompts, times["ours"].median),
    )


def adapted_against_plain(bench: Bench) -> Row:
    """B12: generation with an adapted head against transformers' own on the same batch."""
    prompts = Prompts(bench, bench.size(16, 64, 4), bench.size(cpu=12, gpu=64, quick=3))
    with _format(bench) as dtype:
        model, factors = _adapted(bench, groups=1)
        update = _laid_out(factors, None)
        plain = bench.backbone.lm

        def ours() -> Tensor:
            return prompts.batched(model, head_update=update)

        def unaligned() -> Tensor:
            with mock.patch.object(aligned_head, "gains", return_value=False):
                return ours()

        contenders = {"ours": ours, "plain generate": lambda: prompts.batched(plain)}
        if bench.gpu:  # what is due to the aligned copy of W, which the plain model could have as well
            contenders["W as it is"] = unaligned
        # The goal lies within a few per cent of 1, and the host of a GPU is noisier than that.
        times = interleaved(contenders, bench.device, bench.repetitions(25 if bench.gpu else 9))
    nothing = _laid_out(HeadUpdate(factors.down.float(), torch.zeros_like(factors.up).float()), None)
    same = prompts.batched(model, head_update=nothing), prompts.batched(plain)
    return Row(
        "B12",
        "adapted generation, against the plain model's",
        [faster(times, "plain generate", bench.goal(0.90, 0.97))],
        [_token_gate(prompts, *same, _next_logits(model, prompts, nothing))],
        limit="1.0; on a GPU beyond it by what aligned columns save",
        workload={
            "prompts": prompts.count,
            "new tokens": prompts.new,
            "arithmetic": str(dtype),
            "tok/s": prompts.tokens / times["ours"].median,
            "tok/s plain": prompts.tokens / times["plain generate"].median,
            "tok/s, W as it is": prompts.tokens / times.get("W as it is", times["ours"]).median,
        },
        profile={
            "the plain model": times["plain generate"].median,
            "the update": max(0.0, times["ours"].median - times["plain generate"].median),
        },
    )


def mixed_clusters(bench: Bench) -> Row:
    """B13: a batch of many clusters, each with its own update, against PEFT's `adapter_names` on the head."""
    groups = bench.size(16, 64, 4)
    prompts = Prompts(bench, bench.size(16, 64, 4), bench.size(cpu=12, gpu=32, quick=3))
    group = torch.arange(prompts.count) % groups
    with _format(bench) as dtype:
        model, factors = _adapted(bench, groups)
        update = _laid_out(factors, group)
        peer, names = _peft(bench, factors, group)
        times = interleaved(
            {
                "ours": lambda: prompts.batched(model, head_update=update),
                "PEFT adapter_names": lambda: prompts.batched(peer, adapter_names=names),
                "plain": lambda: prompts.batched(bench.backbone.lm),
            },
            bench.device,
            bench.repetitions(),
        )
    exact = HeadUpdate(factors.down.float(), factors.up.float())
    update = _laid_out(exact, group)
    del peer
    peer, names = _peft(bench, exact, group)
    found, expected = prompts.batched(model, head_update=update), prompts.batched(peer, adapter_names=names)
    return Row(
        "B13",
        f"{groups} clusters in one batch",
        [faster(times, "PEFT adapter_names", bench.goal(1.0, 1.3))],
        [_token_gate(prompts, found, expected, _next_logits(model, prompts, update))],
        limit="the plain model plus about 10 %",
        workload={
            "prompts": prompts.count,
            "clusters": groups,
            "new tokens": prompts.new,
            "arithmetic": str(dtype),
            "tok/s": prompts.tokens / times["ours"].median,
            "over the plain model": times["ours"].median / times["plain"].median - 1,
        },
        profile={
            "the plain model": times["plain"].median,
            "the updates": max(0.0, times["ours"].median - times["plain"].median),
        },
    )


@contextmanager
def _format(bench: Bench) -> Iterator[torch.dtype]:
    """The backbone in the format it is served in, 16 bits on a GPU, and back in float32 afterwards."""
    dtype = torch.bfloat16 if bench.gpu else torch.float32
    with in_format(bench.backbone.lm, dtype):
        yield dtype


def _adapted(bench: Bench, groups: int):
    """The adapted model on the benchmark's backbone, and made-up factors of `groups` groups."""
    from chameleon_lite.chameleon import ChameleonLiteForCausalLM

    g, backbone = torch.Generator().manual_seed(1), bench.backbone
    down = torch.randn(groups, RANK, backbone.width, generator=g) * 0.05
    up = torch.randn(groups, backbone.vocab, RANK, generator=g) * 0.05
    model = ChameleonLiteForCausalLM.from_backbone(backbone, rank=RANK)
    return model, HeadUpdate(down.to(bench.device), up.to(bench.device))


def _laid_out(factors: HeadUpdate, group: Tensor | None):
    return update_logits(factors, torch.zeros(1, dtype=torch.int64) if group is None else group)


def _peft(bench: Bench, factors: HeadUpdate, group: Tensor):
    """A PEFT model with one adapter a group on the head, holding the same factors, and each row's adapter name."""
    import warnings

    from peft import LoraConfig, get_peft_model

    names = [f"c{g}" for g in range(factors.groups)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it remarks that the head is tied; nothing is merged here
        model = get_peft_model(copy.deepcopy(bench.backbone.lm), _peft_settings(LoraConfig), names[0])
        for name in names[1:]:
            model.add_adapter(name, _peft_settings(LoraConfig))
    head = model.base_model.model.get_output_embeddings()
    with torch.no_grad():
        for g, name in enumerate(names):
            head.lora_A[name].weight.copy_(factors.down[g])
            head.lora_B[name].weight.copy_(factors.up[g])
    return model.eval(), [names[g] for g in group.tolist()]


def _peft_settings(config):
    return config(r=RANK, lora_alpha=RANK, target_modules=["lm_head"], task_type="CAUSAL_LM")


def _next_logits(model, prompts: Prompts, update) -> Callable[[int, Tensor], Tensor]:
    """The logits (V,) that follow row b's prompt and some new tokens, in float32, from the whole batch anew."""

    @torch.no_grad()
    def logits(b: int, new: Tensor) -> Tensor:
        tail = new[None].expand(prompts.count, -1)
        ids = torch.cat([prompts.ids, tail], 1)
        mask = torch.cat([prompts.mask, torch.ones_like(tail)], 1)
        place = (mask.cumsum(1) - 1).clamp_min(0)
        options = {"attention_mask": mask, "position_ids": place, "logits_to_keep": 1}
        return model(input_ids=ids, head_update=update, **options).logits[b, -1]

    return logits


def _token_gate(prompts: Prompts, found: Tensor, expected: Tensor, logits) -> Gate:
    """Rows whose first differing token was no near tie."""
    wrong = 0
    for b in (found != expected).any(1).nonzero().flatten().tolist():
        step = int((found[b] != expected[b]).nonzero()[0])
        best = logits(b, expected[b, :step]).topk(2).values
        wrong += bool(best[0] - best[1] > SAME_LOGITS)
    return Gate("rows with other greedy tokens where the two best logits are apart", float(wrong), 0.0)


def _decode_profile(bench: Bench, prompts: Prompts, total: float) -> dict[str, float]:
    """Seconds of the prompt's pass and of the single-token steps."""
    lm = bench.backbone.lm
    with torch.no_grad():
        given = dict(input_ids=prompts.ids, attention_mask=prompts.mask, logits_to_keep=1)
        first = seconds_of(lambda: lm(**given), bench.device)
    return {"the prompts": first, "single-token steps": max(0.0, total - first)}
