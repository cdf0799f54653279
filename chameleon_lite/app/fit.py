"""fit: an adapter trained on texts of one's own, and an honest answer to whether it helped.

    texts ─ 80/10/10, near-duplicates on one side ─ tokens ─ mean embeddings of prefixes ─ clusters
      ─ hidden states (once) ─ candidates (choose.py), each in its best state on the validation tenth, and the best
      ─ the test tenth, not used before: nats per token frozen and adapted, with an interval ─▶ Fitted

Heads leave the backbone as it is, so an epoch costs the head alone. A candidate whose layers carry LoRA trains them
together with its head: hidden states then change at every step, none are kept, and every step runs the whole backbone.
Held-out texts are conditioned as training texts are, and the effect is measured so: by the mean prefix vector
of at most clusters.batch_rows texts of their cluster, small clusters merged. `adapt` conditions new texts as
settings.condition says, by clusters that are not merged (conditions.grouped).
"""

import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from ..backbone import Backbone, load_backbone
from ..backbones.formats import device_of
from ..errors import RunFailed
from ..processes import Processes
from ..text import SHORT
from . import own_texts
from .choose import choose
from .corpus import Corpus
from .fit_settings import FitSettings
from .fitted import Fitted, compared
from .outputs import claimed
from .parts import corpus_of, parts_of


def fit(
    texts: Iterable[str | dict] | str | Path | Corpus,
    *,
    backbone: Backbone | str = "smollm2",
    out: Path | str | None = None,
    settings: FitSettings | None = None,
    overwrite: bool = False,
    device: str | None = None,
    encoding: str | None = None,
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
        corpus = corpus_of(texts, settings.seed, encoding)  # before a download: a wrong name is refused
        keep = isinstance(backbone, Backbone)  # the caller's, while LoRA is put into the model itself
        backbone = backbone if keep else load_backbone(backbone, device=device)
        say(f"{sum(len(d) for d in corpus.splits.values()):,} texts from {corpus.source}")
        parts, clustering = parts_of(corpus, backbone, settings, say)
        shown = {"progress": progress, "say": say}
        choice = choose(settings, backbone, parts, clustering, processes, keep=keep, **shown)
        kept = choice.kept
        nll = kept.cohort.nats("test", [kept.member])  # of the others the test part stays unread
        numbers = compared(nll, parts.tables["test"].n_scored, settings.seed)
        numbers |= {"held_out": len(parts.tables["test"]), "trained_on": len(parts.tables["train"])}
        own, table = {"head": kept.settings.head} | kept.settings.model_dump(mode="json"), choice.table
        about = {"corpus": corpus.name, "corpus_hash": corpus.hash, "best_epoch": kept.member.best_epoch}
        about |= {"settings": own, "candidates": table.drop(columns="seconds").dropna().to_dict("records")}
        kept.model.eval().config.notes, kept.model.config.prompts = numbers | about, parts.prompts
        short = sum(table.dropped[SHORT] for table in parts.tables.values())
        numbers["dropped"] = corpus.notes.get(own_texts.EMPTY, 0) + short
        numbers |= {"table": table, "why": choice.why, "offer": choice.offer, "curve": kept.member.curve}
        fitted = Fitted(kept.model, **numbers, seconds=time.perf_counter() - started)
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
