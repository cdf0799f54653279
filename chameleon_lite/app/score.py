"""One window of texts through the whole method: what `stream.py` repeats.

    texts ─ tokens ─ mean embeddings ─▶ nearest stored centroid ─▶ groups ─ one hyper-network call ─▶ updates
      score      backbone, rows of similar length together ─ losses, frozen and adapted ─▶ nats per token
      continue   prompts of all clusters in one batch ─ generate ─▶ text

A window is the unit of memory and of what counts as "the texts at hand": nothing is remembered from the one before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..cluster import fit_clusters
from ..conditions import Grouped, grouped
from ..embed import mean_embeddings, normalise
from ..errors import UserError
from ..heads import HeadUpdate, update_logits
from ..lora import without_lora
from ..loss import HeadWeight, next_token, token_losses
from ..text import Document, TokenTable, by_length, tokenise
from .own_texts import Row

TOKENS_AT_ONCE = {"cpu": 2_048, "cuda": 32_768}
LONGEST_TOKEN = 64  # characters: a text is cut to this many for every token that fits, before it is tokenised
DEFAULTS = {"max_length": 256, "prefix_tokens": 16, "min_scored": 8, "condition_on": "prompt"}


@dataclass(frozen=True)
class Adapter:
    """A model and how it is to be used on every window.

    new_tokens: 0 scores texts, more continues prompts by so many; condition: "cluster", "centroid", "row" or None
    for the adapter's own; clusters: None assigns to the stored centroids, a number clusters the window's texts
    among themselves; batch: prompts continued at once; options: further settings of `generate`.
    """

    model: Any
    new_tokens: int = 0
    condition: str | None = None
    clusters: int | None = None
    batch: int = 32
    options: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.new_tokens < 0 or self.new_tokens >= self.model.backbone.max_length:
            raise UserError(
                f"new_tokens must lie between 0 (score) and the model's {self.model.backbone.max_length}"
            )
        if self.clusters is not None and self.clusters < 1:
            raise UserError("clusters must be at least 1; leave it out to use the stored centroids")

    @cached_property
    def prompts(self) -> dict:
        """How texts are cut: as in training, and never longer than the backbone has positions for."""
        own = DEFAULTS | self.model.config.prompts
        return own | {"max_length": min(own["max_length"], self.model.backbone.max_length)}

    @cached_property
    def weight(self) -> HeadWeight:
        head = self.model.get_output_embeddings()
        return HeadWeight(head.weight, head.bias, dtype=head.weight.dtype)

    def __call__(self, rows: Sequence[Row]) -> list[dict]:
        """Results of one window, in its order; a row that failed has `error` instead of numbers."""
        results = [{"row": row.number, "id": row.id} for row in rows]
        work = self._continue if self.new_tokens else self._score
        with torch.inference_mode():
            found = work(rows)
        for result, row, own in zip(results, rows, found):
            result |= {"error": row.error} if row.error else own
        return results

    def _score(self, rows: Sequence[Row]) -> list[dict]:
        limit = LONGEST_TOKEN * self.prompts["max_length"]
        documents = [
            Document(str(i), row.text[:limit], prompt=row.prompt[-limit:])
            for i, row in enumerate(rows)
            if not row.error and row.text.strip()
        ]
        out: list[dict] = [{"error": "no text to score"} for _ in rows]
        for document in documents:
            need = self.prompts["min_scored"]
            first = "" if document.prompt else f"{self.prompts['prefix_tokens']} prefix and "
            out[int(document.id)] = {"error": f"too short: it needs {first}{need} scored tokens"}
        table = self._table(documents)
        if table is None:
            return out
        found = self._grouped(mean_embeddings(table, self.model.backbone.embedding))
        nll = self._losses(table, found)  # (2, n)
        counts, sizes = table.n_scored, torch.bincount(found.group).tolist()
        for place, name in enumerate(table.names):
            group = int(found.group[place])
            frozen, adapted = (float(x) / int(counts[place]) for x in nll[:, place])
            at = {
                "cluster": int(found.cluster[place]),
                "distance": float(found.distance[place]),
                "rows": sizes[group],
                "tokens": int(counts[place]),
                "truncated": self._truncated(rows[int(name)], table, place),
            }
            fine = np.isfinite(adapted)
            out[int(name)] = (
                at | {"loss": adapted, "loss_frozen": frozen} if fine else {"error": "loss is not finite"}
            )
        return out

    def _table(self, documents: list[Document]) -> TokenTable | None:
        try:
            return tokenise(documents, self.model.tokenizer, **self.prompts) if documents else None
        except UserError:  # not one of the window is long enough; each row says so itself
            return None

    def _truncated(self, row: Row, table: TokenTable, place: int) -> bool:
        """Whether a row lost text; only full-length rows are looked at again."""
        if table.lengths[place] < self.prompts["max_length"]:
            return False
        limit = LONGEST_TOKEN * self.prompts["max_length"]
        if max(len(row.text), len(row.prompt)) > limit:
            return True
        parts = self.model.tokenizer([row.prompt, row.text], add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return sum(map(len, parts)) > int(table.lengths[place])  # numpy's own truth values have no JSON

    def _grouped(self, vectors: Tensor) -> Grouped:
        centroids, mode = self.model.centroids, self.condition or self.model.config.condition
        if self.clusters is not None:
            fitted = fit_clusters(vectors.cpu(), min(self.clusters, len(vectors)), seed=0)
            centroids = fitted.centroids.to(vectors)
        return grouped(vectors, centroids, mode)

    def _losses(self, table: TokenTable, found: Grouped) -> Tensor:
        """Sums of nats (2, n), frozen and adapted, of each document's scored tokens."""
        model, out = self.model, torch.zeros(2, len(table), dtype=torch.float64)
        update, device = model.update_for(found.condition), model.device
        for documents in by_length(table.lengths, TOKENS_AT_ONCE.get(device.type, TOKENS_AT_ONCE["cpu"])):
            ids, mask = (x.to(device) for x in table.padded(documents))
            group = found.group[torch.from_numpy(documents).to(found.group.device)]
            prefix = torch.from_numpy(table.prefix[documents].astype(np.int64)).to(device)
            batch = (group, ids, mask, prefix)
            if model.config.lora_rank:  # frozen means the layers too, so each side has states of its own
                with without_lora(model.lm):
                    frozen = self._sums([None], *batch)
                nll = torch.cat([frozen, self._sums([update], *batch)])
            else:
                nll = self._sums([None, update], *batch)
            out[:, documents] = nll.cpu()
        return out

    def _sums(
        self, updates: list[HeadUpdate | None], group: Tensor, ids: Tensor, mask: Tensor, prefix: Tensor
    ) -> Tensor:
        """Sums of nats (updates, B) of a batch's rows under the layers as they are now."""

        def sums(h: Tensor, target: Tensor, row: Tensor) -> Tensor:
            nll = mixed_losses(h, target, group[row], self.weight, updates, self.model.config.scale)
            lengths = torch.bincount(row, minlength=len(ids))
            return torch.segment_reduce(nll.T.double().contiguous(), "sum", lengths=lengths, axis=0).T

        hidden = self.model.backbone.hidden(ids, mask.long())
        return next_token(hidden, ids, mask, prefix, sums)[0]

    def _continue(self, rows: Sequence[Row]) -> list[dict]:
        room = self.model.backbone.max_length - self.new_tokens
        texts = [(row.prompt or row.text)[-LONGEST_TOKEN * room :] for row in rows]
        good = [i for i, (row, text) in enumerate(zip(rows, texts)) if not row.error and text.strip()]
        out: list[dict] = [{"error": "no prompt to continue"} for _ in rows]
        if not good:
            return out
        ids = self.model.tokenizer([texts[i] for i in good], add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        cut = [
            len(p) > room or len(rows[i].prompt or rows[i].text) > len(texts[i]) for p, i in zip(ids, good)
        ]
        ids = [p[-room:] for p in ids]  # the end of a prompt is what its continuation follows
        found = self._grouped(mean_of(ids, self.model.backbone.embedding))
        update, sizes = self.model.update_for(found.condition), torch.bincount(found.group).tolist()
        options = {"do_sample": False} | self.options | {"max_new_tokens": self.new_tokens}
        new = continue_mixed(self.model, ids, found.group, update, batch=self.batch, **options)
        for place, i in enumerate(good):
            out[i] = {
                "cluster": int(found.cluster[place]),
                "distance": float(found.distance[place]),
                "rows": sizes[int(found.group[place])],
                "tokens": len(new[place]),
                "truncated": cut[place],
                "continuation": self.model.tokenizer.decode(new[place], skip_special_tokens=True),
            }
        return out


def mean_of(prompts: Sequence[Sequence[int]], embedding: Tensor) -> Tensor:
    """Lists of ids to their mean embeddings (n, C) float32 at length 1."""
    flat = torch.tensor([i for p in prompts for i in p], device=embedding.device)
    starts = torch.tensor([0, *np.cumsum([len(p) for p in prompts])[:-1].tolist()], device=embedding.device)
    return normalise(F.embedding_bag(flat, embedding.detach().float(), starts, mode="mean"))


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
