"""fit: an adapter trained on one's own texts, and an honest word on whether it helped.

    texts ─ 80/10/10, near-duplicates on one side ─ tokens ─ hidden states (once) ─ clusters of the training prefixes
      ─ the hyper-network on cluster groups, best state on the validation tenth ─▶ ChameleonLiteForCausalLM
      ─ the held-out tenth, never looked at before: nats a token frozen and adapted, with an interval ─▶ Fitted

The backbone stays as it is, so an epoch costs the head alone. Held-out texts are told what training texts are: the
mean vector of the prefixes of at most 32 texts of their cluster.
"""
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import FitSettings
from ..data.arrangement import Arrangement, arrange
from ..data.clusters import Clustering, cluster_count, fit_clusters, merge_small
from ..data.corpora import load_corpus
from ..data.corpora.documents import SPLITS, Corpus, Document
from ..data.corpora.splits import split_documents
from ..data.embeddings import mean_embeddings
from ..data.tokens import TokenTable, tokenise
from ..errors import UserError
from ..model.backbones import Backbone, load_backbone
from ..model.conditions import group_means
from ..model.head_loss import HeadWeight, matmul_dtype
from ..model.heads.interface import Condition
from ..training.features import features
from ..training.loop import Member, Processes, evaluate
from ..training.loop import fit as train
from ..training.scored import ScoredStates, scored_states

RESAMPLES = 2_000


@dataclass(frozen=True)
class Fitted:
    """A fitted adapter and what it did to texts it never saw: nats a token, and texts behind the numbers.

    `low` and `high` bound `after` - `before` with 95 % (texts drawn anew, 2,000 times).
    """

    model: Any
    before: float
    after: float
    low: float
    high: float
    held_out: int
    trained_on: int
    seconds: float
    curve: list[dict]
    folder: Path | None = None

    @property
    def helped(self) -> bool:
        """Whether the whole interval of the difference lies below zero."""
        return self.high < 0

    def __str__(self) -> str:
        change = (f"{self.before:.4f} nats a token before, {self.after:.4f} after ({self.after - self.before:+.4f}, "
                  f"95 % interval {self.low:+.4f} to {self.high:+.4f}) on {self.held_out} held-out texts")
        if self.helped:
            return f"helped: {change}"
        word = "made things worse" if self.low > 0 else "did not help"
        return f"{word}: {change}; use the backbone as it is, or fit on more texts of the kind you have"


@dataclass
class _Part:
    """One split under the backbone."""

    table: TokenTable
    scored: ScoredStates
    vectors: Tensor  # (N, C) on the host
    labels: Tensor  # (N,) clusters, small ones merged
    arrangement: Arrangement | None = None
    known_for: Arrangement | None = None

    def told(self, size: int) -> Callable[[Tensor], tuple[Condition, Tensor | None]]:
        """The condition source: the mean vector of a row's group of at most `size` texts."""
        def source(rows: Tensor) -> tuple[Condition, Tensor | None]:
            if self.known_for is not self.arrangement:
                self.known_for, self.group_of = self.arrangement, self.arrangement.groups(size)
                self.means = group_means(self.vectors, self.group_of).to(self.scored.device)
            groups, own = torch.unique(self.group_of[rows], return_inverse=True)
            return Condition(self.means[groups.to(self.means.device)]), own if len(groups) > 1 else None
        return source


def fit(texts: Sequence[str] | str | Path | Corpus, *, backbone: Backbone | str = "smollm2",
        out: Path | str | None = None, settings: FitSettings | None = None, device: str | None = None,
        progress: bool = True, say: Callable[[str], None] = lambda text: None) -> Fitted:
    """Train an adapter on texts (strings, a corpus's name, or a path) and save it to `out` if given.

    With several processes (torchrun, accelerate) every one calls this; the first one writes.
    Raises UserError where there are too few texts to hold any out, RunFailed where training leaves the numbers.
    """
    started, settings = time.perf_counter(), settings or FitSettings()
    processes = Processes()
    if isinstance(backbone, str):
        backbone = load_backbone(backbone, device=device or processes.device)
    corpus = corpus_of(texts, settings.seed)
    say(f"{sum(len(d) for d in corpus.splits.values()):,} texts from {corpus.source}")
    parts, clustering = _parts(corpus, backbone, settings, progress)
    model = _new_model(backbone, clustering, settings)
    member, weight = _train(model, parts, settings, processes, progress)
    nll = _held_out(model.head, parts["test"], weight, settings, processes)
    before, after, low, high = compared(nll, parts["test"].table.n_scored, settings.seed)
    notes = {"before": before, "after": after, "low": low, "high": high, "held_out": len(parts["test"].table),
             "trained_on": len(parts["train"].table), "corpus": corpus.name, "corpus_hash": corpus.hash,
             "settings": settings.model_dump(mode="json"), "best_epoch": member.best_epoch}
    model.config.notes = notes
    if out is not None:
        model.eval().save_pretrained(out, is_main_process=processes.index == 0)
    return Fitted(model.eval(), before, after, low, high, notes["held_out"], notes["trained_on"],
                  time.perf_counter() - started, member.curve, Path(out) if out is not None else None)


