import numpy as np
import pytest
import torch
import torch.nn.functional as F

from chameleon_bench import baselines
from chameleon_bench.workload import random_table, row_lengths, texts, trained_tokenizer
from chameleon_lite.embed import mean_embeddings
from chameleon_lite.text import Document, tokenise


def test_row_lengths_are_like_those_of_the_corpus_they_stand_for():
    lengths = row_lengths(20_000)
    assert lengths.min() >= 4 and lengths.max() == 256
    assert 0.35 < lengths.mean() / 256 < 0.41
    assert 0.04 < (lengths == 256).mean() < 0.08


def test_preparing_one_by_one_is_what_ours_does_at_once():
    words, tokenizer = texts(20), trained_tokenizer(1_000)
    embedding, positions = torch.randn(len(tokenizer), 12), torch.randn(256, 12)
    ids, vectors = baselines.prepare_one_by_one(words, tokenizer, embedding, positions, 256)
    table = tokenise(
        [Document(str(i), w) for i, w in enumerate(words)], tokenizer, prefix_tokens=1, min_scored=1
    )
    assert torch.equal(ids, table.padded(range(20), 256)[0])
    assert torch.allclose(vectors, mean_embeddings(table, embedding, span="padded", length=256), atol=1e-6)


def test_labels_of_padded_rows_are_the_tables_targets():
    table = random_table(np.array([5, 9, 4]), vocab=50, pad_id=7)
    ids, labels = baselines.padded_rows(table, 12, torch.device("cpu"))
    position, target, document = table.targets()
    assert labels[labels != baselines.IGNORED].tolist() == target.tolist()
    assert (labels != baselines.IGNORED).sum(1).tolist() == [4, 8, 3]
    assert ids[1, :9].tolist() == table.ids[5:14].tolist()
    last = random_table(np.array([5, 9, 4]), vocab=50, pad_id=7, last=True)
    assert (baselines.padded_rows(last, 12, torch.device("cpu"))[1] != baselines.IGNORED).sum(1).tolist() == [
        1,
        1,
        1,
    ]


def test_kmeans_by_loop_keeps_the_centroid_of_an_empty_cluster():
    x = torch.tensor([[0.0], [1.0], [10.0]])
    centroids = baselines.kmeans_by_loop(x, torch.tensor([[0.0], [9.0], [100.0]]), 3)
    assert centroids.tolist() == [[0.5], [10.0], [100.0]]


def test_the_concatenation_has_the_same_logits():
    h, weight, down, up = torch.randn(6, 16), torch.randn(30, 16), torch.randn(4, 16), torch.randn(30, 4)
    wide, matrix = baselines.concatenated(h, weight, down, up)
    assert wide.shape[1] % 8 == 0
    assert torch.allclose(wide @ matrix.T, h @ weight.T + (h @ down.T) @ up.T, atol=1e-5)
    target = torch.randint(30, (6,))
    plain = baselines.plain_head_loss(h, target, weight, down, up)
    assert float(plain) == pytest.approx(
        float(F.cross_entropy(wide @ matrix.T, target, reduction="sum")), rel=1e-5
    )
