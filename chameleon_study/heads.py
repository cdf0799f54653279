"""Rival heads, and systems that the paper cites, as far as a head on cached states can express them.

    BankHead         ΔW = Σ_k π_k up_k down_k                 π (G, K) a softmax of the condition (claim 10's rival)
    FactorBankHead   ΔW = (Σ_k π_k up_k) (Σ_k π_k down_k)     blended in factor space, as the hyper-network does
    SvfBank          ΔW = (W Q) diag(Σ_k π_k m_k − 1) Qᵀ      singular values rescaled (Transformer²)
    UnigramBias      logits + β (log q_c − log q_0)           frequencies of the tokens in the condition's text
    LibraryHead      ΔW = up_k down_k of the cluster's expert k (R12), Arrow's choice (R21), a blend by distance (R27)
    CodeHead         the paper's hyper-network from a learned code of the cluster       HyperFormer, HyperLoader
    WeightMadeHead   static factors, linear maps of the frozen weight itself            CondLoRA
    ConstrainedHead  a static LoRA and a small part that a network scales               HyperLoRA (Lv et al.)
    PromptHead       logits = W (h + p), p made from the condition                      HyperPrompt
    SparseHead       a static product of two sparse factors                             AutoSparse (Chen et al.)

Each head starts exactly as the frozen one. A bank of 33 of rank 4 is about as large as the paper's hyper-network, which
holds 33 pairs of factors too. The docstrings of cited systems (the book's page Related work) say what a head cannot
have of them, or has otherwise.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chameleon_lite.heads import Condition, Head, HeadUpdate, HyperHead

from .sources import Own, Split

SMOOTHING = 16.0  # μ at the start: as many pseudo-tokens as a plain text's prefix has tokens
CHOSEN = 4  # experts that Arrow blends
SPREAD = 4  # slots that share the parameters of one: a quarter of a sparse factor is not zero


class BankHead(Head):
    """K experts side by side as one pair of factors of rank K·R; the blend is a weight on their slots."""

    conditioned = True
    selects = True  # by a softmax of the condition

    def __init__(self, width: int, vocab: int, experts: int, rank: int = 4) -> None:
        super().__init__()
        self.experts, self.rank = experts, rank
        if self.selects:
            self.selector = nn.Linear(width, experts)
        self.down = nn.Parameter(torch.empty(experts * rank, width))
        self.up = nn.Parameter(torch.zeros(vocab, experts * rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def weights(self, condition: Condition) -> Tensor:
        """The blend π (G, K) of each group."""
        return self.selector(condition.vector).softmax(-1)

    def factors(self, condition: Condition) -> HeadUpdate:
        """One pair of factors (1, K·R, C), (1, V, K·R) and each group's mix (G, K·R)."""
        mix = self.weights(condition).repeat_interleave(self.rank, dim=1)
        return HeadUpdate(self.down.unsqueeze(0), self.up.unsqueeze(0), mix=mix)


class FactorBankHead(BankHead):
    """The same parameters, blended before the product: the cross terms up_k down_j appear (R11b)."""

    def factors(self, condition: Condition) -> HeadUpdate:
        """Blended factors (G, R, C) and (G, V, R)."""
        weights = self.weights(condition)  # (G, K)
        down = torch.einsum("gk,krc->grc", weights, self.down.unflatten(0, (self.experts, self.rank)))
        up = torch.einsum("gk,vkr->gvr", weights, self.up.unflatten(1, (self.experts, self.rank)))
        return HeadUpdate(down, up)


