"""One window of texts through the whole method: what `stream.py` repeats.

    texts ─ tokens ─ mean embeddings ─▶ nearest stored centroid ─▶ groups ─ one hyper-network call ─▶ updates
      score      backbone, rows of similar length together ─ losses, frozen and adapted ─▶ nats per token
      continue   prompts of all clusters in one batch ─ generate ─▶ text

A window bounds memory, and its texts are all that a condition can read: nothing is carried over from the one before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..backbones.adapters import Writing
from ..backbones.formats import sums_on
from ..cluster import fit_clusters
from ..conditions import Grouped, grouped
from ..embed import mean_embeddings, normalise
from ..errors import UserError
from ..heads import HeadUpdate, update_logits
from ..lora import without_lora
from ..loss import HeadWeight, next_token_pairs, token_losses
from ..settings import TokenSettings
from ..states import read_at_once
from ..text import Document, TokenTable, cumulative, tokenise
from .chat import Writer, document_of, tail, whole_characters
from .rows import Row

Prompts = Sequence[Sequence[int]]  # lists of token ids
LONGEST_TOKEN = 64  # characters: a text is cut to this many for every token that fits, before it is tokenised


@dataclass(frozen=True)
class Adapter:
    """A model and how it is to be used on every window.

    new_tokens: 0 scores texts, more continues prompts by so many; condition: "cluster", "centroid", "row" or None
    for the adapter's own; clusters: None assigns to the stored centroids, a number clusters the window's texts
    among themselves; batch: prompts continued at once.
    """

    model: Any
    new_tokens: int = 0
    condition: str | None = None
    clusters: int | None = None
    batch: int = 32

    def __post_init__(self) -> None:
        longest = self.model.backbone.max_length
        if not 0 <= self.new_tokens < longest:
            raise UserError(f"new_tokens must lie between 0 (score) and the model's {longest}")

    @cached_property
    def prompts(self) -> dict:
        """How texts are cut: as in training, and never longer than the backbone has positions for."""
        settings = TokenSettings(**cuts_of(self.model.config.prompts)).model_dump()
        return settings | {"max_length": min(settings["max_length"], self.model.backbone.max_length)}

    @cached_property
    def writer(self) -> Writer:
        """How texts are written: as in training."""
        return Writer(self.model.tokenizer, Writing(**self.model.config.prompts))

    @cached_property
    def weight(self) -> HeadWeight:
        head = self.model.get_output_embeddings()
        return HeadWeight(head.weight, head.bias, dtype=head.weight.dtype)

    def __call__(self, rows: Sequence[Row]) -> list[dict]:
        """Results of one window, in its order; a row that failed has `error` instead of numbers."""
        with torch.inference_mode():
            results = self._continue(rows) if self.new_tokens else self._score(rows)
        results = [{"error": row.error} if row.error else result for row, result in zip(rows, results)]
        return [{"row": row.number, "id": row.id} | result for row, result in zip(rows, results)]

    def _score(self, rows: Sequence[Row]) -> list[dict]:
        """Each row's loss, frozen and adapted."""
        results = [{"error": "no text to score"} for _ in rows]
        limit, whole = LONGEST_TOKEN * self.prompts["max_length"], {}
        for i, row in enumerate(rows):
            if not row.error and row.text.strip():
                try:
                    whole[str(i)] = self.writer.document(document_of(row, str(i)))
                except UserError as error:  # of the chat template
                    results[i] = {"error": str(error)}
                    continue
                prefix = "" if row.prompt else f"{self.prompts['prefix_tokens']} prefix and "
                need = f"{prefix}{self.prompts['min_scored']} scored tokens"
                results[i] = {"error": f"too short: it needs {need}"}  # unless the table below has it
        documents = [replace(d, text=d.text[:limit], prompt=tail(d.prompt, limit)) for d in whole.values()]
        try:
            table = tokenise(documents, self.writer, **self.prompts)
        except UserError:  # no text of the window is long enough, as each row's error says
            return results
        groups = self._grouped(mean_embeddings(table, self.model.backbone.embedding))
        losses = (self._nats(table, groups) / torch.from_numpy(table.n_scored)).T.tolist()
        for place, (name, facts) in enumerate(zip(table.names, _facts(groups))):
            frozen, adapted = losses[place]
            truncated = self._truncated(whole[name], int(table.lengths[place]))
            facts |= {"tokens": int(table.n_scored[place]), "truncated": truncated}
            facts |= {"loss": adapted, "loss_frozen": frozen}
            results[int(name)] = facts if np.isfinite(adapted) else {"error": "loss is not finite"}
        return results

    def _truncated(self, whole: Document, tokens: int) -> bool:
        """Whether a row of so many tokens lost text; only rows of full length are tokenised again."""
        longest, texts = self.prompts["max_length"], [whole.prompt, whole.text]
        cut = any(len(text) > LONGEST_TOKEN * longest for text in texts)
        return tokens == longest and (cut or sum(map(len, [self.writer.first, *self._ids(texts)])) > tokens)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.writer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    def _grouped(self, vectors: Tensor) -> Grouped:
        centroids = self.model.centroids
        if self.clusters is not None:
            fitted = fit_clusters(vectors.cpu(), min(self.clusters, len(vectors)), seed=0)
            centroids = fitted.centroids.to(vectors)
        return grouped(vectors, centroids, self.condition or self.model.config.condition)

    def _nats(self, table: TokenTable, groups: Grouped) -> Tensor:
        """Nats (2, N), frozen and adapted, summed over each document's scored tokens; float64, on the host."""
        model, nats = self.model, torch.zeros(2, len(table), dtype=torch.float64)
        update, device = model.update_for(groups.condition), model.device
        for documents in read_at_once(table.lengths, device):
            ids, mask = (x.to(device) for x in table.padded(documents))
            group = groups.group[torch.from_numpy(documents).to(groups.group.device)]
            prefix = torch.from_numpy(table.prefix[documents].astype(np.int64)).to(device)
            batch = (group, ids, mask, prefix)
            if model.config.lora_rank:  # frozen means the layers too, so each side has states of its own
                with without_lora(model.lm):
                    frozen = self._sums([None], *batch)
                sums = torch.cat([frozen, self._sums([update], *batch)])
            else:
                sums = self._sums([None, update], *batch)
            nats[:, documents] = sums.cpu()
        return nats

    def _sums(self, updates: list, group: Tensor, ids: Tensor, mask: Tensor, prefix: Tensor) -> Tensor:
        """Nats (updates, B) of a batch's rows under the layers as they are now."""
        row, column, target = next_token_pairs(ids, mask, prefix)
        order = torch.argsort(group[row], stable=True)  # few groups meet in one chunk of the head's pass
        h = self.model.backbone.hidden(ids, mask.long())[row, column][order]  # (M, C)
        groups = [None if u is None or u.groups == 1 else group[row][order] for u in updates]
        scale = self.model.config.scale
        by_group = token_losses(h, target[order], self.weight, updates, groups=groups, scale=scale)
        nll = torch.empty_like(by_group).index_copy_(1, order, by_group)  # (updates, M)
        nll, lengths = nll.to(sums_on(nll.device)), torch.bincount(row, minlength=len(ids))
        by_row = {"lengths": lengths.to(nll.device), "axis": 0}
        return torch.segment_reduce(nll.T.double().contiguous(), "sum", **by_row).T

    def _continue(self, rows: Sequence[Row]) -> list[dict]:
        """Each row's prompt, or its text where it has none, continued."""
        results = [{"error": "no prompt to continue"} for _ in rows]
        begin, texts = self.writer.first, {}
        room = self.model.backbone.max_length - self.new_tokens - len(begin)  # tokens of a prompt
        for i, row in enumerate(rows):
            if not row.error and (row.prompt or row.text).strip():
                try:
                    document = self.writer.document(document_of(row, str(i)))
                    texts[i] = document.prompt or document.text
                except UserError as error:  # of the chat template
                    results[i] = {"error": str(error)}
        ends = [tail(text, LONGEST_TOKEN * room) for text in texts.values()]
        ids = dict(zip(texts, self._ids(ends) if ends else []))
        ids = {i: p for i, p in ids.items() if p}  # some tokenizers drop what they have no token for
        if not ids:
            return results
        prompts = [begin + p[-room:] for p in ids.values()]  # its end is what a continuation follows
        groups = self._grouped(mean_of(prompts, self.model.backbone.embedding))
        update = self.model.update_for(groups.condition)
        end = self.writer.ends(self.model.generation_config.eos_token_id)
        new = continue_mixed(self.model, prompts, groups.group, update, self.new_tokens, self.batch, end)
        for (i, p), tokens, facts in zip(ids.items(), new, _facts(groups)):
            results[i] = facts | {
                "tokens": len(tokens),
                "truncated": len(p) > room or len(texts[i]) > LONGEST_TOKEN * room,
                "continuation": whole_characters(self.model.tokenizer, tokens),
            }
        return results


