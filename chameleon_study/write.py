"""Trained heads write: test prompts continued greedily, under the evaluation's conditions (claim 16).

    prompt (the prefix) ─ left-padded, with cache ─▶ head.factors(condition of the document's batch) ─▶ tokens (D, M)
    tokens and reference, both cut to as many ─▶ scores, one row a document (generation_metrics.py)

The condition is fixed before the first new token and made of condition spans alone, so no scored token reaches what
is written (the information rule). Every text has M tokens. End tokens are suppressed: the training documents contain
none, so stopping early would measure a habit of the frozen model that training removed. The texts are not stored.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from chameleon_lite.app.score import left_padded
from chameleon_lite.batches import Arrangement
from chameleon_lite.conditions import Source
from chameleon_lite.errors import UserError
from chameleon_lite.heads import Condition, Head, update_logits
from chameleon_lite.text import TokenTable
from chameleon_lite.train import Member

from .cohort import Context, order_of
from .config import Experiment
from .evaluate import head_and_source
from .prepare import Material, Seeded
from .regimes import CLUSTERED, GROUP, REGIMES, Regime
from .text_scores import document_scores, rouge_l, scorer

SPLIT = "test"


def writing(settings: Experiment) -> list[str]:
    """The names of the regimes that write.

    Raises UserError for one without a head on cached states, and where what scores the texts is not installed.
    """
    asked = settings.probes.generate
    if asked is None:
        return []
    scorer()
    for name in asked.regimes:
        if REGIMES[name].procedure:
            raise UserError(
                f"probes.generate: {name} has no head on cached states and cannot write; leave it out"
            )
    return list(asked.regimes) or [name for name in settings.regimes if REGIMES[name].procedure is None]


def generated(
    context: Context, seeded: Seeded, regimes: Sequence[Regime], members: dict[str, Member]
) -> dict[str, pd.DataFrame]:
    """Regime to its scores, one row a continued document with its `row` in the test table; empty if none is asked."""
    settings, material = context.settings, context.material
    names = writing(settings)
    asked = [r for r in regimes if r.name in names]
    if not asked:
        return {}
    table = material.tables[SPLIT]
    rows = chosen(settings, table)
    batch = seeded.epoch(SPLIT, CLUSTERED, 0).groups(GROUP).of[rows].numpy()
    model = writer(settings, material)
    out = {}
    for r in asked:
        head, source = head_and_source(r, members, material, seeded, SPLIT)
        arrangement = seeded.epoch(SPLIT, order_of(settings, r), 0)
        told = conditions(source, arrangement, settings.train.rows_per_step)
        tokens = write(model, head, told, rows, table, settings)
        frame = document_scores(tokens.numpy(), agreement(tokens, table, rows, model.tokenizer), batch)
        out[r.name] = frame.assign(row=rows.numpy())
    return out


def chosen(settings: Experiment, table: TokenTable) -> Tensor:
    """The documents (D,) that are continued, ascending: the same for every regime and seed."""
    generator = np.random.default_rng(settings.data.subset_seed)
    order = generator.permutation(len(table))[: settings.probes.generate.documents]
    return torch.from_numpy(np.sort(order))


def check_room(settings: Experiment, material: Material) -> None:
    """Raises UserError where a prompt and its continuation would not fit the backbone's positions."""
    if not settings.probes.generate:
        return
    backbone, new = material.backbone, settings.probes.generate.new_tokens
    longest = int(material.tables[SPLIT].prefix.max())
    if longest + new > backbone.max_length:
        raise UserError(
            f"prompts of up to {longest} tokens and {new} new ones exceed {backbone.name}'s "
            f"{backbone.max_length} positions: lower probes.generate.new_tokens"
        )


