"""The objectives against slow loops, written from the description of the released procedure and not from the code."""

import math

import pytest
import torch

from chameleon_lite.backbone import load_backbone
from chameleon_lite.embed import mean_embeddings
from chameleon_lite.heads import Condition, HyperHead, LoraHead
from chameleon_lite.loss import HeadWeight, head_losses, next_token_pairs
from chameleon_lite.text import TokenTable
from chameleon_lite.train import average
from chameleon_study.released.states import pick_last, released_last, released_mask

LENGTH, PAD = 6, 256
# by hand: a full row, a row with padding, rows with the ignored id 0 inside and at the scored position, one token
ROWS = [
    [5, 9, 9, 70, 31, 12],
    [40, 41, 42],
    [7, 0, 8, 0, 11],
    [13, 14, 15, 16, 17, 0],
    [200],
    [80, 0, 3, 4, 5, 6],
]
BATCHES = [[0, 1, 2], [3, 4], [5]]


@pytest.fixture(scope="module")
def double_tiny():
    return load_backbone("tiny", dtype=torch.float64)


def table_of(rows):
    import numpy as np

    lengths = np.array([len(r) for r in rows])
    ones = np.ones(len(rows), dtype=np.int32)
    return TokenTable(
        ids=np.concatenate(rows).astype(np.int32),
        offsets=np.concatenate([[0], lengths.cumsum()]),
        prefix=ones,
        condition=np.stack([0 * ones, ones], 1),
        names=tuple(map(str, range(len(rows)))),
        groups=("",) * len(rows),
        scored_bytes=lengths,
        pad_id=PAD,
    )


def head_of(kind, backbone):
    torch.manual_seed(3)
    if kind == "lora":
        return LoraHead(backbone.width, backbone.vocab, 2, released_init=True).double().eval()
    return HyperHead(backbone.width, backbone.vocab, 2, released_init="alpaca").double().eval()


def slow_released_loss(backbone, head):
    """Batch after batch, row after row, position after position; logits from the whole model's own forward pass."""
    E = backbone.embedding.double()
    batch_means = []
    for batch in BATCHES:
        padded = [ROWS[n] + [PAD] * (LENGTH - len(ROWS[n])) for n in batch]
        vectors = []
        for row in (
            padded
        ):  # padding inside the mean, length 1 afterwards, then the plain mean over the batch's rows
            mean = sum(E[i] for i in row) / LENGTH
            vectors.append(mean / math.sqrt(float((mean * mean).sum())))
        update = head.factors(Condition((sum(vectors) / len(vectors))[None]))
        delta = update.up[0] @ update.down[0]  # (V, C)
        losses = []
        for row in padded:
            mask = torch.tensor([[int(i != 0) for i in row]])
            out = backbone.lm(input_ids=torch.tensor([row]), attention_mask=mask, output_hidden_states=True)
            logits = out.logits[0] + out.hidden_states[-1][0] @ delta.T  # (T, V)
            if row[-1] != 0:  # the target is the token at the same position
                losses.append(float(torch.logsumexp(logits[-1], 0) - logits[-1, row[-1]]))
        batch_means.append(sum(losses) / len(losses))
    return sum(batch_means) / len(batch_means)


@pytest.mark.parametrize("kind", ["lora", "hyper"])
@torch.no_grad()
def test_the_released_objective_agrees_with_a_slow_loop(double_tiny, kind):
    table, head = table_of(ROWS), head_of(kind, double_tiny)
    weight = HeadWeight(double_tiny.head.weight, dtype=torch.float64)
    vectors = mean_embeddings(table, double_tiny.embedding, span="padded", length=LENGTH).double()
    sums, counts = [], []
    for batch in BATCHES:
        ids, _ = table.padded(batch, LENGTH)
        hidden = double_tiny.hidden(ids, released_mask(ids).long())
        update = head.factors(Condition(vectors[batch].mean(0, keepdim=True)))
        row, column, target = pick_last(ids)
        sums.append(head_losses(hidden[row, column], target, weight, [update])[0])
        counts.append(len(row))
    batches = [torch.tensor([i]) for i in range(len(BATCHES))]
    ours = float(average(torch.stack(sums), torch.tensor(counts), "batch", batches))
    assert ours == pytest.approx(slow_released_loss(double_tiny, head), abs=1e-6)


def count(hidden, target, row):
    return torch.bincount(row, minlength=len(ROWS)).double()


def test_which_positions_count():
    table = table_of(ROWS)
    ids, mask = table.padded(range(len(ROWS)), LENGTH)
    hidden = torch.zeros(*ids.shape, 1)
    prefix = torch.tensor([2, 1, 1, 1, 1, 5])
    assert released_last(hidden, ids, count)[0].tolist() == [
        1,
        1,
        1,
        0,
        1,
        1,
    ]  # padding counts, id 0 does not

    assert pick_last(ids, mask)[0].tolist() == [0, 3, 5]  # full rows alone
    assert pick_last(ids, mask)[1].tolist() == [LENGTH - 1] * 3
    row, _, _ = next_token_pairs(ids, mask, prefix)
    assert row.bincount(minlength=len(ROWS)).tolist() == [4, 2, 4, 5, 0, 1]


def test_next_token_predicts_the_token_after_the_state():
    ids, mask = torch.tensor([[4, 5, 6, 256]]), torch.tensor([[True, True, True, False]])
    _, column, target = next_token_pairs(ids, mask, torch.tensor([1]))
    assert column.tolist() == [0, 1] and target.tolist() == [5, 6]
