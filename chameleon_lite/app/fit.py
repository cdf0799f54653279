"""fit: an adapter trained on texts of one's own, and an honest answer to whether it helped.

    texts ─ 80/10/10, near-duplicates on one side ─ tokens ─ hidden states (once) ─ clusters of the training prefixes
      ─ the hyper-network on cluster groups, best state on the validation tenth ─▶ ChameleonLiteForCausalLM
      ─ the test tenth, not used before: nats per token frozen and adapted, with an interval ─▶ Fitted

The backbone stays as it is, so an epoch costs the head alone. With `lora_rank` its layers carry LoRA, trained together
with the head: hidden states then change at every step, none are kept, and every step runs the whole backbone.
Held-out texts are conditioned as training texts are, and the effect is measured so: by the mean prefix vector
of at most clusters.batch_rows texts of their cluster, small clusters merged. `adapt` conditions new texts as
settings.condition says, by clusters that are not merged (conditions.grouped).
"""

import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from .. import files
from ..backbone import Backbone, copied, load_backbone
from ..backbones.formats import device_of, number_format
from ..batches import Arrangement
from ..cluster import Clustering
from ..conditions import GroupMean
from ..errors import RunFailed
from ..lora import lora_parameters, without_lora
from ..loss import HeadWeight
from ..processes import Processes
from ..states import ScoredStates, hidden_states
from ..text import SHORT
from ..train import Member, evaluate, train_heads
from ..train_layers import LiveStates, WithLayers
from . import own_texts
from .corpus import SPLITS, Corpus
from .fit_settings import FitSettings
from .outputs import claimed, writing
from .parts import Parts, corpus_of, parts_of

RESAMPLES = 2_000
FEW = 10  # held-out texts below which an interval from resampling them says nothing


@dataclass(frozen=True)
class Fitted:
    """A fitted adapter and its effect on held-out texts, in nats per token; `curve` has one entry per validation."""

    model: Any
    before: float  # nats per token, frozen
    after: float  # adapted
    low: float  # of the 95 % interval of after - before, by resampling the held-out texts
    high: float
    held_out: int  # texts
    trained_on: int
    seconds: float
    curve: list[dict]
    dropped: int = 0  # texts that were empty or too short to score
    folder: Path | None = None

    @property
    def helped(self) -> bool:
        """Whether the whole interval of the difference, as it is printed, lies below zero, on enough texts."""
        return self.held_out >= FEW and round(self.high, 4) < 0

    def __str__(self) -> str:
        change = f"{self.before:.4f} nats per token before, {self.after:.4f} after ({self.after - self.before:+.4f}, "
        change += f"95 % interval {self.low:+.4f} to {self.high:+.4f}) on {self.held_out} held-out texts"
        if self.dropped:
            change += f"; {self.dropped:,} texts were dropped, empty or too short to score"
        if self.helped:
            return f"helped: {change}"
        if self.held_out < FEW:
            return f"too few to tell: {change}; a verdict needs {FEW}: fit on about {10 * FEW} texts or more"
        word = "made things worse" if round(self.low, 4) > 0 else "did not help"
        return f"{word}: {change}; use the backbone as it is, or fit on more texts of the kind you have"


