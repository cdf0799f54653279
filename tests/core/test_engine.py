"""The door to speed: what it chooses, and every function behind it on both engines with the same inputs."""

import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon_lite import engine, loss
from chameleon_lite.cluster import MANY_PRODUCTS, fit_clusters, kmeans
from chameleon_lite.errors import UserError
from chameleon_lite.heads import HeadUpdate, update_logits
from chameleon_lite.loss import HeadWeight, head_losses, token_losses
from chameleon_lite.text import IGNORED

F64 = torch.float64
EXACT, SIXTEEN = 1e-5, 2e-3  # nats per token: float32, 16-bit products
OURS = ("head_losses", "token_losses", "kmeans", "update_logits")
# A head: (groups, or 0 for one update of all rows; rank; bias, or "mix"); rank 0 without bias is the frozen head.
HEADS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 4), st.integers(0, 3), st.booleans()),
        st.tuples(st.integers(0, 4), st.integers(1, 3), st.just("mix")),
    ),
    min_size=1,
    max_size=3,
)


@pytest.fixture(autouse=True)
def no_choice_is_left_behind(monkeypatch):
    monkeypatch.delenv(engine.VARIABLE, raising=False)
    with engine.use("auto"):
        yield


@pytest.mark.parametrize("door", OURS)
def test_a_door_leads_to_the_function_of_its_name_or_to_none(door):
    for name, worth, opens in (("plain", True, 0), ("fast", False, 1), ("auto", True, 1), ("auto", False, 0)):
        with engine.use(name):
            assert (engine.fast(door, worth) is not None) == bool(opens)
    assert engine.fast(door).__name__ == door and engine.fast(door).__module__.startswith(
        "chameleon_lite.fast."
    )


def test_a_choice_ends_with_its_block_also_when_the_block_fails():
    with pytest.raises(RuntimeError), engine.use("plain"):
        with engine.use("fast"):
            assert engine.fast("kmeans", worth=False)
        assert engine.fast("kmeans") is None
        raise RuntimeError
    assert engine.fast("kmeans") is not None


def test_the_environment_chooses_where_nothing_else_does_and_a_wrong_name_is_the_users(monkeypatch):
    monkeypatch.setattr(engine, "_chosen", [])
    monkeypatch.setenv(engine.VARIABLE, "plain")
    assert engine.fast("kmeans") is None
    with engine.use("fast"):
        assert engine.fast("kmeans")
    monkeypatch.setenv(engine.VARIABLE, "")
    assert engine.fast("kmeans")
    monkeypatch.setenv(engine.VARIABLE, "quick")
    for wrong in (lambda: engine.fast("kmeans"), lambda: engine.use("quick")):
        with pytest.raises(UserError, match="'quick'.*plain, fast, auto"):
            wrong()


