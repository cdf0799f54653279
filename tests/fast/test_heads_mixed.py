import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from chameleon_lite import engine
from chameleon_lite.heads import HeadUpdate, add_update, apply_update, update_logits
from chameleon_lite.loss import HeadWeight, head_losses, token_losses

WIDTH, VOCAB, RANK = 8, 23, 3


@pytest.fixture(params=["plain", "fast"], autouse=True, scope="module")
def engines(request):
    """Every test of this file on both engines."""
    with engine.use(request.param):
        yield


def one_by_one(update, group, head, h, scale=1.0):
    """The logits (B, T, V) with every row by itself."""
    rows = [head(h[b]) + apply_update(h[b], update.of(g), scale) for b, g in enumerate(group.tolist())]
    return torch.stack(rows)


def made(groups, rows, tokens=2, bias=False, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    head = nn.Linear(WIDTH, VOCAB, bias=bias, dtype=dtype)
    update = HeadUpdate(
        torch.randn(groups, RANK, WIDTH, generator=g, dtype=dtype),
        torch.randn(groups, VOCAB, RANK, generator=g, dtype=dtype),
    )
    return head.requires_grad_(False), update, torch.randn(rows, tokens, WIDTH, generator=g, dtype=dtype)


def close(a, b):
    return float((a - b).norm() / b.norm()) <= 1e-5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 3), st.booleans())
def test_equals_every_row_by_itself(group, tokens, bias):
    head, update, h = made(6, len(group), tokens, bias)
    group = torch.tensor(group)
    with torch.no_grad():
        found = update_logits(update, group)(head, h, scale=0.7)
    expected = one_by_one(update, group, head, h, scale=0.7)
    assert found.shape == expected.shape and close(found, expected)


@pytest.mark.parametrize("grad", [True, False])
def test_head_bias_and_update_bias(grad):
    head, update, h = made(2, 4, bias=True)
    update = HeadUpdate(update.down, update.up, torch.randn(2, VOCAB))
    group = torch.tensor([1, 0, 1, 1])
    with torch.set_grad_enabled(grad):
        assert close(update_logits(update, group)(head, h), one_by_one(update, group, head, h))
        only_bias = HeadUpdate(None, None, update.bias)
        assert close(update_logits(only_bias, group)(head, h), one_by_one(only_bias, group, head, h))


def test_mixture_of_shared_slots():
    head, update, h = made(1, 4)
    mixed = HeadUpdate(update.down, update.up, mix=torch.randn(3, RANK))
    group = torch.tensor([2, 0, 1, 0])
    for copies in (1, 2):
        many = h.repeat_interleave(copies, 0)
        with torch.no_grad():
            found = update_logits(mixed, group)(head, many)
        assert close(found, one_by_one(mixed, group.repeat_interleave(copies), head, many))


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_repeated_rows_need_no_new_layout(copies):
    head, update, h = made(3, 5)
    group = torch.tensor([2, 0, 1, 0, 2])
    with torch.no_grad():
        found = update_logits(update, group)(head, h.repeat_interleave(copies, 0))
    assert close(
        found, one_by_one(update, group.repeat_interleave(copies), head, h.repeat_interleave(copies, 0))
    )


def test_no_group_means_one_update_a_row_or_one_for_all():
    head, update, h = made(4, 4)
    per_row = update_logits(update)(head, h)
    assert close(per_row, one_by_one(update, torch.arange(4), head, h))
    single = HeadUpdate(update.down[:1], update.up[:1])
    assert close(update_logits(single, rows=4)(head, h), one_by_one(single, torch.zeros(4).long(), head, h))


def test_zero_update_is_exactly_the_frozen_head():
    head, update, h = made(3, 4)
    zero = HeadUpdate(update.down, torch.zeros_like(update.up))
    with torch.no_grad():
        assert torch.equal(update_logits(zero, torch.tensor([0, 1, 2, 1]))(head, h), head(h))


def test_gradients_are_those_of_rows_by_themselves():
    head, update, h = made(3, 4, dtype=torch.float64)
    group, grads = torch.tensor([2, 0, 2, 1]), []
    for way in (lambda u: update_logits(u, group)(head, h), lambda u: one_by_one(u, group, head, h)):
        leaves = HeadUpdate(update.down.clone().requires_grad_(), update.up.clone().requires_grad_())
        way(leaves).square().sum().backward()
        grads.append((leaves.down.grad, leaves.up.grad))
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("group", [[0], [0, 1, 2], [0] * 5, [[0], [1], [2], [0]], 0])
def test_a_group_that_is_not_one_for_each_row_is_refused(group):
    head, update, h = made(3, 4)
    shape = re.escape(f"group {tuple(torch.tensor(group).shape)} must be (4,)")
    with pytest.raises(ValueError, match=shape):
        update_logits(update, torch.tensor(group), rows=4)
    with pytest.raises(ValueError, match=shape):
        add_update(head(h), h, update, torch.tensor(group))
    flat, target = h.reshape(-1, h.shape[-1])[:4], torch.zeros(4).long()
    for losses in (head_losses, token_losses):
        with pytest.raises(ValueError, match=shape):
            losses(flat, target, HeadWeight(head.weight), [update], [torch.tensor(group)])


def test_refuses_groups_and_rows_that_do_not_fit():
    head, update, h = made(3, 4)
    with pytest.raises(ValueError, match="0 … 2"):
        update_logits(update, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="in `group`"):
        update_logits(update, rows=5)
    with pytest.raises(ValueError, match="conditions are for 3"):
        update_logits(update)(head, h)


def test_what_is_kept_from_token_to_token_neither_ages_nor_meets_a_backward_pass():
    g = torch.Generator().manual_seed(0)
    down, up = (torch.randn(2, *shape, generator=g, requires_grad=True) for shape in ((3, 8), (11, 3)))
    head, h = torch.nn.Linear(8, 11, bias=False), torch.randn(4, 1, 8, generator=g)
    mixed = update_logits(HeadUpdate(down, up), torch.tensor([0, 1, 1, 0]))
    with torch.no_grad():
        first = mixed(head, h)
        down.mul_(2)  # an optimiser's step
        assert not torch.allclose(mixed(head, h), first)
        assert torch.allclose(mixed(head, h) - head(h), 2 * (first - head(h)), atol=1e-5)
    for _ in range(2):
        mixed(head, h).sum().backward()
    assert down.grad is not None and up.grad is not None