def fit(
    texts: Iterable[str | dict] | str | Path | Corpus,
    *,
    backbone: Backbone | str = "smollm2",
    out: Path | str | None = None,
    settings: FitSettings | None = None,
    overwrite: bool = False,
    device: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Fitted:
    """Train an adapter on texts (rows as in rows.py, a corpus's name, or a path) and save it to `out` if given.

    Losses are in nats per token. With several processes (torchrun, accelerate) every one calls this, the first writes.
    Raises UserError where there are too few texts to hold any out, and where `out` holds a model already, which is
    replaced with `overwrite` unless it is the backbone; RunFailed where the loss stops being finite.
    """
    started, settings, processes = time.perf_counter(), settings or FitSettings(), Processes()
    device = device_of(device or processes.device)
    inputs = [name for name in (texts, backbone) if isinstance(name, str | Path)]
    writes = out is not None and processes.index == 0
    with claimed(out, inputs, folder=True, overwrite=overwrite) if writes else nullcontext() as folder:
        corpus = corpus_of(texts, settings.seed)  # first, so that a wrong name is refused before a download
        if isinstance(backbone, str):
            backbone = load_backbone(backbone, device=device)
        elif settings.lora_rank:
            backbone = copied(backbone)  # LoRA is put into the model itself, and this one is the caller's
        say(f"{sum(len(d) for d in corpus.splits.values()):,} texts from {corpus.source}")
        parts, clustering = parts_of(corpus, backbone, settings)
        model = _new_model(backbone, clustering, settings)
        member, nll = _trained(model, parts, settings, processes, progress)
        numbers = compared(nll, parts.tables["test"].n_scored, settings.seed)
        numbers |= {"held_out": len(parts.tables["test"]), "trained_on": len(parts.tables["train"])}
        about = {"corpus": corpus.name, "corpus_hash": corpus.hash, "best_epoch": member.best_epoch}
        model.eval().config.notes = numbers | about | {"settings": settings.model_dump(mode="json")}
        short = sum(table.dropped[SHORT] for table in parts.tables.values())
        numbers["dropped"] = corpus.notes.get(own_texts.EMPTY, 0) + short
        fitted = Fitted(model, **numbers, seconds=time.perf_counter() - started, curve=member.curve)
        return fitted if folder is None else _saved(fitted, folder)


def _saved(fitted: Fitted, out: Path) -> Fitted:
    """`fitted`, saved to `out`; where that fails after all, RunFailed with where it is kept instead, and its result."""
    try:
        fitted.model.save_pretrained(out)
    except (OSError, SafetensorError) as error:
        place = "the adapter is lost"
        with suppress(OSError, SafetensorError):
            kept = tempfile.mkdtemp(prefix="chameleon-lite-")
            fitted.model.save_pretrained(kept)
            place = f"the adapter is kept in {kept}"
        raise RunFailed(f"cannot write {out}: {error}; {place}; {fitted}") from error
    return replace(fitted, folder=out)


def _states(backbone: Backbone, parts: Parts, settings: FitSettings, progress: bool) -> dict:
    """What is trained on and measured with: states of the frozen backbone, kept, or with LoRA those of each step."""
    if settings.lora_rank:
        live = partial(LiveStates, backbone, record=settings.record_layers)
        return {split: live(table) for split, table in parts.tables.items()}
    dtype = number_format(settings.train.feature_dtype, backbone.device)
    with writing(files.home(), "finished hidden states are kept, and the same command goes on from there"):
        states = {s: hidden_states(backbone, t, dtype, progress=progress) for s, t in parts.tables.items()}
    return {split: ScoredStates(parts.tables[split], x, backbone.device) for split, x in states.items()}


def _new_model(backbone: Backbone, clustering: Clustering, settings: FitSettings):
    from ..chameleon import ChameleonLiteForCausalLM

    same = settings.model_dump(include={"rank", "dropout", "condition", "lora_rank"})
    same |= {"scale": settings.train.scale, "prompts": settings.tokens.model_dump()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return ChameleonLiteForCausalLM.from_backbone(backbone, centroids=clustering.centroids, **same)


def _trained(
    model, parts: Parts, settings: FitSettings, processes: Processes, progress: bool
) -> tuple[Member, np.ndarray]:
    """The head, and LoRA in the layers if any, trained in place and left in the best state on the validation part.

    Returns the course of the training, and sums of nats (2, N) of the held-out texts, frozen and adapted.
    """
    backbone, head, train, seed = model.backbone, model.head, settings.train, settings.seed
    states = _states(backbone, parts, settings, progress)
    if settings.lora_rank:
        head = WithLayers(head, lora_parameters(backbone).values())
        train = train.model_copy(update={"validations_per_epoch": 1})  # each runs the whole backbone
    dtype = number_format(train.matmul_dtype, backbone.device)
    weight = HeadWeight(backbone.head.weight, backbone.head.bias, dtype=dtype)
    size, vectors = settings.clusters.batch_rows, parts.vectors
    learn, valid, test = (GroupMean(vectors[split].to(backbone.device), size) for split in SPLITS)
    member = Member("adapter", head, learn, valid, settings.learning_rate, seed)
    check = states["validation"], parts.order("validation", seed)

    def orders(epoch: int) -> Arrangement:
        return parts.order("train", seed * 100_003 + epoch)

    with closing(states["train"]) if settings.lora_rank else nullcontext():
        train_heads([member], states["train"], orders, *check, weight, train, processes, progress)
    options = {"rows": train.rows_per_step, "scale": train.scale, "processes": processes}
    options |= {"data": states["test"], "arrangement": parts.order("test", seed), "weight": weight}
    read = partial(evaluate, **options)
    with without_lora(backbone):
        frozen = read([(None, None)])
    return member, torch.cat([frozen, read([(head, test)])]).cpu().numpy()


def compared(nll: np.ndarray, counts: np.ndarray, seed: int) -> dict[str, float]:
    """From nats (2, N), frozen and adapted, and tokens (N,) of texts: `Fitted`'s before, after, low and high."""
    before, after = (nll.sum(1) / counts.sum()).tolist()
    generator, difference, draws = np.random.default_rng(seed), nll[1] - nll[0], []
    for _ in range(RESAMPLES):
        texts = generator.integers(len(counts), size=len(counts))
        draws.append(difference[texts].sum() / counts[texts].sum())
    low, high = np.quantile(draws, [0.025, 0.975]).tolist()
    return {"before": before, "after": after, "low": low, "high": high}
