"""The world's exact losses against enumeration, and what must hold of any of them."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from chameleon_study.streams.world import KNOWLEDGE, Stream, World, available

SMALL = World(vocab=3, groups=2, sources=2, purity=0.8, stay=0.6, batch=2, prefix=1, scored=2, seed=3)


def joint(world, tokens, sources, topics, groups):
    """p(all tokens, all latent variables), with nothing but the definition."""
    p = 1 / world.sources
    for s, topic in enumerate(topics):
        even = 1 / world.groups
        stays = world.stay * (topic == topics[s - 1]) if s else 0
        p *= stays + (1 - world.stay) * even if s else even
        for b, group in enumerate(groups[s]):
            p *= world.purity if group == topic else (1 - world.purity) / (world.groups - 1)
            row = tokens[s][b]
            p *= world.first[sources, group, row[0]]
            for before, after in zip(row, row[1:]):
                p *= world.next[sources, group, before, after]
    return p


def enumerated(world, stream, s, b, k, knowledge):
    """−log p(token | knowledge): the joint summed over all latent variables and unknown tokens."""
    batches, rows, length = stream.tokens.shape
    t = world.prefix + k
    known = np.zeros((batches, rows, length), dtype=bool)
    if knowledge == "past":
        known[:s] = True
    if knowledge in ("past", "batch"):
        known[s, :, : world.prefix] = True
    if knowledge == "prefix":
        known[s, b, : world.prefix] = True
    known[s, b, t - 1] = True
    needed = [s] if knowledge != "past" else [*range(s + 1)]  # other batches' tokens sum to one
    free = [(i, j, x) for i in needed for j in range(rows) for x in range(length) if not known[i, j, x]]
    free.remove((s, b, t))
    if knowledge in ("none", "prefix"):  # so do other rows' tokens
        free = [place for place in free if place[:2] == (s, b)]
    totals = np.zeros(world.vocab)
    for values in product(range(world.vocab), repeat=len(free) + 1):
        tokens = stream.tokens.copy()
        for place, value in zip([(s, b, t), *free], values):
            tokens[place] = value
        totals[values[0]] += marginal(world, tokens, s, b, knowledge)
    return -np.log(totals[stream.tokens[s, b, t]] / totals.sum())


def marginal(world, tokens, s, b, knowledge):
    """The joint summed over sources, topics and groups, of the rows that the knowledge concerns."""
    batches = range(s + 1) if knowledge == "past" else [s]
    kept = [[tokens[i][b]] if knowledge in ("none", "prefix") else list(tokens[i]) for i in batches]
    total = 0.0
    for sources in range(world.sources):
        for topics in product(range(world.groups), repeat=len(kept)):
            of_rows = product(range(world.groups), repeat=sum(map(len, kept)))
            for flat in of_rows:
                it = iter(flat)
                groups = [[next(it) for _ in rows] for rows in kept]
                total += joint(world, kept, sources, topics, groups)
    return total


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
@pytest.mark.parametrize("change", [{}, {"prefix": 2, "scored": 1}, {"purity": 0.5, "stay": 0.0}])
def test_the_estimator_agrees_with_enumeration(knowledge, change):
    world = replace(SMALL, **change)
    stream = world.sample(2, np.random.default_rng(0))
    exact = world.losses(stream)[knowledge]
    for s, b, k in [(0, 0, 0), (1, 0, 0), (1, 1, world.scored - 1)]:
        assert exact[s, b, k] == pytest.approx(enumerated(world, stream, s, b, k, knowledge), abs=1e-9)


def test_sampled_tokens_have_the_frequencies_of_the_sources():
    world = World(vocab=3, groups=2, batch=1_000, prefix=1, scored=2, seed=1)
    stream = world.sample(20, np.random.default_rng(0))
    for group in range(2):
        rows = stream.tokens[stream.group == group]
        shares = np.bincount(rows[:, 0], minlength=3) / len(rows)
        assert np.abs(shares - world.first[0, group]).max() < 0.02
        after = rows[rows[:, 0] == 1][:, 1]
        assert np.abs(np.bincount(after, minlength=3) / len(after) - world.next[0, group, 1]).max() < 0.03
    assert (stream.group == stream.topic[:, None]).all()


def test_more_knowledge_never_costs_and_the_mixture_is_no_better_than_none():
    world = World(purity=0.9, stay=0.8, sources=3, batch=4, prefix=2, scored=8)
    mean = {name: value.mean() for name, value in available(world, 20, 8).items()}
    assert mean["past"] < mean["batch"] < mean["prefix"] < mean["none"]
    stream = world.sample(40, np.random.default_rng(1))
    frozen = -np.log(world.mixture[stream.tokens[:, :, 1:-1], stream.tokens[:, :, 2:]]).mean()
    assert frozen >= world.losses(stream)["none"].mean() - 0.01


def test_at_chance_purity_a_batch_says_nothing_beyond_the_row():
    world = World(groups=4, purity=0.25, stay=0.9, prefix=2, scored=4)
    losses = world.losses(world.sample(10, np.random.default_rng(2)))
    for name in ("batch", "past"):
        np.testing.assert_allclose(losses[name], losses["prefix"], atol=1e-9)
    alike = replace(world, groups=1)
    losses = alike.losses(alike.sample(10, np.random.default_rng(2)))
    for name in KNOWLEDGE[1:]:
        np.testing.assert_allclose(losses[name], losses["none"], atol=1e-9)


def test_what_has_passed_is_worth_more_the_more_has_passed():
    world = World(sources=16, purity=1.0, batch=2, prefix=2, scored=8)
    losses = available(world, 30, 20)
    gain = losses["batch"] - losses["past"]
    assert abs(gain[0]) < 1e-9 < gain[-10:].mean() - gain[1]
    assert isinstance(world.sample(1, np.random.default_rng(0)), Stream)
