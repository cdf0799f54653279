"""A world with a known answer: what the context of a batch and all that has passed are worth, exactly.

    stream: one of W sets of sources, which nobody names          prior 1/W
      batch: a topic, the last batch's with probability `stay`    else one of G, all equally likely
        row: a group, the topic with probability `purity`         else one of the others
          tokens: the group's bigram source, P(next | token) ∝ base(next | token) · tilt(next)

A predictor of a row's scored tokens has the token before (the frozen model's state, so to say) and one of
four kinds of knowledge: none, the row's own prefix, the prefixes of its batch, or those and all rows of
earlier batches. The Bayes-optimal prediction under each is a finite sum, computed here for whole streams; the
difference of two losses is the gain that is available. With purity 1/G and stay 0 a batch adds nothing that
the row's own prefix does not.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

KNOWLEDGE = ("none", "prefix", "batch", "past")


class Stream(NamedTuple):
    """Sampled rows: S batches of B rows of T tokens."""

    sources: int  # which of the W
    topic: np.ndarray  # (S,)
    group: np.ndarray  # (S, B)
    tokens: np.ndarray  # (S, B, T)


@dataclass(frozen=True)
class World:
    """The sizes of a world; its sources are drawn by `seed`."""

    vocab: int = 24  # V
    groups: int = 4  # G
    sources: int = 1  # W; with 1 the predictor has all sources, with more it has to find out which are true
    concentration: float = 1.0  # of the Dirichlet tilts: the smaller, the more groups differ
    purity: float = 1.0
    stay: float = 0.0
    batch: int = 8  # B
    prefix: int = 4  # tokens of a row that are known before it is scored
    scored: int = 16  # tokens of a row that are scored
    seed: int = 0

    @property
    def length(self) -> int:
        """Tokens of a row, T."""
        return self.prefix + self.scored

    @cached_property
    def first(self) -> np.ndarray:
        """Probabilities of a row's first token, (W, G, V)."""
        numbers = np.random.default_rng(self.seed)
        shape = (self.sources, self.groups)
        return numbers.dirichlet(np.full(self.vocab, self.concentration), shape)

    @cached_property
    def next(self) -> np.ndarray:
        """Probabilities of the next token after each, (W, G, V, V)."""
        numbers = np.random.default_rng([self.seed, 1])
        base = numbers.dirichlet(np.full(self.vocab, 1.0), self.vocab)  # (V, V)
        tilted = base * self.first[:, :, None] + 1e-12  # (W, G, V, V)
        return tilted / tilted.sum(-1, keepdims=True)

    @cached_property
    def group_given_topic(self) -> np.ndarray:
        """(G, G), topics by groups."""
        if self.groups == 1:
            return np.ones((1, 1))
        other = (1 - self.purity) / (self.groups - 1)
        return np.full((self.groups, self.groups), other) + (self.purity - other) * np.eye(self.groups)

    @cached_property
    def topic_after(self) -> np.ndarray:
        """(G, G), topics by the next batch's topics."""
        return self.stay * np.eye(self.groups) + (1 - self.stay) / self.groups

    @property
    def mixture(self) -> np.ndarray:
        """The frozen model: probabilities (V, V) of the next token after each, over all sources and groups.

        A group's share is its probability of the token before, anywhere in a row.
        """
        weight = np.zeros_like(self.first)
        at = self.first
        for _ in range(self.length - 1):
            weight, at = weight + at, np.einsum("wgv,wgvx->wgx", at, self.next)
        joint = np.einsum("wgv,wgvx->vx", weight, self.next)
        return joint / joint.sum(1, keepdims=True)

    def sample(self, batches: int, numbers: np.random.Generator) -> Stream:
        """A stream of S batches."""
        sources, topics = int(numbers.integers(self.sources)), np.zeros(batches, dtype=np.int64)
        for s in range(batches):
            stays = s and numbers.random() < self.stay
            topics[s] = topics[s - 1] if stays else numbers.integers(self.groups)
        group = _draw(self.group_given_topic[np.repeat(topics, self.batch)], numbers)  # (S·B,)
        tokens = np.zeros((len(group), self.length), dtype=np.int64)
        tokens[:, 0] = _draw(self.first[sources, group], numbers)
        for t in range(1, self.length):
            tokens[:, t] = _draw(self.next[sources, group, tokens[:, t - 1]], numbers)
        shape = (batches, self.batch)
        return Stream(sources, topics, group.reshape(shape), tokens.reshape(*shape, -1))

    def losses(self, stream: Stream) -> dict[str, np.ndarray]:
        """Bayes-optimal losses (S, B, scored) in nats under each of KNOWLEDGE."""
        tokens, (sources, groups) = stream.tokens, (self.sources, self.groups)
        prefix = self._log_likelihood(tokens[:, :, : self.prefix])  # (S, B, W, G)
        uniform = np.full((*tokens.shape[:2], sources, groups), -np.log(sources * groups))
        own = prefix - logsumexp(prefix, axis=(2, 3), keepdims=True)
        even = np.full((len(tokens), sources, groups), -np.log(sources * groups))
        known = {"none": uniform, "prefix": own, "batch": self._given_batch(prefix, even)}
        known["past"] = self._given_batch(prefix, self._topics_before(tokens))
        return {name: self._loss(tokens, weight, name == "none") for name, weight in known.items()}

    def _log_likelihood(self, tokens: np.ndarray) -> np.ndarray:
        """log p(tokens (S, B, t) | sources, group), (S, B, W, G)."""
        first, after = np.log(self.first), np.log(self.next)
        out = np.moveaxis(first[:, :, tokens[:, :, 0]], (0, 1), (2, 3))
        for t in range(1, tokens.shape[2]):
            out = out + np.moveaxis(after[:, :, tokens[:, :, t - 1], tokens[:, :, t]], (0, 1), (2, 3))
        return out

    def _topics_before(self, tokens: np.ndarray) -> np.ndarray:
        """log p(sources, topic of each batch | all rows of the batches before it), (S, W, G)."""
        rows = self._of_topics(self._log_likelihood(tokens)).sum(1)  # (S, W, topics)
        out = np.full((len(tokens), self.sources, self.groups), -np.log(self.sources * self.groups))
        for s in range(1, len(tokens)):
            seen = out[s - 1] + rows[s - 1]  # (W, topics)
            with np.errstate(divide="ignore"):  # a topic that never changes: log 0
                moved = logsumexp(seen[:, :, None] + np.log(self.topic_after), axis=1)
            out[s] = moved - logsumexp(moved)
        return out

    def _of_topics(self, of_groups: np.ndarray) -> np.ndarray:
        """log p(row | sources, topic) from log p(row | sources, group): (…, W, G) to (…, W, G)."""
        with np.errstate(divide="ignore"):
            return logsumexp(of_groups[..., None, :] + np.log(self.group_given_topic), axis=-1)

    def _given_batch(self, prefix: np.ndarray, topics: np.ndarray) -> np.ndarray:
        """log p(sources, a row's group | its batch's prefixes) (S, B, W, G), from topics' (S, W, G)."""
        of_topics = self._of_topics(prefix)  # (S, B, W, topics)
        others = topics[:, None] + of_topics.sum(1, keepdims=True) - of_topics  # all rows' but the row's own
        with np.errstate(divide="ignore"):
            mine = others[..., None] + np.log(self.group_given_topic)  # (S, B, W, topics, G)
        joint = logsumexp(mine, axis=3) + prefix
        return joint - logsumexp(joint, axis=(2, 3), keepdims=True)

    def _loss(self, tokens: np.ndarray, weight: np.ndarray, blind: bool) -> np.ndarray:
        """−log p(token | the one before, what `weight` (S, B, W, G) holds), (S, B, scored).

        The token before is evidence too: how likely each source is to be at it, tokens between it and the
        prefix (or, `blind`, the row's start) being unknown.
        """
        out = np.zeros((*tokens.shape[:2], self.scored))
        reach = np.broadcast_to(
            np.eye(self.vocab), self.next.shape
        )  # (W, G, V, V), from the last token that is known
        start = self.first
        for _ in range(self.prefix - 1):
            start = np.einsum("wgv,wgvx->wgx", start, self.next)
        last = tokens[:, :, self.prefix - 1]
        for k in range(self.scored):
            before, here = tokens[:, :, self.prefix + k - 1], tokens[:, :, self.prefix + k]
            seen = start[:, :, before] if blind else reach[:, :, last, before]  # (W, G, S, B)
            share = np.exp(weight) * np.moveaxis(seen, (0, 1), (2, 3))
            step = np.moveaxis(self.next[:, :, before, here], (0, 1), (2, 3))
            out[:, :, k] = -np.log((share * step).sum((2, 3)) / share.sum((2, 3)))
            reach, start = reach @ self.next, np.einsum("wgv,wgvx->wgx", start, self.next)
        return out


def _draw(probabilities: np.ndarray, numbers: np.random.Generator) -> np.ndarray:
    """One index per row of probabilities (n, k)."""
    bounds = probabilities.cumsum(1)
    return (numbers.random((len(bounds), 1)) * bounds[:, -1:] > bounds).sum(1)


def available(world: World, batches: int, streams: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Mean loss of each batch (batches,) in nats per token under each of KNOWLEDGE, over sampled streams."""
    numbers = np.random.default_rng(seed)
    each = [world.losses(world.sample(batches, numbers)) for _ in range(streams)]
    return {name: np.mean([losses[name].mean((1, 2)) for losses in each], axis=0) for name in KNOWLEDGE}
