"""Trained heads write: test prompts continued greedily, under the evaluation's conditions (claim 16).

    prompt ─ left-padded, with cache ─▶ head.factors(condition of its batch) ─▶ tokens (D, M)
    tokens and reference, both cut to as many ─▶ scores, one row per document

ROUGE-L: F1 over the longest common subsequence of words (Lin 2004). Distinct-n: distinct over all n-grams
of tokens (Li et al. 2016). Repeated: 1 − distinct-4 (seq-rep-4, Welleck et al. 2020).
The condition is fixed before the first new token and depends on condition spans alone, so no scored token
influences the text (the information rule). End tokens are suppressed: the training documents contain none,
so stopping early would measure a habit of the frozen model. The texts are not stored.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from chameleon_lite import Arrangement, TokenTable
from chameleon_lite.app.score import left_padded
from chameleon_lite.errors import UserError
from chameleon_lite.heads import Condition, Head, update_logits
from chameleon_lite.train import Source

from .config import Experiment
from .evaluate import Context, Members, head_and_source, order_of
from .prepare import PreparedCorpus, SeedClusterings
from .records import WITHIN
from .regimes import CLUSTERED, GROUP, REGIMES, Regime

REPEATED = 4  # tokens of an n-gram that counts as repeated if it occurs earlier in the same text


def writing(settings: Experiment) -> list[str]:
    """The regimes that write; UserError for one without a cached head, or without the scorer."""
    if settings.probes.generate is None:
        return []
    scorer()
    names, cannot = settings.probes.generate.regimes, [n for n in settings.regimes if REGIMES[n].procedure]
    if odd := [name for name in names if name in cannot]:
        raise UserError(f"probes.generate: {odd[0]} has no head on cached states, so it cannot write")
    return [name for name in names or settings.regimes if name not in cannot]


def generated(context: Context, seeded: SeedClusterings, regimes: list[Regime], members: Members) -> dict:
    """Regime to its scores, one row per continued document with its `row` in the test table."""
    settings, material, out = context.settings, context.material, {}
    if not (names := writing(settings)):
        return out
    table, model = material.tables["test"], writer(settings, material)
    rows = chosen(settings, table)
    batch = seeded.epoch("test", CLUSTERED, 0).groups(GROUP).of[rows].numpy()
    for r in (r for r in regimes if r.name in names):
        head, source = head_and_source(r, members, seeded, "test")
        arrangement = seeded.epoch("test", order_of(settings, r), 0)
        condition = conditions(source, arrangement, settings.train.rows_per_step)
        tokens = write(model, head, condition, rows, table, settings)
        against = agreement(tokens, table, rows, model.tokenizer)
        others = agreement_within(model.tokenizer.batch_decode(tokens, skip_special_tokens=True), batch)
        out[r.name] = document_scores(tokens.numpy(), against, others, batch).assign(row=rows.numpy())
    return out


def chosen(settings: Experiment, table: TokenTable) -> Tensor:
    """The documents (D,) that are continued, ascending: the same for every regime and seed."""
    order = np.random.default_rng(settings.data.subset_seed).permutation(len(table))
    return torch.from_numpy(np.sort(order[: settings.probes.generate.documents]))


def writer(settings: Experiment, material: PreparedCorpus):
    """The package's adapted model on the study's backbone; each call brings the update it uses."""
    from chameleon_lite.chameleon import ChameleonLiteForCausalLM

    with torch.random.fork_rng(devices=[]):  # the model's head, never used, is drawn at random
        options = {"head": "lora", "rank": 1, "scale": settings.train.scale}
        return ChameleonLiteForCausalLM.from_backbone(material.backbone, **options)


def conditions(source: Source | None, arrangement: Arrangement, size: int) -> tuple | None:
    """All conditions (G, …) of a source in evaluation's steps, and each document's number (N,) in them.

    Step by step, of `size` rows, as in `train.evaluate`: some sources read the other rows of the step.
    """
    if source is None:
        return None
    parts, group, count = [], torch.zeros_like(arrangement.order), 0
    for rows in arrangement.steps(size):
        condition, place = source(arrangement, rows)
        group[rows] = count if place is None else count + place.cpu()
        parts.append(condition)
        count += condition.groups
    names = [name for name, value in vars(parts[0]).items() if value is not None]
    return Condition(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names}), group


@torch.no_grad()
def write(model, head: Head | None, condition, rows: Tensor, table: TokenTable, settings) -> Tensor:
    """New tokens (D, M) of documents rows (D,) on the host, greedy; with a head of None the backbone's own.

    `condition` is as `conditions` gives it. Prompts of like length are continued together, which saves padding.
    """
    probe, backbone = settings.probes.generate, model.backbone
    options = {"max_new_tokens": probe.new_tokens, "min_new_tokens": probe.new_tokens}
    options |= {"do_sample": False, "num_beams": 1, "pad_token_id": backbone.pad_id}
    by_length = torch.from_numpy(np.argsort(table.prefix[rows.numpy()], kind="stable"))
    out = torch.empty(len(rows), probe.new_tokens, dtype=torch.int64)
    if training := head is not None and head.training:
        head.eval()
    for part in by_length.split(probe.rows):
        ids, mask = (x.to(backbone.device) for x in prompts(table, rows[part]))  # (B, T)
        update = _update(head, condition, rows[part])
        written = model.generate(input_ids=ids, attention_mask=mask, **options, head_update=update)
        out[part] = written[:, ids.shape[1] :].cpu()  # (B, M)
    if training:
        head.train()
    return out


def prompts(table: TokenTable, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Ids (B, T) and mask (B, T) of the documents' unscored starts, padded on the left."""
    starts = [table.ids[table.offsets[i] : table.offsets[i] + table.prefix[i]] for i in rows.tolist()]
    return left_padded(starts, table.pad_id)


