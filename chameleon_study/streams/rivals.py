"""What else makes use of the texts that have passed, without a memory of factors, and one bound.

    cache     (1 − λ) model + λ frequencies of all tokens of earlier batches
    knn       (1 − λ) model + λ softmax(−d²/τ) over the nearest earlier states, exact search
              (kNN-LM, Khandelwal et al. 2020)
    context   the earlier row with the nearest prefix is put in front of the row
    S4        a head generated from the mean of the cluster's rows so far (generated.py)
    S6        all weights of the layers are updated after each batch

Their settings are chosen on the tuning stream, as the rates of the others are.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from chameleon_lite.backbone import copied
from chameleon_lite.loss import head_losses, token_losses
from chameleon_lite.streams.memory import Memory
from chameleon_lite.streams.online import LayerStates
from chameleon_lite.text import cumulative

from .generated import generated, updated
from .material import Material, Part
from .methods import Lane, read_lanes

SHARES = (0.01, 0.03, 0.1, 0.2, 0.4)  # λ
TEMPERATURES = (0.03, 0.1, 0.3, 1.0)  # τ, in units of the mean squared difference of one standardised number
NEIGHBOURS = 64
KEYS_AT_ONCE, QUERIES_AT_ONCE = 131_072, 2_048
PAST_TOKENS = 96  # of the row put in front, at most
ALL_RATES = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4)
PIECE = 256  # documents


def token_nll(material: Material, part: Part, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of documents (n,) in order: frozen losses (S,) and targets (S,), and scored tokens (n,)."""
    pairs = [part.states.batch(rows)[:2] for rows in order.split(PIECE)]
    nll = torch.cat([token_losses(h, target, material.weight, [None])[0] for h, target in pairs])
    return nll.double(), torch.cat([target for _, target in pairs]), part.states.counts[order]


def per_document(nll: Tensor, counts: Tensor) -> Tensor:
    """Losses (S,) of tokens to sums (n,) of documents, on the host."""
    return torch.segment_reduce(nll.cpu(), "sum", lengths=counts, axis=0)


def mixed(nll: Tensor, other: Tensor, share: float) -> Tensor:
    """−log((1 − share) exp(−nll) + share other), (S,)."""
    return -torch.log((1 - share) * torch.exp(-nll) + share * other)


def _batch_ends(counts: Tensor, batch: int) -> list[int]:
    return [0, *counts.cumsum(0)[batch - 1 :: batch].tolist()] + (
        [int(counts.sum())] if len(counts) % batch else []
    )


def cached(target: Tensor, counts: Tensor, batch: int, vocab: int) -> Tensor:
    """Share (S,) of each target among earlier batches' tokens, one pseudo-token spread over all."""
    target, ends = target.cpu().numpy(), _batch_ends(counts, batch)
    seen, out = np.zeros(vocab), np.empty(len(target))
    for low, high in zip(ends, ends[1:]):
        out[low:high] = (seen[target[low:high]] + 1 / vocab) / (low + 1)
        np.add.at(seen, target[low:high], 1)
    return torch.from_numpy(out)


def cache(material: Material, part: Part, order: Tensor, batch: int, settings=None) -> dict[tuple, Tensor]:
    """Sums of nats (n,) of the cache for each λ, or for the given one."""
    nll, target, counts = token_nll(material, part, order)
    share_of = cached(target, counts, batch, material.backbone.vocab)
    chosen = [(share,) for share in SHARES] if settings is None else [settings]
    return {s: per_document(mixed(nll.cpu(), share_of, s[0]), counts) for s in chosen}


