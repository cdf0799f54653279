"""Trained heads write: test prompts continued greedily, under the evaluation's conditions (claim 16).

    prompt (the prefix) ─ left-padded, with cache ─▶ head.factors(condition of the document's batch) ─▶ tokens (D, M)
    tokens and reference, both cut to as many ─▶ scores, one row per document (text_scores.py)

The condition depends on condition spans alone, so no scored token influences the text (the information rule). End
tokens are suppressed: the training documents contain none, so stopping early would measure a habit of the frozen model
that training removed. The texts are not stored.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from chameleon_lite.app.score import left_padded
from chameleon_lite.batches import Arrangement
from chameleon_lite.errors import UserError
from chameleon_lite.heads import Condition, Head, update_logits
from chameleon_lite.text import TokenTable
from chameleon_lite.train import Source

from .config import Experiment
from .evaluate import Context, Members, head_and_source, order_of
from .prepare import PreparedCorpus, SeedClusterings
from .regimes import CLUSTERED, GROUP, REGIMES, Regime
from .text_scores import document_scores, rouge_l, scorer


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
    """Regime to its scores, one row per continued document with its `row` in the test table; {} if none writes."""
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
        frame = document_scores(tokens.numpy(), agreement(tokens, table, rows, model.tokenizer), batch)
        out[r.name] = frame.assign(row=rows.numpy())
    return out


def chosen(settings: Experiment, table: TokenTable) -> Tensor:
    """The documents (D,) that are continued, ascending: the same for every regime and seed."""
    order = np.random.default_rng(settings.data.subset_seed).permutation(len(table))
    return torch.from_numpy(np.sort(order[: settings.probes.generate.documents]))


def writer(settings: Experiment, material: PreparedCorpus):
    """The package's own adapted model on the study's backbone; each call brings the update it generates with."""
    from chameleon_lite.chameleon import ChameleonLiteForCausalLM

    with torch.random.fork_rng(devices=[]):  # the model's head, never used, is drawn at random
        options = {"head": "lora", "rank": 1, "scale": settings.train.scale}
        return ChameleonLiteForCausalLM.from_backbone(material.backbone, **options)


def conditions(source: Source | None, arrangement: Arrangement, size: int) -> tuple[Condition, Tensor] | None:
    """All conditions (G, …) of a source in evaluation's steps of `size` rows, and each document's place (N,)."""
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
def write(
    model, head: Head | None, condition, rows: Tensor, table: TokenTable, settings: Experiment
) -> Tensor:
    """New tokens (D, M) of documents rows (D,) on the host, greedy; for a head of None the backbone writes by itself.

    `condition` is as `conditions` gives it. Prompts of like length are continued together, which saves padding.
    """
    probe, backbone = settings.probes.generate, model.backbone
    options = {"max_new_tokens": probe.new_tokens, "min_new_tokens": probe.new_tokens}
    options |= {"do_sample": False, "num_beams": 1, "pad_token_id": backbone.pad_id}
    by_length = torch.from_numpy(np.argsort(table.prefix[rows.numpy()], kind="stable"))
    out = torch.empty(len(rows), probe.new_tokens, dtype=torch.int64)
    if training := head is not None and head.training:
        head.eval()
    lm = backbone.lm if head is None else model
    for part in by_length.split(probe.rows):
        ids, mask = (x.to(backbone.device) for x in prompts(table, rows[part]))  # (B, T)
        update = {} if head is None else {"head_update": _update(head, condition, rows[part])}
        written = lm.generate(input_ids=ids, attention_mask=mask, **options, **update)
        out[part] = written[:, ids.shape[1] :].cpu()  # (B, M)
    if training:
        head.train()
    return out


def prompts(table: TokenTable, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Ids (B, T) and mask (B, T) of the documents' unscored starts, padded on the left; T is the longest's."""
    starts = [table.ids[table.offsets[i] : table.offsets[i] + table.prefix[i]] for i in rows.tolist()]
    return left_padded(starts, table.pad_id)


def agreement(tokens: Tensor, table: TokenTable, rows: Tensor, tokenizer) -> np.ndarray:
    """ROUGE-L F1 (D,) of tokens (D, M) against the scored text; both are cut to the shorter one's tokens."""
    rows = rows.numpy()
    spans = zip(table.offsets[rows] + table.prefix[rows], table.offsets[rows + 1])
    references = [table.ids[start:stop][: tokens.shape[1]].tolist() for start, stop in spans]
    written = [text[: len(reference)] for text, reference in zip(tokens.tolist(), references)]
    return rouge_l(*(tokenizer.batch_decode(x, skip_special_tokens=True) for x in (written, references)))


def _update(head: Head, condition, rows: Tensor) -> Callable[..., Tensor]:
    """The head's update for some rows, each under its own condition; factors of these rows' conditions only."""
    if condition is None:
        return update_logits(head.factors(None), None, len(rows))
    conditions, group = condition
    used, place = torch.unique(group[rows], return_inverse=True)
    taken = {k: v[used.to(v.device)] for k, v in vars(conditions).items() if v is not None}
    update = head.factors(Condition(**taken))
    return update_logits(update, place if update.groups > 1 else None, len(rows))