class SvfBank(Head):
    """K masks over the C singular directions of weight (V, C), blended by a softmax selector.

        W = P diag(σ) Qᵀ      W' = P diag(σ ∘ Σ_k π_k m_k) Qᵀ      m_k = 2 sigmoid(a_k) in (0, 2), 1 at the start

    An expert is C numbers. W' − W is a fixed pair of factors of rank C with a mixture of its slots.
    """

    conditioned = True

    def __init__(self, weight: Tensor, experts: int) -> None:
        super().__init__()
        exact = weight.detach().double()
        # The eigenvectors of WᵀW are the right singular vectors: a (C, C) problem whatever the vocabulary.
        right = torch.linalg.eigh(exact.T @ exact).eigenvectors  # (C, C), columns
        self.register_buffer("down", right.T.float().contiguous(), persistent=False)  # (C, C)
        self.register_buffer("up", (exact @ right).float(), persistent=False)  # (V, C)
        self.selector = nn.Linear(weight.shape[1], experts)
        self.masks = nn.Parameter(torch.zeros(experts, weight.shape[1]))  # a_k

    def factors(self, condition: Condition) -> HeadUpdate:
        """The fixed factors (1, C, C), (1, V, C) and each group's mix (G, C)."""
        mix = self.selector(condition.vector).softmax(-1) @ (2 * torch.sigmoid(self.masks) - 1)  # (G, C)
        return HeadUpdate(self.down.unsqueeze(0), self.up.unsqueeze(0), mix=mix)


class UnigramBias(Head):
    """Tilts the frequencies towards the tokens in the condition's text; two parameters, β (0 at the start) and μ.

        q_c = (counts + μ q_0) / (n + μ)          logits = h Wᵀ + β (log q_c − log q_0)

    q_0 is the training prefixes' distribution of tokens: background (V,) are their counts, plus one each.
    """

    conditioned = True

    def __init__(self, background: Tensor) -> None:
        super().__init__()
        frequencies = (background.double() + 1) / (background.sum() + len(background))
        self.register_buffer("background", frequencies.float())
        self.beta = nn.Parameter(torch.zeros(()))
        self.log_smoothing = nn.Parameter(torch.tensor(math.log(SMOOTHING)))

    def factors(self, condition: Condition) -> HeadUpdate:
        """A bias (G, V) from the condition's counts (G, V)."""
        mu, counts = self.log_smoothing.exp(), condition.counts
        ratio = (counts / self.background + mu) / (counts.sum(1, keepdim=True) + mu)  # q_c / q_0, (G, V)
        return HeadUpdate(None, None, bias=self.beta * ratio.log())


class LibraryHead(BankHead):
    """K experts, each trained on the documents of its own cluster alone, read in one of three ways.

        label (G,)       that cluster's expert                                                    R12
        weights (G, K)   their blend, given by the condition, see `blended`                       R27
        no label         π = softmax of |v_k · h̄|, v_k the strongest input direction of expert k   R21

    Arrow routes each token of each layer by that token's state; here a row has one blend for all of its tokens, by
    h̄, the mean final hidden state of its condition span. Nothing is trained for R21 and R27. The experts share
    AdamW's steps, so that one moves on a little in steps without its cluster; else they are trained apart.
    """

    selects = False

    def weights(self, condition: Condition) -> Tensor:
        """The blend π (G, K)."""
        if condition.cluster is None:
            return self.arrow(condition.vector)
        label = condition.cluster
        return (label if label.dim() == 2 else F.one_hot(label, self.experts)).to(self.down.dtype)

    @torch.no_grad()
    def arrow(self, states: Tensor) -> Tensor:
        """π (G, K) from the directions (G, C) of mean states: 0 but for the CHOSEN most similar experts.

        v_k is the first right singular vector of up_k down_k, through problems of size R × R. States are normalised
        and get the length √C of a state behind a layer norm, without which all scores would be about equal.
        """
        down = self.down.unflatten(0, (self.experts, self.rank))  # (K, R, C)
        up = self.up.unflatten(1, (self.experts, self.rank)).transpose(0, 1)  # (K, V, R)
        values, basis = torch.linalg.eigh(up.transpose(1, 2) @ up)
        root = basis * values.clamp_min(0).sqrt().unsqueeze(1)  # (K, R, R), root rootᵀ = upᵀ up
        rows = root.transpose(1, 2) @ down  # (K, R, C), with the product's singular values and right vectors
        first = torch.linalg.eigh(rows @ rows.transpose(1, 2)).eigenvectors[:, :, -1]  # (K, R)
        direction = F.normalize(torch.einsum("kr,krc->kc", first, rows), dim=-1)
        score = math.sqrt(states.shape[1]) * (states @ direction.T).abs()  # (G, K)
        best = score.topk(min(CHOSEN, self.experts), dim=1)
        return torch.zeros_like(score).scatter(1, best.indices, best.values.softmax(1))


