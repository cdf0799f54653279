"""The methods in the world: what there is to gain is taken, and where there is nothing, nothing is."""

import numpy as np
import pytest

from chameleon_study.streams.diagram import LEARNING, diagram, point
from chameleon_study.streams.world import KNOWLEDGE, World

MARGIN = 0.01  # nats per token


def means(world, skip=0, **how):
    return {name: float(value[skip:].mean()) for name, value in point(world, **how).items()}


@pytest.mark.slow
def test_methods_take_most_of_what_is_there_and_no_more():
    world = World(vocab=12, concentration=0.5, purity=1.0, batch=8, prefix=4)
    pure = means(world, past=40, streams=2, steps=100)
    gain = pure["bayes none"] - pure["bayes batch"]
    assert gain > 0.2
    for method in ("R4", "R6"):
        assert pure["frozen"] - pure[method] > 0.5 * gain
    assert all(pure[name] > pure["bayes past"] - MARGIN for name in ("R3", "R4", "R6", *LEARNING))
    assert pure["R4"] < pure["R3"] - 0.1 and abs(pure["R3"] - pure["frozen"]) < 0.03
    assert pure["S2-oracle"] < pure["S1"] - 0.05


@pytest.mark.slow
def test_at_chance_purity_what_conditions_on_the_batch_is_its_constant_control():
    world = World(vocab=12, purity=0.25, batch=32, prefix=1, scored=16)
    chance = means(world, past=10, streams=4, steps=60)
    assert abs(chance["R4"] - chance["R3"]) < MARGIN
    assert abs(chance["S2-random"] - chance["S1"]) < MARGIN


@pytest.mark.slow
def test_without_groups_every_conditional_method_is_its_constant_control():
    alike = means(World(vocab=12, groups=1, batch=8, prefix=4), past=20, streams=4, steps=100)
    assert len({round(alike[f"bayes {name}"], 9) for name in KNOWLEDGE}) == 1
    for method, control in [("R4", "R3"), ("R6", "R3"), ("S2", "S1"), ("S2-oracle", "S1")]:
        assert abs(alike[method] - alike[control]) < MARGIN, method


def test_a_diagram_has_a_row_per_combination_and_stretch_of_the_past():
    rows = diagram(World(vocab=6, scored=4), {"prefix": (1, 2), "purity": (0.5,)}, past=6, streams=1, steps=4)
    assert [(r["prefix"], r["purity"], r["from"], r["to"]) for r in rows] == [
        (p, 0.5, *stretch) for p in (1, 2) for stretch in [(0, 4), (4, 16)]
    ]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