def cuts_of(prompts: dict) -> dict:
    """Of how texts are cut and written, how they are cut."""
    return {name: value for name, value in prompts.items() if name in TokenSettings.model_fields}


def _facts(groups: Grouped) -> list[dict]:
    """For each row its cluster, the distance to that centroid, and how many rows share its condition."""
    columns = {"cluster": groups.cluster, "distance": groups.distance}
    columns["rows"] = torch.bincount(groups.group)[groups.group]
    return [dict(zip(columns, row)) for row in zip(*(column.tolist() for column in columns.values()))]


def mean_of(prompts: Prompts, embedding: Tensor) -> Tensor:
    """Lists of ids to their mean embeddings (N, C) float32 at length 1."""
    ids = torch.tensor([i for p in prompts for i in p], device=embedding.device)
    starts = torch.from_numpy(cumulative([len(p) for p in prompts])[:-1]).to(embedding.device)
    return normalise(F.embedding_bag(ids, embedding.detach().float(), starts, mode="mean"))


@torch.no_grad()
def continue_mixed(
    model, prompts: Prompts, group: Tensor, update: HeadUpdate, new_tokens: int, batch=32, end=None
) -> list[list[int]]:
    """New tokens for each of the prompts (lists of ids), prompt i under update group[i]; `batch` rows at once.

    Prompts of similar length share a batch, so that little is padded; the first of the tokens `end`, a list of ids
    (those of the model where there is none), and what follows it are cut.
    """
    end = end or model.generation_config.eos_token_id
    out: list[list[int]] = [[] for _ in prompts]
    lengths = torch.tensor([len(p) for p in prompts])
    group = group.cpu() if update.groups > 1 else torch.zeros_like(lengths)  # a static head has one update
    for rows in torch.argsort(lengths, stable=True).split(batch):
        rows = rows[torch.argsort(group[rows], stable=True)]  # groups together: no step reorders its rows
        padded = left_padded([prompts[i] for i in rows], model.backbone.pad_id)
        ids, mask = (x.to(model.device) for x in padded)
        how = {"head_update": update_logits(update, group[rows]), "max_new_tokens": new_tokens}
        new = model.generate(input_ids=ids, attention_mask=mask, eos_token_id=end, **how)[:, ids.shape[1] :]
        for i, tokens in zip(rows.tolist(), new.tolist()):
            out[i] = until_end(tokens, end)
    return out


def left_padded(prompts: Prompts, pad_id: int) -> tuple[Tensor, Tensor]:
    """Lists of ids as ids and mask (B, T) int64, padded on the left: new tokens follow the last real one."""
    rows = [torch.tensor(list(prompt), dtype=torch.int64) for prompt in prompts]
    side = {"batch_first": True, "padding_side": "left"}
    mask = pad_sequence([torch.ones_like(row) for row in rows], **side)
    return pad_sequence(rows, padding_value=pad_id, **side), mask


def until_end(tokens: list[int], end: int | list[int] | None) -> list[int]:
    """The tokens before the first end token; after it a finished row of a batch holds nothing but padding."""
    ends = set(end if isinstance(end, list) else [end])
    return next((tokens[:i] for i, token in enumerate(tokens) if token in ends), tokens)
