import pytest
import torch
import torch.nn.functional as F

from chameleon_lite import engine
from chameleon_lite.heads import Condition, HeadUpdate, HyperHead, apply_update
from chameleon_lite.loss import HeadWeight, head_losses, token_losses
from chameleon_study.heads import BankHead, FactorBankHead, LibraryHead, SvfBank, UnigramBias

C, V, G, M = 16, 101, 5, 60


def condition(seed=0):
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 3, (G, V), generator=g).float()
    return Condition(torch.randn(G, C, generator=g), counts, torch.randint(0, 4, (G,), generator=g))


def weight(seed=0):
    return torch.randn(V, C, generator=torch.Generator().manual_seed(seed))


MAKERS = {
    "bank": lambda: BankHead(C, V, 4, rank=2),
    "factor bank": lambda: FactorBankHead(C, V, 4, rank=2),
    "routed": lambda: LibraryHead(C, V, 4, rank=2),
    "svf": lambda: SvfBank(weight(), 4),
    "unigram": lambda: UnigramBias(torch.arange(V).float()),
}


def stirred(head):
    """The head with every parameter moved, so that it is no no-op."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in head.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
    return head


def adapted(head):
    h = torch.randn(G, 3, C, generator=torch.Generator().manual_seed(2))
    return torch.zeros(G, 3, V) + apply_update(
        h, head.factors(condition())
    )  # a bias is the same in every position


@pytest.mark.parametrize("name", MAKERS)
def test_starts_as_the_frozen_head_and_still_learns(name):
    head = MAKERS[name]()
    logits = adapted(head)
    assert torch.equal(logits, torch.zeros_like(logits))
    F.cross_entropy(logits.flatten(0, 1), torch.arange(3 * G)).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.parametrize("name", MAKERS)
def test_the_fast_loss_equals_the_plain_one_with_its_gradients(name):
    head = stirred(MAKERS[name]()).double()
    W = HeadWeight(weight().double(), dtype=torch.float64)
    g = torch.Generator().manual_seed(3)
    h, target = torch.randn(M, C, generator=g).double(), torch.randint(0, V, (M,), generator=g)
    group = torch.randint(0, G, (M,), generator=g)
    vector = condition()
    at = Condition(vector.vector.double(), vector.counts.double(), vector.cluster)
    found = []
    for name in ("fast", "plain"):
        with engine.use(name):
            loss = head_losses(h, target, W, [head.factors(at)], groups=[group], scale=0.7).sum()
        found.append((loss.detach(), torch.autograd.grad(loss, list(head.parameters()))))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-10)
    for ours, plain in zip(found[0][1], found[1][1]):
        assert torch.allclose(ours, plain, rtol=1e-8, atol=1e-9)


def test_a_mixture_without_groups_serves_all_rows():
    W = HeadWeight(weight().double(), dtype=torch.float64)
    h, target = torch.randn(9, C).double(), torch.arange(9)
    update = HeadUpdate(
        torch.randn(1, 3, C).double(), torch.randn(1, V, 3).double(), mix=torch.randn(1, 3).double()
    )
    one = token_losses(h, target, W, [update])
    dense = F.cross_entropy(h @ (weight().double() + update.dense()).T, target, reduction="none")
    assert torch.allclose(one[0], dense)


def test_bank_blended_as_updates_is_the_weighted_sum_of_its_experts():
    head = stirred(BankHead(C, V, 4, rank=2))
    at, update = condition(), head.factors(condition())
    experts = [head.up[:, 2 * k : 2 * k + 2] @ head.down[2 * k : 2 * k + 2] for k in range(4)]
    expected = sum(head.weights(at)[3, k] * experts[k] for k in range(4))
    assert torch.allclose(update.dense(3), expected, atol=1e-5)


def test_hyper_networks_affine_form_is_a_bank_in_factor_space():
    """The last layer of the paper's head stores 33 pairs of factors and blends them with a code."""
    head = stirred(HyperHead(C, V, rank=2)).eval()
    basis, code, direct = head.basis(), head.code(condition()), head.factors(condition())
    assert basis.down.shape[0] == 33
    assert torch.allclose(torch.einsum("gk,krc->grc", code, basis.down), direct.down, atol=1e-4)
    assert torch.allclose(torch.einsum("gk,kvr->gvr", code, basis.up), direct.up, atol=1e-4)


def test_bank_has_the_hyper_networks_parameters_at_gpt2s_size():
    with torch.device("meta"):
        bank = BankHead(768, 50_257, 33).trainable_parameters()
    assert bank == 6_760_677  # 25,377 of the selector and 33 × 204,100


def test_routing_uses_one_expert_alone():
    head = stirred(LibraryHead(C, V, 4, rank=2))
    at = condition()
    k = int(at.cluster[2])
    expected = head.up[:, 2 * k : 2 * k + 2] @ head.down[2 * k : 2 * k + 2]
    assert torch.allclose(head.factors(at).dense(2), expected)


def test_svf_rescales_the_singular_values():
    head = SvfBank(weight(), 1)
    with torch.no_grad():
        head.masks[0, -1] = 30.0  # 2 sigmoid(30) = 2: the largest singular value doubles
    p, s, q = torch.linalg.svd(weight(), full_matrices=False)
    scale = torch.ones(C).index_fill(0, torch.tensor([0]), 2.0)
    expected = p @ torch.diag(s * scale) @ q
    assert torch.allclose(weight() + head.factors(condition()).dense(0), expected, atol=1e-4)
    assert head.stored_bytes() == 4 * (C + 1 + C)  # the frozen head's own directions are not stored again


def test_unigram_bias_by_hand():
    head = UnigramBias(torch.tensor([3.0, 1.0]))  # q_0 = 4/6, 2/6
    with torch.no_grad():
        head.beta.fill_(1.0)
        head.log_smoothing.fill_(0.0)  # one pseudo-token
    bias = head.factors(Condition(torch.zeros(1, C), torch.tensor([[0.0, 3.0]]))).bias
    expected = torch.log(torch.tensor([[1 / 4, (3 + 1 / 3) / 4 * 3]]))
    assert torch.allclose(bias, expected, atol=1e-6)
