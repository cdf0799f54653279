"""The GPU paths of the head loss against the plain form in float64, and their memory.

Without a GPU the small cases also run on Triton's interpreter: TRITON_INTERPRET=1, with Triton installed.
"""

import gc
import os
import weakref

import pytest
import torch

from chameleon_lite import engine, loss
from chameleon_lite.fast.head_loss import head_losses, token_losses
from chameleon_lite.fast.recorded_groups import RecordedGroups, runs_of
from chameleon_lite.fast.recorder import Recorder
from chameleon_lite.heads import HeadUpdate
from chameleon_lite.loss import HeadWeight
from chameleon_lite.text import IGNORED

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(
    not (CUDA or INTERPRETED), reason="needs a CUDA device, or TRITON_INTERPRET=1"
)
on_gpu = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")

# A head is (groups or 0 for one update of all rows, rank, bias or "mix"); rank 0 without bias is the frozen head.
SMALL = {
    "one": [(0, 4, False)],
    "shared base": [(0, 4, False), (0, 0, False), (0, 1, True), (0, 0, True)],
    "large rank": [(0, 40, False), (0, 20, True)],
    "mixtures": [(5, 4, "mix"), (7, 40, "mix"), (0, 4, "mix")],
    "one in groups": [(3, 4, False)],
    "groups": [(3, 4, False), (12, 4, False), (2, 2, True), (0, 4, False)],
}


def plain_losses(*args, **options):
    """The losses of the plain engine."""
    with engine.use("plain"):
        return loss.head_losses(*args, **options)


