"""What `fit` can train on one's texts, and the training of it: heads side by side on stored states, layers alone.

    settings ─ candidates_of ─▶ one FitSettings each ─▶ Cohort.train ─▶ nats of held-out texts (1 + n, N)

A candidate's settings name it alone, so that `fit` with them trains the same adapter: initialisation, orders and
dropout come from its own seed, and heads of a cohort share nothing but the states that they read.
"""

import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from .. import files
from ..backbone import Backbone
from ..backbones.formats import number_format
from ..batches import Arrangement
from ..cluster import Clustering
from ..conditions import GroupMean
from ..heads import matched_rank
from ..lora import lora_parameters, without_lora
from ..loss import HeadWeight
from ..processes import Processes
from ..states import ScoredStates, hidden_states
from ..streams.online import step_tokens
from ..train import Member, evaluate, train_heads
from ..train_layers import LiveStates, WithLayers
from .corpus import SPLITS
from .fit_settings import FitSettings
from .outputs import writing
from .parts import Parts


def candidates_of(settings: FitSettings, backbone: Backbone) -> list[FitSettings]:
    """The settings of each candidate alone: one, or with head "auto" those that are compared."""

    def own(**changes) -> FitSettings:
        return settings.model_copy(update={"layers": None} | changes)

    with_layers = own(head="layers", lora_rank=settings.lora_rank or settings.rank)
    if settings.head != "auto":
        return [with_layers if settings.head == "layers" else own()]
    matched = matched_rank(backbone.width, backbone.vocab, settings.rank)
    found = [own(head="lora", lora_rank=0, rank=rank) for rank in sorted({settings.rank, matched})]
    found.append(own(head="hyper", lora_rank=0))
    return found + [with_layers] * tries_layers(settings, backbone)


def tries_layers(settings: FitSettings, backbone: Backbone) -> bool:
    """Whether "auto" tries LoRA in the layers: where it is given, else not on a CPU, where it is slow."""
    if settings.layers is None:
        return settings.lora_rank > 0 or backbone.device.type != "cpu"
    return settings.layers


def name_of(settings: FitSettings) -> str:
    """A candidate's name in the table."""
    name, rank = "hyper-network" if settings.head == "hyper" else "LoRA", str(settings.rank)
    if settings.lora_rank:
        name += " + layers"
        rank += f"/{settings.lora_rank}" if settings.lora_rank != settings.rank else ""
    return f"{name} rank {rank}"


def new_model(backbone: Backbone, clustering: Clustering, settings: FitSettings):
    """An untrained adapter of a candidate's kind."""
    from ..chameleon import ChameleonLiteForCausalLM

    same = settings.model_dump(include={"rank", "dropout", "condition", "lora_rank"})
    same |= {"scale": settings.train.scale, "prompts": settings.tokens.model_dump()}
    same["head"] = "hyper" if settings.head == "hyper" else "lora"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return ChameleonLiteForCausalLM.from_backbone(backbone, centroids=clustering.centroids, **same)