def corpus_of(texts: Sequence[str] | str | Path | Corpus, seed: int = 0) -> Corpus:
    """A corpus from whatever names or holds texts; strings are split 80/10/10 with near-duplicates on one side."""
    if isinstance(texts, Corpus):
        return texts
    if isinstance(texts, str | os.PathLike):
        return load_corpus(str(texts), seed=seed)
    texts = list(texts)
    if wrong := next((t for t in texts if not isinstance(t, str)), None):
        raise UserError(f"texts must be strings, not {type(wrong).__name__}; objects go through a .jsonl file")
    documents = [Document(str(i), text) for i, text in enumerate(texts) if text.strip()]
    splits, notes = split_documents(documents, seed=seed)
    return Corpus("texts", splits, "a list of strings", notes)


def _parts(corpus: Corpus, backbone: Backbone, settings: FitSettings, progress: bool):
    """Each split tokenised, run through the backbone and assigned to clusters fitted on the training part."""
    generator = np.random.default_rng(settings.seed)
    limits = settings.tokens.model_dump()
    limits["max_length"] = min(limits["max_length"], backbone.max_length)
    tables = {}
    for split in SPLITS:
        table = tokenise(corpus.splits[split], backbone.tokenizer, **limits)
        order = generator.permutation(len(table))
        if split == "train" and settings.max_train_tokens is not None:
            order = order[np.cumsum(table.lengths[order]) <= max(settings.max_train_tokens, table.lengths[order[0]])]
        elif split != "train":
            order = order[: settings.max_held_out]
        tables[split] = table.take(np.sort(order))
    dtype = _format(settings.train.feature_dtype, backbone.device)
    embedding, rows = backbone.embedding.detach().cpu(), settings.clusters.batch_rows
    vectors = {split: mean_embeddings(table, embedding) for split, table in tables.items()}
    clustering = fit_clusters(vectors["train"], cluster_count(len(tables["train"]), rows), seed=settings.seed)
    parts = {}
    for split, table in tables.items():
        scored = scored_states(features(backbone, table, dtype=dtype, progress=progress), table, device=backbone.device)
        labels = clustering.labels if split == "train" else clustering.assign(vectors[split])[0]
        labels = merge_small(vectors[split], labels, clustering.centroids, minimum=settings.clusters.minimum)
        parts[split] = _Part(table, scored, vectors[split], labels)
    return parts, clustering


def _new_model(backbone: Backbone, clustering: Clustering, settings: FitSettings):
    from ..model.chameleon import ChameleonLiteForCausalLM

    prompts = settings.tokens.model_dump()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return ChameleonLiteForCausalLM.from_backbone(
            backbone, centroids=clustering.centroids, rank=settings.rank, dropout=settings.dropout,
            scale=settings.train.scale, condition=settings.condition, prompts=prompts)


def _train(model, parts: dict[str, _Part], settings: FitSettings, processes: Processes,
           progress: bool) -> tuple[Member, HeadWeight]:
    """The head trained in place on cluster groups; it ends in its best state on the validation part."""
    backbone, size, rows = model.backbone, settings.clusters.batch_rows, settings.train.rows_per_step
    dtype = _format(settings.train.matmul_dtype, backbone.device)
    weight = HeadWeight(backbone.head.weight, backbone.head.bias, dtype=dtype)
    learn, check = parts["train"], parts["validation"]
    _arrange(check, settings.seed)
    member = Member("adapter", model.head, learn.told(size), check.told(size), settings.learning_rate, settings.seed)

    def epochs(number: int) -> list[Tensor]:
        _arrange(learn, settings.seed * 100_003 + number)
        return learn.arrangement.steps(rows)
    train([member], learn.scored, epochs, check.scored, check.arrangement.steps(rows), weight, settings.train,
          processes, progress)
    return member, weight


def _held_out(head, part: _Part, weight: HeadWeight, settings: FitSettings, processes: Processes) -> np.ndarray:
    """Sums of nats (2, N) of the held-out texts, frozen and adapted."""
    _arrange(part, settings.seed)
    batches = part.arrangement.steps(settings.train.rows_per_step)
    heads = [(None, None), (head, part.told(settings.clusters.batch_rows))]
    return evaluate(heads, part.scored, batches, weight, scale=settings.train.scale, processes=processes).cpu().numpy()


def compared(nll: np.ndarray, counts: np.ndarray, seed: int) -> tuple[float, float, float, float]:
    """From sums of nats (2, N) and tokens (N,): before, after, and the 95 % interval of their difference a token."""
    before, after = (nll.sum(1) / counts.sum()).tolist()
    difference = nll[1] - nll[0]  # (N,)
    generator = np.random.default_rng(seed)
    draws = np.array([difference[i].sum() / counts[i].sum() for i in
                      (generator.integers(len(counts), size=len(counts)) for _ in range(RESAMPLES))])
    low, high = np.quantile(draws, [0.025, 0.975]).tolist()
    return before, after, low, high


def _arrange(part: _Part, seed: int) -> None:
    part.arrangement = arrange(len(part.table), part.labels, torch.Generator().manual_seed(seed))


def _format(name: str, device: torch.device) -> torch.dtype:
    return matmul_dtype(device) if name == "auto" else getattr(torch, name)