def test_a_door_without_a_file_is_plain_and_a_broken_file_is_an_error(monkeypatch, tmp_path):
    for name, module in (("absent", "no_such_file"), ("broken", "json")):
        monkeypatch.setitem(engine.DOORS, name, module)
    assert engine.fast("absent") is None
    import chameleon_lite.fast

    (tmp_path / "json.py").write_text("import no_such_library\n")
    monkeypatch.setattr(chameleon_lite.fast, "__path__", [str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        engine.fast("broken")
    sys.modules.pop("chameleon_lite.fast.json", None)


def case(rows, width, vocab, heads, seed, *, base_bias=False, ignored=0.2, dtype=F64):
    """(h, target, (weight, bias), updates, groups, leaves)."""
    gen = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=gen, dtype=F64).to(dtype).requires_grad_()

    h, target = draw(rows, width), torch.randint(vocab, (rows,), generator=gen)
    target[torch.rand(rows, generator=gen) < ignored] = IGNORED
    updates, groups = [], []
    for g, rank, extra in heads:
        n = max(g, 1)
        pairs = 1 if extra == "mix" else n
        factors = (draw(pairs, rank, width), draw(pairs, vocab, rank)) if rank else (None, None)
        update = HeadUpdate(
            *factors, draw(n, vocab) if extra is True else None, draw(n, rank) if extra == "mix" else None
        )
        updates.append(update if rank or extra else None)
        groups.append(torch.randint(g, (rows,), generator=gen) if g and updates[-1] is not None else None)
    leaves = [h] + [x for u in updates if u is not None for x in u if x is not None]
    weight = draw(vocab, width).detach(), draw(vocab).detach() if base_bias else None
    return h, target, weight, updates, groups, leaves


def on_both(work):
    """work() on the plain and on the fast engine."""
    results = []
    for name in ("plain", "fast"):
        with engine.use(name):
            results.append(work())
    return results


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 13),
    width=st.integers(1, 5),
    vocab=st.integers(1, 70),
    heads=HEADS,
    base_bias=st.booleans(),
    ignored=st.floats(0, 1),
    scale=st.sampled_from([1.0, 0.5]),
    seed=st.integers(0, 999),
)
def test_losses_and_gradients_agree_for_every_shape(
    rows, width, vocab, heads, base_bias, ignored, scale, seed
):
    h, target, weight, updates, groups, leaves = case(
        rows, width, vocab, heads, seed, base_bias=base_bias, ignored=ignored
    )
    weight = HeadWeight(*weight, dtype=F64)
    mix = torch.linspace(0.5, 1.5, len(updates), dtype=F64)

    def work():
        nats = head_losses(h, target, weight, updates, groups, scale)
        gradients = torch.autograd.grad(nats @ mix, leaves, allow_unused=True, materialize_grads=True)
        return nats, token_losses(h, target, weight, updates, groups, scale), gradients

    (plain, plain_rows, plain_grads), (fast, fast_rows, fast_grads) = on_both(work)
    torch.testing.assert_close(fast, plain)
    torch.testing.assert_close(fast_rows, plain_rows)
    torch.testing.assert_close(fast_grads, plain_grads)
    for by_row in (plain_rows, fast_rows):
        assert torch.all(by_row[:, target == IGNORED] == 0)
        torch.testing.assert_close(by_row.sum(1), plain)


@pytest.mark.parametrize(
    "dtype, gate", [(torch.float32, EXACT), (torch.bfloat16, SIXTEEN), (torch.float16, SIXTEEN)]
)
def test_losses_stay_within_the_gates_in_every_format(dtype, gate):
    heads = [(0, 4, False), (0, 0, False), (5, 4, False), (6, 4, "mix")]
    h, target, weight, updates, groups, leaves = case(700, 32, 300, heads, 0, dtype=torch.float32)
    with torch.no_grad():  # logits of about the size of real ones
        h *= 0.3
        for update in filter(None, updates):
            update.down.mul_(0.1)
    weight = HeadWeight(weight[0] * 32**-0.5, dtype=dtype)

    def work():
        nats = head_losses(h, target, weight, updates, groups)
        return nats.detach() / len(h), torch.autograd.grad(nats.sum(), leaves)

    (plain, plain_grads), (fast, fast_grads) = on_both(work)
    assert (fast - plain).abs().max() <= gate
    for a, b in zip(fast_grads, plain_grads):
        assert (a - b).norm() <= (1e-4 if gate == EXACT else 2e-2) * b.norm()


def test_the_plain_losses_are_the_frozen_heads_cross_entropy_and_their_gradients_right():
    spec = [(0, 2, True), (0, 0, False), (3, 2, True), (3, 2, "mix")]
    h, target, (matrix, bias), updates, groups, leaves = case(5, 3, 7, spec, 0, base_bias=True)
    weight = HeadWeight(matrix, bias, dtype=F64)
    places = [[name for name, x in u._asdict().items() if x is not None] if u else [] for u in updates]

    def losses(h, *flat):
        flat = iter(flat)
        own = [
            u and HeadUpdate(**{"down": None, "up": None, **{n: next(flat) for n in names}})
            for u, names in zip(updates, places)
        ]
        return head_losses(h, target, weight, own, groups, 0.7)

    with engine.use("plain"):
        expected = F.cross_entropy(F.linear(h, matrix, bias), target, reduction="sum", ignore_index=IGNORED)
        torch.testing.assert_close(head_losses(h, target, weight, [None])[0], expected)
        assert torch.autograd.gradcheck(losses, tuple(leaves))


