"""No speed-up moves a recorded loss: the whole line on the fast path and on the readable one, records compared."""

import numpy as np
import pytest

from chameleon_lite import engine, states
from chameleon_study.run import run_experiment

REGIMES = ["R0", "R1", "R2", "R4", "R6"]
RELATED = ["R12", *(f"R{n}" for n in range(21, 28)), "R24-constant"]  # of cited systems
EXACT, SIXTEEN, BETWEEN = 1e-5, 2e-3, 5e-4  # nats a token: float32, 16 bits, differences between regimes


def one_document_at_a_time(lengths, budget):
    """The feature pass without any batching, so without any padding."""
    return (np.array([i]) for i in range(len(lengths)))


@pytest.fixture
def losses(small, tmp_path, monkeypatch):
    """losses(name, **train): regime to (validation, test) loss of a run of the grid."""

    def run(name, **train):
        monkeypatch.setenv("CHAMELEON_LITE_HOME", str(tmp_path / name))
        base = {"epochs": 2, "rows_per_step": 16, "feature_dtype": "float32", "matmul_dtype": "float32"}
        rates = {r: 1e-3 for r in [*REGIMES, *RELATED] if r != "R0"}
        settings = small([*REGIMES, *RELATED], learning_rates=rates, train=base | train)
        records = run_experiment(settings, runs=tmp_path / f"runs-{name}")
        return {r.regime: [r.metrics["validation_nll"], r.metrics["test_nll"]] for r in records}

    return run


@pytest.fixture(scope="module")
def kept():
    """The plain losses, made by the first test that reads them."""
    return {}


@pytest.fixture
def plain(losses, monkeypatch, kept):
    """The grid on the plain engine, documents one by one."""
    if not kept:
        with monkeypatch.context() as patch, engine.use("plain"):
            patch.setattr(states, "by_length", one_document_at_a_time)
            kept.update(losses("plain"))
    return kept


def test_the_fast_path_in_float32_records_the_plain_paths_losses(losses, plain):
    with engine.use(
        "auto"
    ):  # of so few documents both cluster plainly: another start would give other batches
        fast = losses("fast")
    assert set(fast) == set(plain) == {*REGIMES, *RELATED}
    for regime, expected in plain.items():
        assert fast[regime] == pytest.approx(expected, abs=EXACT)


def test_sixteen_bits_stay_within_their_gate_and_move_all_regimes_alike(losses, plain):
    with engine.use("auto"):
        sixteen = losses("sixteen", feature_dtype="bfloat16", matmul_dtype="bfloat16")
    gaps = {regime: [a - b for a, b in zip(sixteen[regime], plain[regime])] for regime in plain}
    for regime, gap in gaps.items():
        assert max(map(abs, gap)) <= SIXTEEN, regime
    for regime in REGIMES:  # the others go down too unlike amounts in these few steps
        gap = gaps[regime]
        assert max(abs(a - b) for a, b in zip(gap, gaps["R0"])) <= BETWEEN, regime
