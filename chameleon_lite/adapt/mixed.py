"""Clusters side by side: one batch holds rows of many clusters, each under its own update.

    scoring      states (M, C) of all rows, sorted by group ─ one product h Wᵀ ─ each group's update ─▶ nll (M,)
    continuing   prompts of all groups in one batch ─ ChameleonLiteForCausalLM.generate ─▶ new tokens

`apart` does the same with one batch a cluster, as the method was published: the results are equal, the time is
not, since small clusters make small batches and each reads the whole backbone again.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..heads import HeadUpdate, update_logits
from ..loss import HeadWeight, token_losses


@torch.no_grad()
def mixed_losses(
    h: Tensor,
    target: Tensor,
    group: Tensor,
    weight: HeadWeight,
    updates: Sequence[HeadUpdate | None],
    scale: float = 1.0,
) -> Tensor:
    """Next-token losses (heads, M) of states h (M, C) whose position m belongs to group[m] of each update.

    An entry None is the frozen head, which shares the large product. Positions are sorted by group first, so that
    few groups meet in one chunk of the head's pass.
    """
    order = torch.argsort(group, stable=True)
    groups = [None if update is None or update.groups == 1 else group[order] for update in updates]
    nll = token_losses(h[order], target[order], weight, updates, groups=groups, scale=scale)  # (heads, M)
    out = torch.empty_like(nll)
    out[:, order] = nll
    return out


@torch.no_grad()
def continue_mixed(
    model, prompts: Sequence[Sequence[int]], group: Tensor, update: HeadUpdate, *, batch: int = 32, **options
) -> list[list[int]]:
    """New tokens for each of the prompts (lists of ids), prompt i under update group[i]; `batch` rows at once.

    Prompts of similar length share a batch, so that little is padded; the end token and what follows it are cut.
    options are `generate`'s, max_new_tokens above all.
    """
    lengths = torch.tensor([len(p) for p in prompts])
    out: list[list[int]] = [[] for _ in prompts]
    for rows in torch.argsort(lengths, stable=True).split(batch):
        rows = rows[
            torch.argsort(group.cpu()[rows], stable=True)
        ]  # groups together: nothing to put back at each step
        ids, mask = left_padded([prompts[i] for i in rows], model.backbone.pad_id)
        new = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            head_update=update_logits(update, group.cpu()[rows]),
            **options,
        )[:, ids.shape[1] :]
        for i, tokens in zip(rows.tolist(), new.tolist()):
            out[i] = until_end(tokens, model.generation_config.eos_token_id)
    return out


def apart(rows_of: Callable[[Tensor], list], group: Tensor) -> list:
    """Call rows_of(rows) for the rows of one group after the other, and put the results in the rows' order."""
    out: list = [None] * len(group)
    for g in torch.unique(group):
        rows = torch.nonzero(group == g).flatten()
        for i, value in zip(rows.tolist(), rows_of(rows)):
            out[i] = value
    return out


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Lists of ids as ids and mask (B, T) int64, padded on the left: new tokens follow the last real one."""
    longest = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt), dtype=torch.int64)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def until_end(tokens: list[int], end: int | list[int] | None) -> list[int]:
    """The tokens before the first end token; after it a finished row of a batch holds nothing but padding."""
    ends = set(end if isinstance(end, list) else [end])
    return next((tokens[:i] for i, token in enumerate(tokens) if token in ends), tokens)
