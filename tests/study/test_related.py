"""The heads of cited systems: no change at the start, gradients at once, one loss on both engines, their sizes."""

import math

import pytest
import torch
import torch.nn.functional as F

from chameleon_lite import engine
from chameleon_lite.heads import Condition, HyperHead, LoraHead, apply_update
from chameleon_lite.loss import HeadWeight, head_losses
from chameleon_study.heads import (
    CodeHead,
    ConstrainedHead,
    LibraryHead,
    PromptHead,
    SparseHead,
    WeightMadeHead,
    blended,
)
from chameleon_study.regimes import REGIMES
from chameleon_study.sources import Split

C, V, G, M, R = 16, 101, 5, 60, 2


def condition(**more):
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(G, C, generator=generator)
    return Condition(vector, **{"cluster": torch.randint(0, 4, (G,), generator=generator)} | more)


def weight():
    return torch.randn(V, C, generator=torch.Generator().manual_seed(0))


UNLABELLED = {"cluster": None}
BLEND = {"cluster": torch.tensor([[0.1, 0.2, 0.3, 0.4]] * G)}
MAKERS = {
    "routed": (lambda: LibraryHead(C, V, 4, R), {}),
    "blended": (lambda: LibraryHead(C, V, 4, R), BLEND),
    "arrow": (lambda: LibraryHead(C, V, 4, R), UNLABELLED),
    "codes": (lambda: CodeHead(C, V, 4, R), {}),
    "weight-made": (lambda: WeightMadeHead(weight(), R), UNLABELLED),
    "constrained": (lambda: ConstrainedHead(C, V, R), UNLABELLED),
    "prompt": (lambda: PromptHead(weight(), R), UNLABELLED),
    "sparse": (lambda: SparseHead(C, V, R), UNLABELLED),
}