def setting(rows, width, vocab, spec, *, base_bias=False, want_h=False, seed=0):
    """(h, target, weight, bias, updates, groups) of a size with which 16-bit logits are about as large as real ones."""
    gen = torch.Generator().manual_seed(seed)

    def draw(*shape, size=1.0):
        return (size * torch.randn(*shape, generator=gen)).to(DEVICE)

    weight, bias = draw(vocab, width, size=2 * width**-0.5), draw(vocab) if base_bias else None
    h, target = draw(rows, width).half().float(), torch.randint(vocab, (rows,), generator=gen).to(DEVICE)
    target[rows // 2] = IGNORED
    updates, groups = [], []
    for g, rank, with_bias in spec:
        n = 1 if with_bias == "mix" else max(g, 1)
        down, up = (
            (draw(n, rank, width, size=width**-0.5), draw(n, vocab, rank, size=0.3)) if rank else (None, None)
        )
        update = HeadUpdate(
            down,
            up,
            draw(n, vocab, size=0.3) if with_bias is True else None,
            draw(max(g, 1), rank) if with_bias == "mix" else None,
        )
        updates.append(update if rank or with_bias else None)
        groups.append(torch.randint(g, (rows,), generator=gen).to(DEVICE) if g else None)
    leaves = [x for u in updates if u is not None for x in (u.down, u.up, u.bias, u.mix) if x is not None]
    for leaf in leaves + ([h] if want_h else []):
        leaf.requires_grad_()
    return h, target, weight, bias, updates, groups, leaves + ([h] if want_h else [])


def check(case, *, kernel, dtype, chunk=None, scale=1.0):
    """Loss within 2e-3 a token and gradients within 2e-2 of the float64 form; the same bits twice."""
    h, target, weight, bias, updates, groups, leaves = case
    mix = torch.linspace(0.5, 1.5, len(updates), device=DEVICE)
    exact = plain_losses(
        h, target, HeadWeight(weight, bias, torch.float64), updates, groups=groups, scale=scale
    )
    prepared = HeadWeight(weight, bias, dtype)

    def ours():
        losses = head_losses(
            h, target, prepared, updates, groups=groups, scale=scale, chunk=chunk, kernel=kernel
        )
        return losses, torch.autograd.grad(losses @ mix, leaves)

    losses, gradients = ours()
    assert ((losses - exact).abs() / len(h)).max() <= 2e-3
    for mine, reference in zip(gradients, torch.autograd.grad(exact @ mix.double(), leaves)):
        assert (mine.double() - reference.double()).norm() <= 2e-2 * reference.double().norm()
    again, gradients_again = ours()
    assert torch.equal(losses, again) and all(torch.equal(a, b) for a, b in zip(gradients, gradients_again))
    rowwise = token_losses(
        h, target, prepared, updates, groups=groups, scale=scale, chunk=chunk, kernel=kernel
    )
    torch.testing.assert_close(rowwise.sum(1), losses.detach(), rtol=1e-4, atol=1e-3)
    assert torch.all(rowwise[:, target == IGNORED] == 0)


@pytest.mark.parametrize("kernel", ["torch", "triton"])
@pytest.mark.parametrize("want_h", [False, True])
@pytest.mark.parametrize("heads", SMALL)
def test_small_shapes_uneven_chunks(heads, want_h, kernel):
    if kernel == "triton":
        pytest.importorskip("triton")
    case = setting(41, 16, 200, SMALL[heads], base_bias=want_h, want_h=want_h)
    check(case, kernel=kernel, dtype=torch.float16, chunk=20, scale=0.5)


def test_where_rows_lie_is_told_once_for_chunks_of_one_size(monkeypatch):
    """Also when the first pass was made in inference mode, whose tensors can't be trained on."""
    pytest.importorskip("triton")
    from chameleon_lite.fast import head_loss_triton

    # 150 entries are padded to 192: tiles of 64 columns, where those of 128 would not fit.
    case = setting(41, 16, 150, [(0, 4, False), (0, 2, True), (0, 40, False)])
    h, target, weight, bias, updates, *_ = case
    with torch.inference_mode():
        token_losses(h, target, HeadWeight(weight, bias, torch.float16), updates, chunk=20, kernel="triton")

    def never(*_):
        raise AssertionError("worked out again")

    monkeypatch.setattr(head_loss_triton, "_lay_out", never)
    check(case, kernel="triton", dtype=torch.float16, chunk=20)


RUNS = {  # each document's group, for heads of 3 updates, and of 4 of which one has no document
    "each group its own run": [0, 0, 1, 1, 2, 2],
    "groups in turn": [2, 0, 0, 1, 0, 2],
    "a group without rows": [0, 0, 1, 2, 2, 2],
}


SHARED, OTHERS = [(3, 4, False), (4, 4, False), (0, 4, False)], [(3, 40, False), (3, 2, True)]


@pytest.mark.parametrize("kernel", ["torch", "triton"])
@pytest.mark.parametrize(
    ("heads", "order"), [*((SHARED, order) for order in RUNS), (SHARED[:1], [*RUNS][0]), (OTHERS, [*RUNS][1])]
)
def test_runs_that_are_an_input_give_the_bits_of_an_index(heads, order, kernel):
    if kernel == "triton":
        pytest.importorskip("triton")
    counts, group = torch.tensor([2, 4, 0, 11, 12, 3]), torch.tensor(RUNS[order])
    h, target, weight, _, updates, _, leaves = setting(32, 16, 200, heads)
    target[-3:] = IGNORED  # rows that fill up
    weight = HeadWeight(weight, dtype=torch.float16 if CUDA or kernel == "triton" else torch.float32)
    index, recorded = group.repeat_interleave(counts), []
    for g, *_ in heads:
        runs, each = runs_of(group, g, counts, 32)
        assert each == (g == 3 and order != "groups in turn") and runs.shape[1] == (3 if each else 6)
        recorded.append(RecordedGroups.of(runs.to(DEVICE), 32, each) if g else None)
        assert not g or torch.equal(recorded[-1].index.cpu(), index)

    def ours(groups):
        losses = head_losses(h, target, weight, updates, groups=groups, chunk=20, kernel=kernel)
        return losses, *torch.autograd.grad(losses.sum(), leaves)

    exact = kernel == "triton" and heads[0][1] < 40
    for mine, plain in zip(ours(recorded), ours([index if g else None for g, *_ in heads])):
        torch.testing.assert_close(mine, plain, **({"rtol": 0, "atol": 0} if exact else {}))


@on_gpu
@pytest.mark.parametrize("kernel", ["torch", "triton"])
def test_a_recording_reads_where_the_rows_of_each_group_lie(kernel):
    if kernel == "triton":
        pytest.importorskip("triton")
    heads = [
        (3, 4, False),
        (3, 4, False),
        (0, 4, False),
        (3, 2, True),
        (3, 40, False),
        (3, 40, True),
        (3, 4, "mix"),
    ]
    h, target, weight, _, updates, _, leaves = setting(600, 64, 1_000, heads)
    weight, recorder = HeadWeight(weight, dtype=torch.float16), Recorder(h.device)
    leaves = [x for x in leaves if x is not h]

    def losses(groups):
        found = head_losses(h, target, weight, updates, groups=groups, chunk=256, kernel=kernel)
        return torch.cat([found, *(g.flatten() for g in torch.autograd.grad(found.sum(), leaves))]).detach()

    def work(runs):
        group = RecordedGroups.of(runs, 600, each=False)
        return losses([group if g else None for g, *_ in heads])

    for order in ([0, 1, 2, 1], [2, 2, 0, 1], [1, 0, 2, 0], [0, 0, 2, 2]):
        group, counts = torch.tensor(order), torch.tensor([40, 300, 3, 257])
        runs, _ = runs_of(group, 4, counts, 600)  # of 4: none of these is each group its own run
        index = group.repeat_interleave(counts)
        found = recorder("it", [runs.to(DEVICE)], work)
        expected = losses([index if g else None for g, *_ in heads])
        sizes = [len(heads), *(x.numel() for x in leaves)]
        for one, other in zip(found.split(sizes), expected.split(sizes)):  # rounded to 16 bits: as in `check`
            assert (one - other).norm() <= 2e-2 * other.norm()
        assert ((found - expected)[: len(heads)].abs() / 600).max() <= 2e-3
    assert recorder.limit and len(recorder.kept) == 1 and not recorder.plain


@on_gpu
@pytest.mark.parametrize("kernel", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "heads", [[(0, 4, False)], [(0, 133, False), (0, 4, True)], [(40, 4, False), (0, 0, False)]]
)
def test_gpt2s_shape(heads, dtype, kernel):
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no bfloat16 units")
    check(setting(1_100, 768, 50_257, heads, want_h=True), kernel=kernel, dtype=dtype)


@on_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_groups_that_lie_on_the_host_make_no_step_wait_for_the_gpu():
    h, target, weight, _, updates, groups, leaves = setting(600, 64, 1_000, SMALL["groups"])
    weight, on_host = HeadWeight(weight, dtype=torch.float16), [g if g is None else g.cpu() for g in groups]

    def step(groups):
        return torch.autograd.grad(head_losses(h, target, weight, updates, groups).sum(), leaves)

    expected = step(groups)
    step(on_host)
    try:
        torch.cuda.set_sync_debug_mode("error")
        gradients = step(on_host)
        with pytest.raises(RuntimeError, match="synchronizing"):
            step(groups)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected))