def agreement(tokens: Tensor, table: TokenTable, rows: Tensor, tokenizer) -> np.ndarray:
    """ROUGE-L F1 (D,) of tokens (D, M) against the scored text; both are cut to the shorter one's tokens."""
    rows = rows.numpy()
    spans = zip(table.offsets[rows] + table.prefix[rows], table.offsets[rows + 1])
    references = [table.ids[start:stop][: tokens.shape[1]].tolist() for start, stop in spans]
    written = [text[: len(reference)] for text, reference in zip(tokens.tolist(), references)]
    return rouge_l(*(tokenizer.batch_decode(x, skip_special_tokens=True) for x in (written, references)))


def agreement_within(texts: Sequence[str], batch: np.ndarray) -> np.ndarray:
    """Mean ROUGE-L F1 (D,) of each text with the others of its batch, batch (D,); nan where there are none."""
    out = np.full(len(texts), np.nan)
    numbers, counts = np.unique(batch, return_counts=True)
    for places in (np.flatnonzero(batch == number) for number in numbers[counts > 1]):
        one, other = np.triu_indices(len(places), 1)  # F1 has no direction
        pairs = rouge_l(*([texts[i] for i in places[side]] for side in (one, other)))
        out[places] = sum(np.bincount(side, pairs, len(places)) for side in (one, other)) / (len(places) - 1)
    return out


def _update(head: Head | None, condition, rows: Tensor) -> Callable[..., Tensor]:
    """The head's update for some rows, each under its own condition; None is the frozen head, without one."""
    if head is None:
        return lambda frozen, h, scale: frozen(h)
    if condition is None:
        return update_logits(head.factors(None), None, len(rows))
    conditions, group = condition
    used, place = torch.unique(group[rows], return_inverse=True)
    taken = {k: v[used.to(v.device)] for k, v in vars(conditions).items() if v is not None}
    update = head.factors(Condition(**taken))
    return update_logits(update, place if update.groups > 1 else None, len(rows))


def scorer() -> Callable:
    """torchmetrics' rouge_score; UserError where it is not installed."""
    try:
        from torchmetrics.functional.text.rouge import rouge_score
    except ImportError:
        raise UserError("ROUGE-L needs torchmetrics: pip install 'chameleon-lite[generate]'") from None
    return rouge_score


def rouge_l(written: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """ROUGE-L F1 (D,) of texts and references, in 0 … 1; words are runs of a … z and 0 … 9."""
    score, pairs = scorer(), zip(written, references, strict=True)
    return np.array([float(score(*pair, rouge_keys="rougeL")["rougeL_fmeasure"]) for pair in pairs])


def distinct(texts: Iterable[Sequence[int]], n: int) -> float:
    """Distinct over all n-grams of some texts' tokens, none across two texts; nan without any."""
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def repeated(text: Sequence[int]) -> float:
    """Share of a text's 4-grams of tokens that occur in it before, in 0 … 1."""
    return 1 - distinct([text], REPEATED)


def document_scores(
    tokens: np.ndarray, agreement: np.ndarray, within: np.ndarray, batch: np.ndarray
) -> pd.DataFrame:
    """One row per document: both agreements (D,), variety and repetition of tokens (D, M), its batch's variety.

    n-grams that documents of one cluster batch, batch (D,), share lower the batch's distinct share and leave
    each document's own as it is.
    """
    texts = pd.Series(tokens.tolist())
    variety = {f"distinct_{n}": [distinct([t], n) for t in texts] for n in (1, 2)}
    variety |= {"repeated": list(map(repeated, texts)), "batch": batch}
    for n in (1, 2):
        variety[f"batch_distinct_{n}"] = texts.groupby(batch).apply(distinct, n).loc[batch].to_numpy()
    return pd.DataFrame({"rouge_l": agreement} | variety | {WITHIN: within})
