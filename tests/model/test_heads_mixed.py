import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from chameleon_lite.model.heads.interface import HeadUpdate
from chameleon_lite.model.heads.mixed import MixedUpdate, one_by_one

WIDTH, VOCAB, RANK = 8, 23, 3


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
        found = MixedUpdate(update, group).logits(head, h, scale=0.7)
    expected = one_by_one(update, group, head, h, scale=0.7)
    assert found.shape == expected.shape and close(found, expected)


@pytest.mark.parametrize("grad", [True, False])
def test_head_bias_and_update_bias(grad):
    head, update, h = made(2, 4, bias=True)
    update = HeadUpdate(update.down, update.up, torch.randn(2, VOCAB))
    group = torch.tensor([1, 0, 1, 1])
    with torch.set_grad_enabled(grad):
        assert close(MixedUpdate(update, group).logits(head, h), one_by_one(update, group, head, h))
        only_bias = HeadUpdate(None, None, update.bias)
        assert close(MixedUpdate(only_bias, group).logits(head, h), one_by_one(only_bias, group, head, h))


def test_mixture_of_shared_slots():
    head, update, h = made(1, 4)
    mixed = HeadUpdate(update.down, update.up, mix=torch.randn(3, RANK))
    group = torch.tensor([2, 0, 1, 0])
    for copies in (1, 2):
        many = h.repeat_interleave(copies, 0)
        with torch.no_grad():
            found = MixedUpdate(mixed, group).logits(head, many)
        assert close(found, one_by_one(mixed, group.repeat_interleave(copies), head, many))


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_repeated_rows_need_no_new_layout(copies):
    head, update, h = made(3, 5)
    group = torch.tensor([2, 0, 1, 0, 2])
    with torch.no_grad():
        found = MixedUpdate(update, group).logits(head, h.repeat_interleave(copies, 0))
    assert close(
        found, one_by_one(update, group.repeat_interleave(copies), head, h.repeat_interleave(copies, 0))
    )


def test_no_group_means_one_update_a_row_or_one_for_all():
    head, update, h = made(4, 4)
    per_row = MixedUpdate(update).logits(head, h)
    assert close(per_row, one_by_one(update, torch.arange(4), head, h))
    single = HeadUpdate(update.down[:1], update.up[:1])
    assert close(
        MixedUpdate(single, rows=4).logits(head, h), one_by_one(single, torch.zeros(4).long(), head, h)
    )


def test_zero_update_is_exactly_the_frozen_head():
    head, update, h = made(3, 4)
    zero = HeadUpdate(update.down, torch.zeros_like(update.up))
    with torch.no_grad():
        assert torch.equal(MixedUpdate(zero, torch.tensor([0, 1, 2, 1])).logits(head, h), head(h))


def test_gradients_are_those_of_rows_by_themselves():
    head, update, h = made(3, 4, dtype=torch.float64)
    group, grads = torch.tensor([2, 0, 2, 1]), []
    for way in (lambda u: MixedUpdate(u, group).logits(head, h), lambda u: one_by_one(u, group, head, h)):
        leaves = HeadUpdate(update.down.clone().requires_grad_(), update.up.clone().requires_grad_())
        way(leaves).square().sum().backward()
        grads.append((leaves.down.grad, leaves.up.grad))
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


def test_refuses_groups_and_rows_that_do_not_fit():
    head, update, h = made(3, 4)
    with pytest.raises(ValueError, match="0 … 2"):
        MixedUpdate(update, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="say in `group`"):
        MixedUpdate(update, rows=5)
    with pytest.raises(ValueError, match="conditions are for 3"):
        MixedUpdate(update).logits(head, h)


def test_what_is_kept_from_token_to_token_neither_ages_nor_meets_a_backward_pass():
    g = torch.Generator().manual_seed(0)
    down, up = (torch.randn(2, *shape, generator=g, requires_grad=True) for shape in ((3, 8), (11, 3)))
    head, h = torch.nn.Linear(8, 11, bias=False), torch.randn(4, 1, 8, generator=g)
    mixed = MixedUpdate(HeadUpdate(down, up), torch.tensor([0, 1, 1, 0]))
    with torch.no_grad():
        first = mixed.logits(head, h)
        down.mul_(2)  # an optimiser's step
        assert not torch.allclose(mixed.logits(head, h), first)
        assert torch.allclose(mixed.logits(head, h) - head(h), 2 * (first - head(h)), atol=1e-5)
    for _ in range(2):
        mixed.logits(head, h).sum().backward()
    assert down.grad is not None and up.grad is not None
