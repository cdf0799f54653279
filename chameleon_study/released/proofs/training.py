"""Proofs about what is trained, rows read twice, dropout, the chosen epoch, parameters, kinds of model."""

import tempfile

import torch
from torch import nn

from chameleon_lite import Arrangement, Condition, HyperHead, LoraHead, average, evaluate, fit
from chameleon_lite.app.fit_settings import FitSettings
from chameleon_lite.backbone import copied
from chameleon_lite.backbones.tiny import byte_tokenizer

from ...claims.paper import published
from ...tables import parameter_table
from ..prepare import documents_by_split
from ..protocol import preset
from ..states import LivePaddedStates, live_dropout
from .subject import Shown, Subject

CONDITIONS = 8
ROWS = {"cuda": 512, "cpu": 64}  # training rows read again with the backbone's dropout on
# kinds of model on which the head is built, small and with random weights
NAMED = {"transformer.wte", "transformer.wpe", "lm_head"}  # GPT-2's names, audit row 18
SIZES = dict(vocab_size=257, hidden_size=16, num_hidden_layers=2, max_position_embeddings=128)
HEADS, ENDS = ("num_attention_heads", "num_key_value_heads"), ("bos_token_id", "eos_token_id", "pad_token_id")
COMMON = SIZES | dict.fromkeys(HEADS, 4) | dict.fromkeys(ENDS, 256)
KINDS = {name: {} for name in ("gpt2", "gpt_bigcode", "gpt_neox", "llama", "opt", "phi", "qwen2")}
KINDS["gpt_neo"] = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
TEXTS = 100
SETTINGS = FitSettings(head="hyper", train={"epochs": 10}, tokens={"max_length": 64})


def alpaca_overlap(subject: Subject) -> Shown | None:
    """Share of validation rows that are training rows, as released and disjoint; None for plain text."""
    if not subject.prompts:
        return None
    numbers = {}
    for name in ("as_released", "honest"):
        splits = documents_by_split(subject.settings, preset(name), subject.material.corpus)
        numbers[f"{name}_validation_rows"] = float(len(splits["validation"]))
        for what, key in (("rows", lambda d: (d.prompt, d.text)), ("prompts", lambda d: d.prompt)):
            train, validation = (set(map(key, splits[split])) for split in ("train", "validation"))
            numbers[f"{name}_{what}_also_trained_on"] = len(train & validation) / len(validation)
    return numbers, {}


def dropout_and_selection(subject: Subject) -> Shown:
    """Running loss against the heads re-read; last epoch against the lowest; live against cached."""
    numbers: dict[str, float] = {}
    for regime in ("R1", "R4"):
        m = subject.trained[regime][2]
        numbers |= {
            f"{regime}_running_training_loss": m["train_nll"],
            f"{regime}_training_loss_re_read": m["train_eval_nll"],
            f"{regime}_validation_loss": m["validation_nll"],
            f"{regime}_lowest_minus_last_epoch": m["validation_nll"] - m["validation_last_epoch_nll"],
        }
    numbers |= _backbone_dropout(subject)
    dropout = "this backbone has no dropout to switch on"
    if numbers["backbone_dropout_applies"]:
        change = numbers["R1_dropout_on"] - numbers["R1_dropout_off"]
        dropout = f"the backbone's dropout changes the LoRA loss by {change:+.4f}"
    running = numbers["R4_running_training_loss"] - numbers["R4_training_loss_re_read"]
    return numbers, {"running": running, "dropout": dropout}


def _backbone_dropout(subject: Subject) -> dict[str, float]:
    """The LoRA head on some training rows, states computed anew: without and with the backbone's dropout."""
    material, backbone = subject.material, copied(subject.backbone)
    switched = live_dropout(backbone.lm)
    out = {
        "backbone_dropout_applies": float(switched["applies"]),
        "backbone_dropout_configured": switched["configured"],
        "backbone_dropout_set": float(switched["set"] or switched["configured"]),
    }
    table = material.tables["train"]
    rows = torch.randperm(len(table), generator=torch.Generator().manual_seed(subject.seed))
    table = table.take(rows[: ROWS.get(backbone.device.type, ROWS["cpu"])].sort().values)
    head, order = [(subject.trained["R1"][0].head, None)], Arrangement(torch.arange(len(table)))
    for name, train_mode in (("R1_dropout_off", False), ("R1_dropout_on", True)):
        options = {"dtype": material.feature_dtype, "train_mode": train_mode}
        states = LivePaddedStates(backbone, table, material.scoring, **options)
        with torch.random.fork_rng():
            torch.manual_seed(subject.seed)
            nll = evaluate(head, states, order, material.weight, rows=32)[0].cpu()
        out[name] = float(average(nll, states.counts))
    return out