def writer(settings: Experiment, material: Material):
    """The package's own adapted model on the study's backbone; what it generates under is handed to it each time."""
    from chameleon_lite.chameleon import ChameleonLiteForCausalLM

    backbone = material.backbone
    with torch.random.fork_rng(devices=[]):  # its own head, never used, is drawn at random
        return ChameleonLiteForCausalLM.from_backbone(
            backbone, head="lora", rank=1, scale=settings.train.scale
        )


def conditions(source: Source | None, arrangement: Arrangement, size: int) -> tuple[Condition, Tensor] | None:
    """All conditions (G, …) that a source gives in evaluation's steps, and each document's number (N,) in them.

    Step by step, of `size` rows, as in `training.loop.evaluate`: some sources read the other rows of the step.
    """
    if source is None:
        return None
    parts, group, count = [], torch.zeros_like(arrangement.order), 0
    for rows in arrangement.steps(size):
        condition, own = source(arrangement, rows)
        group[rows] = count + (torch.zeros(len(rows), dtype=torch.int64) if own is None else own.cpu())
        parts.append(condition)
        count += condition.groups
    fields = {
        name: torch.cat([getattr(p, name) for p in parts])
        for name, value in vars(parts[0]).items()
        if value is not None
    }
    return Condition(**fields), group


@torch.no_grad()
def write(
    model,
    head: Head | None,
    told: tuple[Condition, Tensor] | None,
    rows: Tensor,
    table: TokenTable,
    settings: Experiment,
) -> Tensor:
    """New tokens (D, M) of documents rows (D,) on the host, greedy; for a head of None the backbone writes by itself.

    Prompts of like length are continued together, which saves padding; a document's condition stays its own.
    """
    asked, backbone = settings.probes.generate, model.backbone
    who, mode = (backbone.lm, False) if head is None else (model, head.training)
    if mode:
        head.eval()
    by_length = torch.from_numpy(np.argsort(table.prefix[rows.numpy()], kind="stable"))
    out = torch.empty(len(rows), asked.new_tokens, dtype=torch.int64)
    for part in by_length.split(asked.rows):
        ids, mask = (x.to(backbone.device) for x in prompts(table, rows[part]))  # (B, T)
        own = {"head_update": _update(head, told, rows[part])} if head is not None else {}
        found = who.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            num_beams=1,
            max_new_tokens=asked.new_tokens,
            min_new_tokens=asked.new_tokens,
            pad_token_id=backbone.pad_id,
            **own,
        )
        out[part] = found[:, ids.shape[1] :].cpu()  # (B, M)
    if mode:
        head.train()
    return out


def prompts(table: TokenTable, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Ids (B, T) and mask (B, T) of the documents' unscored starts, padded on the left; T is the longest's."""
    starts = [table.ids[table.offsets[i] : table.offsets[i] + table.prefix[i]] for i in rows.tolist()]
    return left_padded(starts, table.pad_id)


def agreement(tokens: Tensor, table: TokenTable, rows: Tensor, tokenizer) -> np.ndarray:
    """ROUGE-L F1 (D,) of tokens (D, M) against the scored text; both are cut to the shorter one's tokens."""
    written, references = [], []
    for own, row in zip(tokens.tolist(), rows.tolist()):
        start, stop = table.offsets[row] + table.prefix[row], table.offsets[row + 1]
        reference = table.ids[start:stop][: len(own)].tolist()
        references.append(reference)
        written.append(own[: len(reference)])
    texts = [tokenizer.batch_decode(part, skip_special_tokens=True) for part in (written, references)]
    return rouge_l(*texts)


def _update(head: Head, told, rows: Tensor) -> Callable[..., Tensor]:
    """The head's update for some rows, each under its own condition; only the conditions of these rows are asked."""
    if told is None:
        return update_logits(head.factors(None), None, len(rows))
    condition, group = told
    used, own = torch.unique(group[rows], return_inverse=True)
    asked = Condition(**{k: v[used.to(v.device)] for k, v in vars(condition).items() if v is not None})
    update = head.factors(asked)
    return update_logits(update, own if update.groups > 1 else None, len(rows))