def blended(split: Split, train: Split) -> Own:
    """Each row's own vector, and as weights (N, K) of the routing clusters' experts softmax(−distance / τ).

    Distances are those to the clusters' training means. τ is the mean gap between a training document's nearest and
    second nearest mean: nothing is tuned, and no held-out document enters τ or a mean.
    """
    members = F.one_hot(train.routing).to(train.vectors)  # (N, K)
    size = members.sum(0)  # (K,)
    means = members.T @ train.vectors / size.clamp_min(1).unsqueeze(1)  # (K, C)
    both = (train.vectors, split.vectors)
    near, own = (torch.cdist(x, means).masked_fill(size == 0, math.inf) for x in both)
    gap = near.sort(dim=1).values.diff(dim=1)[:, :1].sum() / len(near)
    return Own(split.vectors, (-own / gap.clamp_min(1e-6)).softmax(1))


class CodeHead(Head):
    """The paper's hyper-network, fed with a code (C,) that is trained for each of K clusters, not with a mean.

    HyperFormer and HyperLoader have a code for each *task* and generate adapters in all layers; here a cluster of
    training documents stands for a task (a row's is that of its nearest centroid) and the head alone is adapted.
    """

    conditioned = True

    def __init__(self, width: int, vocab: int, clusters: int, rank: int = 4) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(clusters, width) / math.sqrt(width))  # of length 1, like means
        self.hyper = HyperHead(width, vocab, rank)

    def factors(self, condition: Condition) -> HeadUpdate:
        """`down` (G, R, C) and `up` (G, V, R) of each group's cluster (G,)."""
        return self.hyper.factors(Condition(self.codes[condition.cluster]))


class WeightMadeHead(Head):
    """Static factors, linear maps of the frozen weight W (V, C) itself: as many parameters as a LoRA head.

        down = Tᵀ Ŵ / √V      up = Ŵ U / √C      T (V, R) random, U (C, R) zero at the start      Ŵ = W / rms(W)

    The divisors give factors and steps about the size of a LoRA head's. CondLoRA has one such pair of maps for all
    layers, which is where it saves parameters; with one layer only the form of the factors is left to compare.
    """

    def __init__(self, weight: Tensor, rank: int = 4) -> None:
        super().__init__()
        exact = weight.detach().float()  # shared with the backbone, not copied, if it is in float32
        self.register_buffer("weight", exact, persistent=False)
        self.size = float(exact.square().mean().sqrt().clamp_min(1e-12))
        vocab, width = weight.shape
        # As large as PyTorch draws the rows of a linear layer, which is how LoraHead's `down` starts.
        self.of_vocab = nn.Parameter(torch.randn(vocab, rank) / math.sqrt(3 * width))
        self.of_width = nn.Parameter(torch.zeros(width, rank))

    def factors(self, condition: Condition | None = None) -> HeadUpdate:
        """`down` (1, R, C) and `up` (1, V, R), whatever the condition."""
        vocab, width = self.weight.shape
        down = self.of_vocab.T @ self.weight / (self.size * math.sqrt(vocab))
        up = self.weight @ self.of_width / (self.size * math.sqrt(width))
        return HeadUpdate(down.unsqueeze(0), up.unsqueeze(0))


