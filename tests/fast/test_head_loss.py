"""The chunked head loss is cross-entropy: the same numbers as the plain form for every shape, and exact gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from chameleon_lite import engine, loss
from chameleon_lite.backbones import formats
from chameleon_lite.fast.head_loss import head_losses, token_losses
from chameleon_lite.heads import Condition, HeadUpdate, HyperHead, LoraHead
from chameleon_lite.loss import HeadWeight
from chameleon_lite.text import IGNORED

F64 = torch.float64


def plain_losses(*args, **options):
    """The losses of the plain engine."""
    with engine.use("plain"):
        return loss.head_losses(*args, **options)


def make_update(g, rank, width, vocab, bias, generator, dtype=F64) -> HeadUpdate:
    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=F64).to(dtype).requires_grad_()

    factors = (draw(g, rank, width), draw(g, vocab, rank)) if rank else (None, None)
    return HeadUpdate(*factors, draw(g, vocab) if bias else None)


def leaves(h, updates):
    tensors = [h] + [x for u in updates if u is not None for x in (u.down, u.up, u.bias)]
    return [x for x in tensors if x is not None and x.requires_grad]


heads = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 4), st.booleans(), st.booleans()), min_size=1, max_size=3
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 13),
    width=st.integers(1, 5),
    vocab=st.integers(1, 70),
    chunk=st.integers(1, 14),
    spec=heads,
    base_bias=st.booleans(),
    ignored=st.floats(0, 1),
    scale=st.sampled_from([1.0, 0.5]),
    seed=st.integers(0, 999),
)
def test_equals_the_plain_form_for_every_shape(
    rows, width, vocab, chunk, spec, base_bias, ignored, scale, seed
):
    gen = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocab, width, generator=gen, dtype=F64)
    weight = HeadWeight(
        weight, torch.randn(vocab, generator=gen, dtype=F64) if base_bias else None, dtype=F64
    )
    h = torch.randn(rows, width, generator=gen, dtype=F64, requires_grad=True)
    target = torch.randint(vocab, (rows,), generator=gen)
    target[torch.rand(rows, generator=gen) < ignored] = IGNORED
    updates, groups = [], []
    for rank, g, bias, indexed in spec:  # rank 0 without bias is the frozen head
        update = make_update(g if indexed else 1, rank, width, vocab, bias, gen) if rank or bias else None
        updates.append(update)
        groups.append(torch.randint(g, (rows,), generator=gen) if indexed and update is not None else None)
    mix = torch.randn(len(spec), generator=gen, dtype=F64)
    inputs = leaves(h, updates)
    plain = plain_losses(h, target, weight, updates, groups=groups, scale=scale)
    fast = head_losses(h, target, weight, updates, groups=groups, scale=scale, chunk=chunk)
    torch.testing.assert_close(fast, plain)
    for ours, theirs in zip(
        torch.autograd.grad(fast @ mix, inputs), torch.autograd.grad(plain @ mix, inputs)
    ):
        torch.testing.assert_close(ours, theirs)
    rowwise = token_losses(h, target, weight, updates, groups=groups, scale=scale, chunk=chunk)
    torch.testing.assert_close(rowwise.sum(1), plain)
    assert torch.all(rowwise[:, target == IGNORED] == 0)


def test_gradcheck():
    gen = torch.Generator().manual_seed(0)
    matrix, bias = torch.randn(7, 3, generator=gen, dtype=F64), torch.randn(7, generator=gen, dtype=F64)
    weight = HeadWeight(matrix, bias, dtype=F64)
    h = torch.randn(5, 3, generator=gen, dtype=F64, requires_grad=True)
    target, group = torch.tensor([0, IGNORED, 6, 2, 0]), torch.tensor([1, 0, 1, 2, 2])
    one, many = make_update(1, 2, 3, 7, True, gen), make_update(3, 2, 3, 7, True, gen)

    def losses(h, *flat):
        updates = [HeadUpdate(*flat[:3]), None, HeadUpdate(*flat[3:])]
        return head_losses(h, target, weight, updates, groups=[None, None, group], chunk=2, scale=0.7)

    flat = [x for u in (one, many) for x in (u.down, u.up, u.bias)]
    assert torch.autograd.gradcheck(losses, (h, *flat))


def test_is_torch_cross_entropy_of_the_frozen_head():
    gen = torch.Generator().manual_seed(0)
    weight, h = torch.randn(50, 8, generator=gen), torch.randn(9, 8, generator=gen)
    target = torch.randint(50, (9,), generator=gen)
    expected = F.cross_entropy(h @ weight.T, target, reduction="none")
    fp32 = HeadWeight(weight, dtype=torch.float32)
    frozen = HeadUpdate(torch.empty(1, 0, 8), torch.empty(1, 50, 0))
    torch.testing.assert_close(token_losses(h, target, fp32, [None, frozen], chunk=4), expected.expand(2, 9))
    torch.testing.assert_close(head_losses(h, target, fp32, [None]), expected.sum()[None])


def test_token_id_zero_counts_and_ignored_rows_do_not():
    gen = torch.Generator().manual_seed(0)
    weight = HeadWeight(torch.randn(5, 4, generator=gen), dtype=torch.float32)
    h = torch.randn(3, 4, generator=gen)
    both = head_losses(h, torch.tensor([0, 3, IGNORED]), weight, [None])
    assert both > head_losses(h, torch.tensor([IGNORED, 3, IGNORED]), weight, [None]) > 0


def test_padding_rows_change_neither_loss_nor_gradient():
    gen = torch.Generator().manual_seed(0)
    weight = HeadWeight(torch.randn(40, 6, generator=gen), dtype=torch.float32)
    h, target = torch.randn(5, 6, generator=gen), torch.randint(40, (5,), generator=gen)
    padded = torch.cat([h, 1e4 * torch.randn(4, 6, generator=gen)])
    marked = torch.cat([target, torch.full((4,), IGNORED)])
    head = LoraHead(6, 40, rank=2, released_init=True)
    results = []
    for rows, labels in ((h, target), (padded, marked)):
        head.zero_grad()
        loss = head_losses(rows, labels, weight, [head.factors()], chunk=5)
        loss.backward()
        results.append((loss.detach(), head.down.grad.clone(), head.up.grad.clone()))
    for without, with_padding in zip(*results):
        torch.testing.assert_close(with_padding, without, rtol=1e-6, atol=1e-6)


def test_heads_are_exactly_the_frozen_one_at_the_start_and_learn():
    torch.manual_seed(0)
    weight, h, target = HeadWeight(torch.randn(50, 16)), torch.randn(9, 16), torch.randint(50, (9,))
    lora, hyper = LoraHead(16, 50), HyperHead(16, 50).eval()
    updates = [None, lora.factors(), hyper.factors(Condition(torch.randn(1, 16)))]
    losses = head_losses(h, target, weight, updates)
    assert torch.equal(losses, losses[:1].expand(3))
    losses.sum().backward()
    assert lora.up.grad.abs().sum() > 0 and hyper.last.bias.grad.abs().sum() > 0


def test_a_16_bit_product_stays_within_the_gates():
    gen = torch.Generator().manual_seed(0)
    vocab, width = 1_000, 64
    # A common row in W, as trained models have: without taking it off, 16-bit logits would lose these digits.
    matrix = 0.3 * torch.randn(vocab, width, generator=gen) + 3 * torch.randn(width, generator=gen)
    h, target = torch.randn(300, width, generator=gen), torch.randint(vocab, (300,), generator=gen)
    update = make_update(1, 4, width, vocab, False, gen, torch.float32)
    update.down.data *= 0.1
    reference = HeadWeight(matrix, dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        exact = plain_losses(h, target, reference, [None, update])
        rounded = head_losses(h, target, HeadWeight(matrix, dtype=dtype), [None, update])
        assert ((rounded - exact).abs() / 300 < 4e-3).all()
        pairs = zip(*(torch.autograd.grad(x.sum(), [update.down, update.up]) for x in (rounded, exact)))
        assert all((a - b).norm() <= 2e-2 * b.norm() for a, b in pairs)


def test_no_rows_at_all_lose_nothing():
    weight, none = HeadWeight(torch.randn(5, 4), dtype=torch.float32), torch.empty(0, dtype=torch.int64)
    assert torch.equal(head_losses(torch.randn(0, 4), none, weight, [None]), torch.zeros(1))


def test_shapes_that_do_not_fit_are_refused():
    weight, h, target = HeadWeight(torch.randn(5, 4)), torch.randn(3, 4), torch.zeros(3, dtype=torch.int64)
    two = HeadUpdate(torch.randn(2, 1, 4), torch.randn(2, 5, 1))
    for wrong in (
        dict(updates=[two]),
        dict(updates=[None], groups=[]),
        dict(updates=[two], groups=[target[:2]]),
        dict(updates=[None], kernel="cuda"),
    ):
        with pytest.raises(ValueError):
            head_losses(h, target, weight, **wrong)
    with pytest.raises(ValueError):
        head_losses(h[:, :3], target, weight, [None])


def test_weight_is_padded_to_aligned_rows():
    weight = HeadWeight(torch.ones(65, 4), dtype=torch.float32)
    assert weight.weight.shape == (128, 4) and (weight.vocab, weight.padded) == (65, 128)
    assert weight.weight[65:].abs().sum() == 0


def test_the_machine_is_judged_by_its_flags_not_by_the_libraries_word(tmp_path, monkeypatch):
    for flags, expected in (
        ("fpu avx512f avx512_bf16", torch.bfloat16),
        ("fpu amx_bf16", torch.bfloat16),
        ("fpu avx2", torch.float32),
    ):
        listing = tmp_path / flags.split()[-1]
        listing.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
        found = formats.cpu_flags(str(listing))
        monkeypatch.setattr(formats, "cpu_flags", lambda found=found: found)
        assert formats.matmul_dtype("cpu") == expected
        monkeypatch.undo()
    assert formats.cpu_flags(str(tmp_path / "none")) == frozenset()
    for level, expected in (((6, 1), torch.float32), ((7, 5), torch.float16), ((9, 0), torch.float16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, level=level: level)
        assert formats.matmul_dtype("cuda") == expected
        assert formats.backbone_dtype("cuda") == (torch.bfloat16 if level >= (8, 0) else expected)


class Products(TorchDispatchMode):
    """Inside, the shapes of all matrix products of 16-bit numbers are noted."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "mm" in func.__name__ and args[0].dtype == torch.bfloat16:
            self.shapes.add((func.__name__, *(tuple(x.shape) for x in args if isinstance(x, torch.Tensor))))
        return func(*args, **kwargs or {})


def test_products_on_a_cpu_come_in_few_shapes_and_rows_that_fill_up_change_nothing():
    gen = torch.Generator().manual_seed(0)
    weight = HeadWeight(torch.randn(70, 16, generator=gen), dtype=torch.bfloat16)
    updates = [make_update(3, 2, 16, 70, False, gen, torch.float32), None]
    with Products() as seen:
        for rows in range(1, 257, 9):
            h, target = torch.randn(rows, 16, generator=gen), torch.randint(70, (rows,), generator=gen)
            groups = [torch.randint(3, (rows,), generator=gen), None]
            loss = head_losses(h, target, weight, updates, groups=groups)
            each = token_losses(h, target, weight, updates, groups=groups)
            assert each.shape == (2, rows)
            torch.testing.assert_close(each.sum(1), loss, rtol=1e-4, atol=1e-3)
            down, up = torch.autograd.grad(loss[0], updates[0][:2])
            plain = torch.autograd.grad(
                plain_losses(h, target, weight, updates, groups=groups)[0], updates[0][:2]
            )
            for ours, theirs in zip((down, up), plain):
                torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05 * float(theirs.abs().max()))
    assert 0 < len(seen.shapes) < 60