def test_plain_memory_holds_a_chunk_of_logits_and_not_all(monkeypatch):
    """Tensors that autograd saves: with M × V numbers there would be one of that size for each head."""
    h, target, weight, updates, groups, _ = case(64, 4, 50, [(0, 2, False), (3, 2, False)], 0)
    monkeypatch.setattr(loss, "CHUNK", 8)
    saved = []
    with (
        engine.use("plain"),
        torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x),
    ):
        nats = head_losses(h, target, HeadWeight(*weight, dtype=F64), updates, groups)
        before = len(saved)
        torch.autograd.grad(nats.sum(), h)
    assert before and max(saved) <= 8 * 50


def test_groups_on_the_host_or_the_device_are_the_same_and_shapes_that_do_not_fit_are_refused():
    weight, h, target = HeadWeight(torch.randn(5, 4)), torch.randn(3, 4), torch.zeros(3, dtype=torch.int64)
    two = HeadUpdate(torch.randn(2, 1, 4), torch.randn(2, 5, 1))
    for name in ("plain", "fast"):
        with engine.use(name):
            for wrong in (
                dict(updates=[two]),
                dict(updates=[None], groups=[]),
                dict(updates=[two], groups=[target[:2]]),
            ):
                for losses in (head_losses, token_losses):
                    with pytest.raises(ValueError):
                        losses(h, target, weight, **wrong)
            with pytest.raises(ValueError):
                head_losses(h[:, :3], target, weight, [None])


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("spec", [(0, 3, False), (4, 3, False), (4, 3, True), (4, 0, True), (4, 3, "mix")])
def test_logits_of_several_updates_agree(spec, tokens):
    _, _, (matrix, _), [update], _, leaves = case(1, 6, 23, [spec], 0)
    gen = torch.Generator().manual_seed(1)
    head = torch.nn.Linear(6, 23, bias=False, dtype=F64).requires_grad_(False)
    head.weight.copy_(matrix)
    group = torch.randint(max(spec[0], 1), (7,), generator=gen)
    for copies in (1, 2):
        h = torch.randn(7 * copies, tokens, 6, generator=gen, dtype=F64)
        plain, fast = on_both(lambda h=h: update_logits(update, group)(head, h, 0.7))
        torch.testing.assert_close(fast, plain)
        grads = [torch.autograd.grad(x.square().sum(), leaves[1:]) for x in (plain, fast)]
        torch.testing.assert_close(*grads)
        with torch.no_grad():
            torch.testing.assert_close(*on_both(lambda h=h: update_logits(update, group)(head, h, 0.7)))


def points(n=600, k=12, width=8):
    g = torch.Generator().manual_seed(0)
    centres = 6 * torch.randn(k, width, generator=g)
    return centres[torch.randint(k, (n,), generator=g)] + torch.randn(n, width, generator=g)


def test_clusters_agree():
    x = points()
    plain, fast = on_both(lambda: fit_clusters(x, 12, seed=0))
    assert fast.inertia == pytest.approx(plain.inertia, rel=0.3)
    repeats = on_both(lambda: fit_clusters(x, 12, seed=0))
    assert torch.equal(repeats[0].labels, plain.labels) and torch.equal(repeats[1].labels, fast.labels)


def test_auto_clusters_few_rows_plainly_and_many_fast():
    small, large = points(200), points(MANY_PRODUCTS // 100 + 1, 100)
    for x, k, same in ((small, 12, 0), (large, 100, 1)):
        auto = kmeans(x, k, seed=0)
        both = on_both(lambda x=x, k=k: kmeans(x, k, seed=0))
        assert torch.equal(auto, both[same]) and not torch.equal(auto, both[1 - same])
