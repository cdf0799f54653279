"""The buffers that a CPU's passes use again: cut to the rows, grown, freed with the weight, and never returned."""

import weakref

import torch

from chameleon_lite.fast import head_loss_torch
from chameleon_lite.fast.head_loss import head_losses, token_losses
from chameleon_lite.fast.head_loss_torch import buffer, forget_buffers
from chameleon_lite.loss import HeadWeight


def weight_of(vocab=70) -> HeadWeight:
    return HeadWeight(torch.randn(vocab, 6), dtype=torch.float32)


def test_a_buffer_is_used_again_cut_to_the_rows_and_grown_when_they_are_more():
    weight = weight_of()
    first = buffer(weight, "p", 8, torch.float32)
    assert first.shape == (8, weight.padded)
    assert buffer(weight, "p", 3, torch.float32).data_ptr() == first.data_ptr()
    assert buffer(weight, "g", 3, torch.bfloat16).dtype == torch.bfloat16
    assert buffer(weight, "p", 9, torch.float32).shape == (9, weight.padded)
    assert len(head_loss_torch._buffers[weight]["p"]) == 9


def test_buffers_are_freed_with_the_weight_or_when_forgotten():
    for free in (forget_buffers, lambda weight: None):
        weight = weight_of()
        seen = weakref.ref(buffer(weight, "p", 4, torch.float32)._base)
        free(weight)
        assert (seen() is None) == (free is forget_buffers)
        del weight
        assert seen() is None


def test_a_pass_in_inference_mode_leaves_buffers_that_training_can_write_into():
    weight, h, target = weight_of(), torch.randn(5, 6), torch.randint(70, (5,))
    with torch.inference_mode():
        nll = token_losses(h, target, weight, [None])
    h.requires_grad_()
    loss = head_losses(h, target, weight, [None])
    loss.sum().backward()
    torch.testing.assert_close(loss, nll.sum(1))
    assert h.grad.abs().sum() > 0


def test_what_a_pass_returns_does_not_change_in_the_next():
    weight = weight_of()
    h, target = torch.randn(5, 6, requires_grad=True), torch.randint(70, (5,))
    nll = token_losses(h.detach(), target, weight, [None])
    before = nll.clone()
    loss = head_losses(h, target, weight, [None]).sum()
    loss.backward()
    grad = h.grad.clone()
    head_losses(torch.randn(5, 6, requires_grad=True), target, weight, [None]).sum().backward()
    assert torch.equal(nll, before) and torch.equal(h.grad, grad)