@on_gpu
def test_tables_of_a_recorded_pass_live_as_long_as_its_recording():
    pytest.importorskip("triton")
    from chameleon_lite.fast import head_loss_triton

    h, target, weight, _, updates, *_ = setting(600, 64, 1_000, SMALL["one"])
    weight, recorder = HeadWeight(weight, dtype=torch.float16), Recorder(h.device)

    def work(h, target):
        with torch.no_grad():
            return head_losses(h, target, weight, updates)

    plain = [recorder("it", [h, target], work).clone() for _ in range(3)]
    tables = [weakref.ref(x.tiles) for recording in recorder.kept.values() for x in recording.outlived]
    head_loss_triton._cached_alike.cache_clear()
    gc.collect()
    assert tables and all(table() is not None for table in tables)
    assert all(torch.equal(x, plain[0]) for x in (*plain, recorder("it", [h, target], work)))
    recorder.forget()
    gc.collect()
    assert all(table() is None for table in tables)


@on_gpu
def test_float32_on_the_gpu():
    h, target, weight, _, updates, groups, leaves = setting(300, 64, 1_000, SMALL["groups"], want_h=True)
    args = (h, target, HeadWeight(weight, dtype=torch.float32), updates)
    fast, plain = head_losses(*args, groups=groups, chunk=70), plain_losses(*args, groups=groups)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-3)
    for mine, reference in zip(
        torch.autograd.grad(fast.sum(), leaves), torch.autograd.grad(plain.sum(), leaves)
    ):
        assert (mine - reference).norm() <= 1e-3 * reference.norm()


@on_gpu
@pytest.mark.parametrize("kernel", ["torch", "triton"])
def test_memory_does_not_hold_the_logits(kernel):
    h, target, weight, _, updates, _, leaves = setting(8_160, 768, 50_257, [(0, 4, False)])
    prepared = HeadWeight(weight, dtype=torch.float16)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.autograd.grad(head_losses(h, target, prepared, updates, kernel=kernel).sum(), leaves)
    released_way = 3 * 4 * len(h) * 50_257  # logits, their softmax and their gradient in float32
    assert torch.cuda.max_memory_allocated() - before <= released_way / 8