class ConstrainedHead(Head):
    """A static LoRA with most of the parameters, and a small part that depends on the condition.

        ΔW = Σ_j up_j down_j + Σ_k code_k up_k down_k      j of 33 R − 32 slots, k of 32, code (G, 32) = net(c)

    That is A(c) = A_0 + g(c) with a g that only scales 32 rows. `net` is the paper's hyper-network's, without
    dropout. Parameters: 33 R (C + V) and those of `net`, exactly the hyper-network's (6,786,596 for GPT-2 and
    R = 4); 100 of 132 slots are static. Lv et al. generate all of A and B and punish the generated part in the
    loss; here its share of the parameters is what constrains it.
    """

    conditioned = True

    def __init__(self, width: int, vocab: int, rank: int = 4) -> None:
        super().__init__()
        slots = rank * (1 + 32)
        self.static = slots - 32
        self.net = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.down = nn.Parameter(torch.empty(slots, width))
        self.up = nn.Parameter(torch.zeros(vocab, slots))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def factors(self, condition: Condition) -> HeadUpdate:
        """One pair of factors (1, 33 R, C), (1, V, 33 R) and each group's mix (G, 33 R)."""
        code = self.net(condition.vector)  # (G, 32)
        mix = torch.cat([code.new_ones(len(code), self.static), code], dim=1)
        return HeadUpdate(self.down.unsqueeze(0), self.up.unsqueeze(0), mix=mix)


class PromptHead(Head):
    """A prompt at the head: logits = W (h + p(c)), p = U relu(D c), D (P, C) and U (C, P) without biases.

    P = R (C + V) / 2 C, rounded, gives the parameters of a LoRA head. HyperPrompt puts generated prompts in front
    of keys and values in every layer, where each token weighs them by its own attention; behind the last layer a
    prompt is one shift of all states of a row, so one bias W p of its logits.
    """

    conditioned = True

    def __init__(self, weight: Tensor, rank: int = 4) -> None:
        super().__init__()
        vocab, width = weight.shape
        self.register_buffer("weight", weight.detach().float(), persistent=False)
        size = max(1, round(rank * (width + vocab) / (2 * width)))
        self.inner = nn.Linear(width, size, bias=False)
        self.outer = nn.Linear(size, width, bias=False)
        nn.init.zeros_(self.outer.weight)

    def factors(self, condition: Condition) -> HeadUpdate:
        """A bias (G, V)."""
        return HeadUpdate(bias=self.outer(self.inner(condition.vector).relu()) @ self.weight.T)


class SparseHead(Head):
    """A static product of two sparse factors, with the parameters of a LoRA head and SPREAD times its rank.

        up (V, 4 R), R numbers in each row      down (4 R, C), R numbers in each column      the rest is zero

    Which entries are not zero is drawn at the start and stays; the indices are no parameters and are not counted.
    AutoSparse learns under one global budget how sparse each of several factors is.
    """

    def __init__(self, width: int, vocab: int, rank: int = 4) -> None:
        super().__init__()
        self.slots = SPREAD * rank
        for name, count in (("of_vocab", vocab), ("of_width", width)):
            place = torch.rand(count, self.slots).argsort(1)  # (count, R of them) each row's slots
            self.register_buffer(name, place[:, :rank].contiguous())
        self.down = nn.Parameter(torch.empty(width, rank))
        self.up = nn.Parameter(torch.zeros(vocab, rank))
        nn.init.uniform_(self.down, -1 / math.sqrt(width), 1 / math.sqrt(width))

    def factors(self, condition: Condition | None = None) -> HeadUpdate:
        """`down` (1, 4 R, C) and `up` (1, V, 4 R), whatever the condition."""
        down = self.down.new_zeros(len(self.down), self.slots).scatter(1, self.of_width, self.down)
        up = self.up.new_zeros(len(self.up), self.slots).scatter(1, self.of_vocab, self.up)
        return HeadUpdate(down.T.unsqueeze(0), up.unsqueeze(0))