def neighbours(states: Tensor, target: Tensor, ends: list[int], k: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """Squared distances (S, k) of states (S, C) to the nearest of earlier batches, and whether targets agree.

    Exact; where fewer than k are there the distance is infinite.
    """
    distance = torch.full((len(states), k), torch.inf, device=states.device)
    agrees = torch.zeros(len(states), k, dtype=torch.bool, device=states.device)
    square = states.square().sum(1)  # (S,)
    for low, high in zip(ends, ends[1:]):
        for first in range(low, high, QUERIES_AT_ONCE):
            at = slice(first, min(first + QUERIES_AT_ONCE, high))
            best, index = distance[at], torch.zeros_like(agrees[at], dtype=torch.int64)
            for start in range(0, low, KEYS_AT_ONCE):
                keys = slice(start, min(start + KEYS_AT_ONCE, low))
                gap = torch.addmm(square[keys][None], states[at], states[keys].T, alpha=-2)
                near = gap.topk(min(k, gap.shape[1]), largest=False)
                both = torch.cat([best, near.values + square[at, None]], 1).topk(k, largest=False)
                index = torch.cat([index, near.indices + start], 1).gather(1, both.indices)
                best = both.values
            distance[at] = best.clamp_min(0)
            agrees[at] = (target[index] == target[at, None]) & best.isfinite()
    return distance, agrees


def knn(material: Material, part: Part, order: Tensor, batch: int, settings=None) -> dict[tuple, Tensor]:
    """Sums of nats (n,) of kNN-LM for each (λ, τ), or the given pair; states are standardised."""
    nll, target, counts = token_nll(material, part, order)
    some = (
        material.parts["train"]
        .states.batch(torch.arange(min(PIECE, material.parts["train"].scored)))[0]
        .float()
    )
    mean, spread = some.mean(0), some.std(0).clamp_min(1e-6)
    states = torch.cat([part.states.batch(rows)[0].float() for rows in order.split(PIECE)])
    distance, agrees = neighbours((states - mean) / spread, target, _batch_ends(counts, batch))
    width, out = states.shape[1], {}
    for share, tau in [*product(SHARES, TEMPERATURES)] if settings is None else [settings]:
        weight = torch.softmax(-distance / (width * tau), 1).nan_to_num(
            0.0
        )  # nan: the first batch has no neighbours
        near = torch.where(agrees, weight, 0.0).sum(1).double()
        there = distance[:, 0].isfinite()
        out[share, tau] = per_document(torch.where(there, mixed(nll, near, share), nll), counts)
    return out


def nearest_before(vectors: Tensor, order: Tensor, batch: int) -> Tensor:
    """For documents (n,) in order the place of the nearest of earlier batches, or −1; vectors (N, C)."""
    x, out = vectors[order], torch.full((len(order),), -1)
    for low in range(batch, len(order), batch):
        out[low : low + batch] = (x[low : low + batch] @ x[:low].T).argmax(1).cpu()
    return out


def context(material: Material, part: Part, order: Tensor, batch: int, settings=None) -> dict[tuple, Tensor]:
    """Sums of nats (n,) with the nearest earlier row in front; the first batch has none."""
    near = nearest_before(part.hidden.to(material.backbone.device), order, batch)
    table, separator = part.table, material.backbone.tokenizer("\n", add_special_tokens=False)["input_ids"]
    rows, front = [], np.zeros(len(order), dtype=np.int32)
    for i, (n, past) in enumerate(zip(order.tolist(), near.tolist())):
        own = table.ids[table.offsets[n] : table.offsets[n + 1]]
        if past >= 0:
            m = int(order[past])
            before = table.ids[table.offsets[m] : table.offsets[m + 1]][:PAST_TOKENS]
            own = np.concatenate([before, separator, own]).astype(np.int32)
            front[i] = len(before) + len(separator)
        rows.append(own)
    longer = table.take(order)
    offsets = cumulative(np.array([len(row) for row in rows]))
    longer = replace(longer, ids=np.concatenate(rows), offsets=offsets, prefix=longer.prefix + front)
    nothing = Memory({}, torch.zeros(1, 0, device=material.backbone.device), torch.zeros(1))
    live, all_rows = LayerStates(material.backbone, longer), torch.arange(len(order))
    lane = Lane(all_rows, torch.zeros(len(order), 1, dtype=torch.int64))
    return {(): read_lanes(nothing, live, material.weight, [lane], PIECE, learns=False)[0]}


def all_weights(
    material: Material, part: Part, order: Tensor, batch: int, settings=None
) -> dict[tuple, Tensor]:
    """Sums of nats (n,) while AdamW updates every weight of the layers, for each rate or the given one."""
    out = {}
    for (rate,) in [(r,) for r in ALL_RATES] if settings is None else [settings]:
        model = copied(material.backbone)
        embedding = model.embedding
        weights = [p.requires_grad_() for p in model.body.parameters() if p is not embedding]
        optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0, betas=(0.9, 0.99))
        live, nll = LayerStates(model, part.table), torch.zeros(len(order), dtype=torch.float64)
        live.learning_pass = None  # its weights have gradients of their own
        for low in range(0, len(order), batch):
            rows = order[low : low + batch]
            tokens = int(live.counts[rows].sum())
            for piece in live.pieces(rows):
                h, target, _ = live.batch(rows[piece])
                each = token_losses(h, target, material.weight, [None])[0].double()
                nll[low + piece] = per_document(each, live.counts[rows[piece]])
                (head_losses(h, target, material.weight, [None]).sum() / tokens).backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        out[rate,] = nll
    return out


RIVALS = {"cache": cache, "knn": knn, "context": context}
RIVALS |= {"S4": generated, "S4-updated": updated, "S6": all_weights}


def tuned(material: Material, name: str, batch: int) -> tuple[tuple, dict[str, float]]:
    """A rival's best settings on the tuning stream, and nats per token of all that were tried."""
    part = material.parts["tuning"]
    order = part.order("random", 0)
    tokens = float(part.states.counts[order].sum())
    tried = {s: float(nll.sum()) / tokens for s, nll in RIVALS[name](material, part, order, batch).items()}
    return min(tried, key=tried.get), {str(s): value for s, value in tried.items()}
