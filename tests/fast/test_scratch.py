import weakref

import torch

from chameleon_lite.fast.head_loss import head_losses, token_losses
from chameleon_lite.fast.head_loss_torch import Scratch
from chameleon_lite.loss import HeadWeight


def test_a_buffer_is_made_once_and_cut_to_the_rows_asked_for():
    scratch = Scratch(8, 5, torch.device("cpu"))
    first = scratch("p", 8, torch.float32)
    assert first.shape == (8, 5) and scratch("p", 3, torch.float32).data_ptr() == first.data_ptr()
    assert scratch("g", 3, torch.bfloat16).shape == (3, 5)


def test_buffers_stay_with_the_weight_and_grow_when_they_must():
    weight = HeadWeight(torch.randn(70, 6), dtype=torch.float32)
    small, large = torch.randn(4, 6), torch.randn(9, 6)
    token_losses(small, torch.zeros(4, dtype=torch.int64), weight, [None])
    first = Scratch.of(weight, 4)
    assert first.rows == 4 and "p" in first.buffers
    token_losses(small[:2], torch.zeros(2, dtype=torch.int64), weight, [None])
    assert Scratch.of(weight, 2) is first
    token_losses(large, torch.zeros(9, dtype=torch.int64), weight, [None])
    assert Scratch.of(weight, 1) is not first and Scratch.of(weight, 1).rows == 9


def test_buffers_are_freed_with_the_weight_or_when_forgotten():
    weight = HeadWeight(torch.randn(70, 6), dtype=torch.float32)
    seen = weakref.ref(Scratch.of(weight, 4))
    Scratch.forget(weight)
    assert seen() is None
    seen = weakref.ref(Scratch.of(weight, 4))
    del weight
    assert seen() is None


def test_what_a_pass_returns_does_not_change_in_the_next():
    weight = HeadWeight(torch.randn(70, 6), dtype=torch.float32)
    h, target = torch.randn(5, 6, requires_grad=True), torch.randint(70, (5,))
    nll = token_losses(h.detach(), target, weight, [None]).clone()
    kept = token_losses(h.detach(), target, weight, [None])
    loss = head_losses(h, target, weight, [None]).sum()
    loss.backward()
    grad = h.grad.clone()
    head_losses(torch.randn(5, 6, requires_grad=True), target, weight, [None]).sum().backward()
    assert torch.equal(kept, nll) and torch.equal(h.grad, grad)