@pytest.fixture(params=MAKERS)
def made(request):
    """A new head and the condition that it reads."""
    make, given = MAKERS[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(), condition(**given)


def stirred(head, by=0.3):
    """The head with every parameter moved, so that it is no no-op; in eval mode, without dropout."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in head.parameters():
            p += by * torch.randn(p.shape, generator=generator)
    return head.eval()


def change(head, at):
    """What the head adds to the logits (G, 3, V), a bias in every position."""
    h = torch.randn(G, 3, C, generator=torch.Generator().manual_seed(2))
    return torch.zeros(G, 3, V) + apply_update(h, head.factors(at))


def experts_of(head):
    """The dense updates (K, V, C) of a library's experts."""
    down = head.down.unflatten(0, (head.experts, head.rank))
    up = head.up.unflatten(1, (head.experts, head.rank))
    return torch.einsum("vkr,krc->kvc", up, down)


def test_starts_as_the_frozen_head_and_learns_at_the_first_step(made):
    head, at = made
    logits = change(head, at)
    assert torch.equal(logits, torch.zeros_like(logits))
    F.cross_entropy(logits.flatten(0, 1), torch.arange(3 * G)).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_every_parameter_gets_a_gradient_once_the_head_has_moved(made):
    head, at = made
    F.cross_entropy(change(stirred(head), at).flatten(0, 1), torch.arange(3 * G)).backward()
    for name, p in head.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_the_fast_loss_equals_the_plain_one_with_its_gradients(made):
    head, at = made
    head = stirred(head).double()
    at = Condition(at.vector.double(), cluster=at.cluster)
    frozen, generator = HeadWeight(weight().double(), dtype=torch.float64), torch.Generator().manual_seed(3)
    h = torch.randn(M, C, generator=generator).double()
    target = torch.randint(0, V, (M,), generator=generator)
    found = {}
    for name in ("fast", "plain"):
        with engine.use(name):
            update = head.factors(at)
            group = torch.arange(M) % G if update.groups > 1 else None
            loss = head_losses(h, target, frozen, [update], groups=[group], scale=0.7).sum()
            found[name] = [loss, *torch.autograd.grad(loss, list(head.parameters()))]
    for fast, plain in zip(found["fast"], found["plain"]):
        assert torch.allclose(fast, plain, rtol=1e-8, atol=1e-9)


def test_sizes_at_gpt2s_geometry():
    width, vocab, experts = 768, 50_257, 33
    with torch.device("meta"):
        lora, hyper, sparse = (kind(width, vocab) for kind in (LoraHead, HyperHead, SparseHead))
        codes, constrained = CodeHead(width, vocab, experts), ConstrainedHead(width, vocab)
        prompt = PromptHead(torch.empty(vocab, width))
    assert lora.trainable_parameters() == sparse.trainable_parameters() == 4 * (width + vocab) == 204_100
    assert codes.trainable_parameters() == hyper.trainable_parameters() + experts * width
    assert constrained.trainable_parameters() == hyper.trainable_parameters() == 6_786_596
    assert constrained.static == 100 and constrained.down.shape[0] == 132
    assert prompt.trainable_parameters() == 2 * 133 * width == 204_288


@pytest.mark.parametrize("make", [WeightMadeHead, PromptHead])
def test_heads_that_read_the_weight_are_as_large_as_lora(make):
    head, lora = make(weight(), R), LoraHead(C, V, R)
    assert abs(head.trainable_parameters() - lora.trainable_parameters()) <= C
    assert make is PromptHead or head.trainable_parameters() == lora.trainable_parameters()
    assert head.stored_bytes() == 4 * head.trainable_parameters()  # the frozen weight is not stored again


def test_a_blend_is_the_weighted_sum_of_the_experts():
    head = stirred(LibraryHead(C, V, 4, R))
    share = torch.softmax(torch.randn(G, 4, generator=torch.Generator().manual_seed(4)), 1)
    update = head.factors(condition(cluster=share))
    expected = torch.einsum("k,kvc->vc", share[3], experts_of(head))
    assert torch.allclose(update.dense(3), expected, atol=1e-5)


def test_arrow_prefers_the_expert_whose_strongest_direction_is_the_state():
    head = stirred(LibraryHead(C, V, 6, R))
    dense = experts_of(head)  # (K, V, C)
    direction = torch.linalg.svd(dense).Vh[:, 0]  # (K, C)
    states = torch.cat([direction[2:3], -direction[5:6]])
    found = head.weights(Condition(states))
    score = math.sqrt(C) * (states @ direction.T).abs()
    for row, expected in zip(found, score):
        chosen = expected.topk(4).indices
        assert torch.allclose(row[chosen], expected[chosen].softmax(0), atol=1e-4)
        assert (row > 0).sum() == 4 and row.sum() == pytest.approx(1)
    assert found.argmax(1).tolist() == [2, 5]  # the sign of a singular vector is arbitrary


def test_blending_by_distance_takes_its_temperature_from_the_training_documents():
    far, spread = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    train = (far.unsqueeze(1) + spread).flatten(0, 1)  # two clusters of two around (0, 0) and (3, 4)
    label = torch.tensor([0, 0, 2, 2])  # the cluster in the middle is empty
    own = split_of(far, torch.tensor([2, 2]))
    source = blended(own, split_of(train, label))
    distance = torch.cdist(train, far)
    gap = (distance[torch.arange(4), [1, 1, 0, 0]] - distance[torch.arange(4), [0, 0, 1, 1]]).mean()
    near = 1 / (1 + torch.exp(-5 / gap))
    assert torch.allclose(source.cluster, torch.tensor([[near, 0, 1 - near], [1 - near, 0, near]]))
    given, group = source(None, torch.tensor([1]))
    assert torch.equal(given.cluster, source.cluster[1:]) and torch.equal(given.vector, far[1:])
    assert group.tolist() == [0]


def split_of(vectors, routing):
    return Split({"prefix": vectors}, routing, vectors, routing, routing)


def test_weight_made_factors_are_maps_of_the_frozen_weight():
    head, matrix = stirred(WeightMadeHead(weight(), R)), weight()
    update, scale = head.factors(), matrix.square().mean().sqrt()
    down = head.of_vocab.T @ matrix / scale / math.sqrt(V)
    assert torch.allclose(update.down[0], down, atol=1e-5)
    assert torch.allclose(update.up[0], matrix @ head.of_width / scale / math.sqrt(C), atol=1e-5)


def test_the_constrained_head_is_static_but_for_the_generated_slots():
    head, at = stirred(ConstrainedHead(C, V, R)), condition()
    code = head.net(at.vector)  # (G, 32)
    static = head.up[:, : head.static] @ head.down[: head.static]
    small = (head.up[:, head.static :] * code[1]) @ head.down[head.static :]
    assert code.shape == (G, 32) and head.static == 33 * R - 32
    assert torch.allclose(head.factors(at).dense(1), static + small, atol=1e-4)


def test_a_prompt_at_the_head_shifts_the_state():
    head, h, at = stirred(PromptHead(weight(), R)), torch.randn(G, 3, C), condition()
    shift = head.outer(head.inner(at.vector).relu())  # (G, C)
    shifted = (h + shift.unsqueeze(1)) @ weight().T
    assert torch.allclose(h @ weight().T + apply_update(h, head.factors(at)), shifted, atol=1e-4)


def test_sparse_factors_hold_a_lora_heads_numbers_at_four_times_its_rank():
    torch.manual_seed(0)
    head = stirred(SparseHead(C, V, R))
    update = head.factors()
    assert update.down.shape == (1, 4 * R, C) and update.up.shape == (1, V, 4 * R)
    assert ((update.down[0] != 0).sum(0) == R).all() and ((update.up[0] != 0).sum(1) == R).all()
    assert torch.linalg.matrix_rank(update.dense()) == 4 * R


def test_a_cluster_has_one_code_and_codes_differ():
    head, at = stirred(CodeHead(C, V, 4, R)), condition(cluster=torch.tensor([1, 1, 2, 3, 0]))
    update = head.factors(at)
    assert torch.equal(update.up[0], update.up[1]) and not torch.allclose(update.up[0], update.up[2])


RELATED = [f"R{n}" for n in range(21, 28)] + ["R24-constant"]


def test_every_cited_system_is_a_regime_and_conditioned_ones_differ_from_their_control_in_one_thing():
    assert set(RELATED) <= set(REGIMES)
    one, other = REGIMES["R24"], REGIMES["R24-constant"]
    assert (one.head, one.order) == (other.head, other.order) and one.source is not other.source
    for name in ("R21", "R27"):
        r, lender = REGIMES[name], REGIMES["R12"]
        assert r.weights_of == "R12" and r.head is None and r.order == lender.order