class Cohort:
    """Candidates that are trained on the same states: heads, or one with LoRA in the layers; see `train_heads`."""

    def __init__(
        self,
        candidates: Sequence[FitSettings],
        backbone: Backbone,
        parts: Parts,
        clustering: Clustering,
        processes: Processes,
        progress: bool,
    ) -> None:
        self.candidates, self.settings, self.backbone, self.parts = candidates, candidates[0], backbone, parts
        self.processes, self.progress, self.seconds = processes, progress, 0.0
        self.models = [new_model(backbone, clustering, one) for one in candidates]
        train = self.settings.train
        dtype = number_format(train.matmul_dtype, backbone.device)
        self.weight = HeadWeight(backbone.head.weight, backbone.head.bias, dtype=dtype)
        size = self.settings.clusters.batch_rows
        self.sources = {s: GroupMean(parts.vectors[s].to(backbone.device), size) for s in SPLITS}
        self.states = _states(backbone, parts, self.settings, progress)
        self.members = [self._member(one, model) for one, model in zip(candidates, self.models)]

    def _member(self, candidate: FitSettings, model) -> Member:
        head = model.head
        if candidate.lora_rank:
            head = WithLayers(head, lora_parameters(self.backbone).values())
        sources = (self.sources["train"], self.sources["validation"]) if head.conditioned else (None, None)
        return Member(name_of(candidate), head, *sources, candidate.learning_rate, candidate.seed)

    def train(self) -> None:
        """Every head, and LoRA in the layers if any, in place, left in its best state on the validation part."""
        started, train, seed = time.perf_counter(), self.settings.train, self.settings.seed
        if self.settings.lora_rank:
            train = train.model_copy(update={"validations_per_epoch": 1})  # each runs the whole backbone
        check = self.states["validation"], self.parts.order("validation", seed)

        def orders(epoch: int) -> Arrangement:
            return self.parts.order("train", seed * 100_003 + epoch)

        with closing(self.states["train"]) if self.settings.lora_rank else nullcontext():
            how = (self.weight, train, self.processes, self.progress)
            train_heads(self.members, self.states["train"], orders, *check, *how)
        self.seconds = time.perf_counter() - started

    def nats(self, split: str, members: Sequence[Member]) -> np.ndarray:
        """Sums of nats (1 + n, N) of a part's texts, frozen and under each of the members."""
        data, train = self.states[split], self.settings.train
        heads = [(m.head, self.sources[split] if m.head.conditioned else None) for m in members]
        hidden = None if self.progress and not self.processes.index else True  # None: if no terminal
        shown = {"desc": f"reading {split}", "unit": "token", "unit_scale": True, "leave": False}
        bar = tqdm(total=2 * int(data.counts.sum()), disable=hidden, **shown)
        options = {"data": data, "arrangement": self.parts.order(split, self.settings.seed)}
        options |= {"weight": self.weight, "rows": train.rows_per_step, "scale": train.scale}
        options |= {"processes": self.processes, "watch": lambda nll, documents: bar.update(len(documents))}
        with bar:
            with without_lora(self.backbone):
                frozen = evaluate([(None, None)], **options)
            return torch.cat([frozen, evaluate(heads, **options)]).cpu().numpy()


def _states(backbone: Backbone, parts: Parts, settings: FitSettings, progress: bool) -> dict:
    """What is trained on and measured with: states of the frozen backbone, kept, or with LoRA those of each step."""
    if settings.lora_rank:
        live = partial(LiveStates, backbone, record=settings.record_layers, tokens=step_tokens(backbone))
        return {split: live(table) for split, table in parts.tables.items()}
    dtype = number_format(settings.train.feature_dtype, backbone.device)
    with writing(files.home(), "finished hidden states are kept, and the same command goes on from there"):
        states = {s: hidden_states(backbone, t, dtype, progress=progress) for s, t in parts.tables.items()}
    return {split: ScoredStates(parts.tables[split], x, backbone.device) for split, x in states.items()}


def seconds_of_layers(backbone: Backbone, parts: Parts, settings: FitSettings) -> float:
    """What training LoRA in the layers would take, from one piece of a step: its pass, forwards and backwards.

    Gradients go down to the embeddings, as they would to the first layer's factors; the backbone stays as it is.
    """
    table = parts.tables["train"]
    data = LiveStates(backbone, table, record=False)
    rows = torch.arange(min(len(table), settings.train.rows_per_step))
    rows = rows[data.pieces(rows)[0]]
    embeddings = backbone.lm.get_input_embeddings()
    hook = embeddings.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    with hook, torch.enable_grad():
        started = time.perf_counter()
        h = data.batch(rows)[0]
        forwards = time.perf_counter() - started
        h.sum().backward()
        both = time.perf_counter() - started
    held_out = sum(int(parts.tables[split].lengths.sum()) for split in SPLITS[1:])
    reads = settings.train.epochs + 3  # validations, and both parts frozen and adapted
    tokens = both * settings.train.epochs * int(table.lengths.sum()) + forwards * reads * held_out
    return tokens / int(table.lengths[rows.numpy()].sum())