def rebuilt(head: HyperHead, condition: Condition) -> tuple[float, float]:
    """Largest relative error of `down` and `up` rebuilt from the stored pairs and the gate (G conditions).

    Also how far the update differs from the same blend of whole updates (ΔW = Σ u_k B_k A_k), on unit inputs:
    blending factors has cross terms, so the bank is one by storage and not by function.
    """
    update, basis = head.factors(condition), head.basis()  # (G, …), (33, …)
    code = head.code(condition)  # (G, 33)
    down = torch.einsum("gk,krc->grc", code, basis.down)
    up = torch.einsum("gk,kvr->gvr", code, basis.up)
    error = max(float((a - b).norm() / b.norm()) for a, b in ((down, update.down), (up, update.up)))
    x = torch.eye(head.width, device=down.device, dtype=down.dtype)[: min(16, head.width)]
    blended = torch.einsum("gvr,grc,mc->gmv", update.up, update.down, x)
    through = torch.einsum("mc,krc,gk->gmkr", x, basis.down, code)
    whole = torch.einsum("gmkr,kvr->gmv", through, basis.up)
    return error, float((blended - whole).norm() / blended.norm())


@torch.no_grad()
def adapter_bank(subject: Subject) -> Shown:
    """Rebuild the trained hyper-network's factors from its stored adapters and count what is stored."""
    head = subject.trained["R4"][0].head.eval()
    vectors = subject.material.condition_vectors["validation"][:CONDITIONS]
    error, cross = rebuilt(head.double(), Condition(vectors.double()))
    head.float()
    lora = LoraHead(head.width, head.vocab, head.rank).trainable_parameters()
    last = sum(p.numel() for p in head.last.parameters())
    numbers = {"stored_adapters": last / lora, "last_layer_parameters": float(last)}
    numbers |= {"one_adapter_parameters": float(lora), "relative_error": error}
    numbers |= {"gate_parameters": float(head.trainable_parameters() - last)}
    return numbers | {"difference_to_blended_updates": cross}, {"rank": head.rank}


def untouched_layers(subject: Subject) -> Shown:
    """Layers that a search for nn.Linear adapts, in GPT-2's exact geometry and in this backbone."""
    from transformers import AutoModelForCausalLM, GPT2Config
    from transformers.pytorch_utils import Conv1D

    def modules(body: nn.Module, kind: type) -> float:
        return float(sum(isinstance(m, kind) for m in body.modules()))

    with torch.device("meta"):
        body = AutoModelForCausalLM.from_config(GPT2Config(), trust_remote_code=False).base_model
    counts = parameter_table("random-gpt2")
    return {
        "gpt2_linear_modules": modules(body, nn.Linear),
        "gpt2_conv1d_modules": modules(body, Conv1D),
        "backbone_linear_modules": modules(subject.backbone.body, nn.Linear),
        "head_LoRA_parameters": float(counts["lora_head"]),
        "published_LoRA_parameters": published(1, "R1", "parameters"),
        "layer_LoRA_parameters": float(counts["lora_layers"]),
        "hyper_network_parameters": float(counts["hyper_head"]),
        "published_hyper_network_parameters": published(1, "R4", "parameters"),
    }, {}


def architectures(subject: Subject) -> Shown:
    """On which kinds of model the head can be built, by this package and by what the released scripts need of one.

    kind ─ small, random weights ─ saved ─▶ fit to a hundred texts ─▶ 1 if held-out loss falls, else 0
                                        └─▶ 1 if every part that the scripts name is there
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    texts = [document.text for document in subject.texts.splits["train"][:TEXTS]]
    built, named = {}, {}
    for kind, own in KINDS.items():
        subject.say(f"a small {kind}")
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = AutoConfig.for_model(kind, **COMMON | own)
            lm = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            lm.save_pretrained(folder)
            byte_tokenizer(128).save_pretrained(folder)
            fitted = fit(texts, backbone=folder, settings=SETTINGS, device="cpu", progress=False)
        subject.say(str(fitted))
        built[kind] = fitted.helped
        named[kind] = {name for name, _ in lm.named_modules()} >= NAMED
    numbers = {"kinds": float(len(KINDS)), "built": float(sum(built.values()))}
    numbers |= {"released_built": float(sum(named.values()))}
    return numbers, {"those": ", ".join(kind for kind in KINDS if named[kind])}
