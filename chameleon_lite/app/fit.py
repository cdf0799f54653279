"""fit: an adapter trained on texts of one's own, and an honest answer to whether it helped.

    texts ─ 80/10/10, near-duplicates on one side ─ tokens ─ hidden states (once) ─ clusters of the training prefixes
      ─ the hyper-network on cluster groups, best state on the validation tenth ─▶ ChameleonLiteForCausalLM
      ─ the test tenth, not used before: nats per token frozen and adapted, with an interval ─▶ Fitted

The backbone stays as it is, so an epoch costs the head alone. With `lora_rank` its layers carry LoRA, trained together
with the head: hidden states then change at every step, none are kept, and every step runs the whole backbone.
Held-out texts are conditioned as training texts are: by the mean prefix vector of at most 32 texts of their cluster.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from ..backbone import Backbone, copied, load_backbone
from ..backbones.formats import number_format
from ..cluster import Clustering
from ..errors import RunFailed, UserError
from ..loss import HeadWeight
from ..processes import Processes
from ..settings import FitSettings
from ..text import SHORT, Document
from ..train import Member, evaluate, train_heads
from .corpus import Corpus, split_documents
from .outputs import claimed
from .own_texts import EMPTY, load_corpus
from .parts import Part, parts_of
from .rows import flaw_of

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
        change = (
            f"{self.before:.4f} nats per token before, {self.after:.4f} after ({self.after - self.before:+.4f}, "
            f"95 % interval {self.low:+.4f} to {self.high:+.4f}) on {self.held_out} held-out texts"
        )
        change += (
            f"; {self.dropped:,} texts were dropped, empty or too short to score" if self.dropped else ""
        )
        if self.helped:
            return f"helped: {change}"
        if self.held_out < FEW:
            return (
                f"too few to tell: {change}; a verdict needs {FEW}, so fit on about {10 * FEW} texts or more"
            )
        word = "made things worse" if round(self.low, 4) > 0 else "did not help"
        return f"{word}: {change}; use the backbone as it is, or fit on more texts of the kind you have"


def fit(
    texts: Sequence[str] | str | Path | Corpus,
    *,
    backbone: Backbone | str = "smollm2",
    out: Path | str | None = None,
    settings: FitSettings | None = None,
    overwrite: bool = False,
    device: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Fitted:
    """Train an adapter on texts (strings, a corpus's name, or a path) and save it to `out` if given.

    Losses are in nats per token. With several processes (torchrun, accelerate) every one calls this, the first writes.
    Raises UserError where there are too few texts to hold any out, and where `out` holds a model already, which is
    replaced with `overwrite` unless it is the backbone; RunFailed where the loss stops being finite.
    """
    started, settings, processes = time.perf_counter(), settings or FitSettings(), Processes()
    inputs = [name for name in (texts, backbone) if isinstance(name, str | Path)]
    writes = out is not None and processes.index == 0
    with claimed(out, inputs, folder=True, overwrite=overwrite) if writes else nullcontext() as folder:
        corpus = corpus_of(texts, settings.seed)  # first, so that a wrong name is refused before a download
        if isinstance(backbone, str):
            backbone = load_backbone(backbone, device=device or processes.device)
        elif settings.lora_rank:
            backbone = copied(backbone)  # LoRA is put into the model itself, and this one is the caller's
        say(f"{sum(len(d) for d in corpus.splits.values()):,} texts from {corpus.source}")
        parts, clustering = parts_of(corpus, backbone, settings, progress)
        model = _new_model(backbone, clustering, settings)
        curve, best_epoch, nll = _trained(model, parts, settings, processes, progress)
        numbers = compared(nll, parts["test"].table.n_scored, settings.seed)
        numbers |= {"held_out": len(parts["test"].table), "trained_on": len(parts["train"].table)}
        about = {"corpus": corpus.name, "corpus_hash": corpus.hash, "best_epoch": best_epoch}
        model.eval().config.notes = numbers | about | {"settings": settings.model_dump(mode="json")}
        numbers["dropped"] = corpus.notes.get(EMPTY, 0) + sum(p.table.dropped[SHORT] for p in parts.values())
        fitted = Fitted(model, **numbers, seconds=time.perf_counter() - started, curve=curve)
        return fitted if folder is None else _saved(fitted, folder)


def _saved(fitted: Fitted, out: Path) -> Fitted:
    """`fitted`, saved to `out`; where that fails after all, RunFailed with where it is kept instead, and its result."""
    try:
        fitted.model.save_pretrained(out)
    except (OSError, SafetensorError) as error:
        kept = Path(tempfile.mkdtemp(prefix="chameleon-lite-"))
        with suppress(OSError, SafetensorError):
            fitted.model.save_pretrained(kept)
        place = f"the adapter is kept in {kept}" if (kept / "config.json").exists() else "the adapter is lost"
        raise RunFailed(f"cannot write {out}: {error}; {place}; {fitted}") from error
    return replace(fitted, folder=out)


def corpus_of(texts: Sequence[str] | str | Path | Corpus, seed: int = 0) -> Corpus:
    """A corpus from its name, a path, or strings, which are split 80/10/10 with near-duplicates on one side."""
    if isinstance(texts, Corpus):
        return texts
    if isinstance(texts, str | os.PathLike):
        return load_corpus(str(texts), seed=seed)
    texts = list(texts)
    if wrong := next((t for t in texts if not isinstance(t, str)), None):
        raise UserError(f"texts must be strings, not {type(wrong).__name__}; objects go into a .jsonl file")
    for number, text in enumerate(texts, start=1):
        if flaw := flaw_of(text):
            raise UserError(f"text {number} {flaw}")
    documents = [Document(str(i), text) for i, text in enumerate(texts) if text.strip()]
    splits, notes = split_documents(documents, seed=seed)
    return Corpus("texts", splits, "a list of strings", notes | {EMPTY: len(texts) - len(documents)})


def _new_model(backbone: Backbone, clustering: Clustering, settings: FitSettings):
    from ..chameleon import ChameleonLiteForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return ChameleonLiteForCausalLM.from_backbone(
            backbone,
            centroids=clustering.centroids,
            rank=settings.rank,
            dropout=settings.dropout,
            scale=settings.train.scale,
            condition=settings.condition,
            prompts=settings.tokens.model_dump(),
            lora_rank=settings.lora_rank,
        )


def _trained(
    model, parts: dict[str, Part], settings: FitSettings, processes: Processes, progress: bool
) -> tuple[list[dict], float, np.ndarray]:
    """The head, and LoRA in the layers if any, trained in place and left in the best state on the validation part.

    Returns curve, best epoch, and sums of nats (2, N) of the held-out texts, frozen and adapted.
    """
    from ..lora import lora_parameters, without_lora
    from ..train_layers import LiveStates, WithLayers

    weight, states = _weight(model.backbone, settings), {s: part.scored for s, part in parts.items()}
    sources = {s: part.source(settings.clusters.batch_rows) for s, part in parts.items()}
    head, train, stack = model.head, settings.train, ExitStack()
    if settings.lora_rank:
        head = WithLayers(head, lora_parameters(model.backbone).values())
        train = train.model_copy(update={"validations_per_epoch": 1})  # each runs the whole backbone
        live = partial(LiveStates, model.backbone, record=settings.record_layers)
        states = {s: live(part.table) for s, part in parts.items()}
        stack.enter_context(closing(states["train"]))
    learn, valid = sources["train"], sources["validation"]
    member = Member("adapter", head, learn, valid, settings.learning_rate, settings.seed)
    with stack:
        train_heads(
            [member],
            states["train"],
            lambda epoch: parts["train"].order(_epoch_seed(settings, epoch)),
            states["validation"],
            parts["validation"].order(settings.seed),
            weight,
            train,
            processes,
            progress,
        )
    order = parts["test"].order(settings.seed)
    options = {"rows": train.rows_per_step, "scale": train.scale, "processes": processes}
    read = partial(evaluate, data=states["test"], arrangement=order, weight=weight, **options)
    frozen, adapted = (None, None), (head, sources["test"])
    if not settings.lora_rank:  # one pass over the states for both
        return member.curve, member.best_epoch, read([frozen, adapted]).cpu().numpy()
    with without_lora(model.backbone):
        before = read([frozen])
    return member.curve, member.best_epoch, torch.cat([before, read([adapted])]).cpu().numpy()


def _weight(backbone: Backbone, settings: FitSettings) -> HeadWeight:
    dtype = number_format(settings.train.matmul_dtype, backbone.device)
    return HeadWeight(backbone.head.weight, backbone.head.bias, dtype=dtype)


def _epoch_seed(settings: FitSettings, number: int) -> int:
    """Seed of an epoch's order."""
    return settings.seed * 100_003 + number


def compared(nll: np.ndarray, counts: np.ndarray, seed: int) -> dict[str, float]:
    """From nats (2, N), frozen and adapted, and tokens (N,) of texts: `Fitted`'s before, after, low and high."""
    before, after = (nll.sum(1) / counts.sum()).tolist()
    generator, difference, draws = np.random.default_rng(seed), nll[1] - nll[0], []
    for _ in range(RESAMPLES):
        texts = generator.integers(len(counts), size=len(counts))
        draws.append(difference[texts].sum() / counts[texts].sum())
    low, high = np.quantile(draws, [0.025, 0.975]).tolist()
    return {"before": before, "after": after, "low": low, "high": high}
