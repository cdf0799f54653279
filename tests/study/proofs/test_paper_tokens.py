"""The paper's own tokens: the predictor without a model by hand, averages over batches, a proof of small text."""

import json
import math

import pytest
import torch

from chameleon_lite.app.rows import parse
from chameleon_lite.backbones import gpt2_tokenizer
from chameleon_lite.text import Document, TokenTable, cumulative
from chameleon_study.claims.paper import published
from chameleon_study.provenance import placeless
from chameleon_study.released.prepare import released_batches, released_clusters
from chameleon_study.released.proofs import prove_all, scoring
from chameleon_study.released.proofs.store import load_proofs, store_proofs
from chameleon_study.released.proofs.subject import Subject


@pytest.fixture
def small_tokenizer(tmp_path, monkeypatch):
    """GPT-2's files replaced by a vocabulary of bytes, under the own cache that `released_settings` sets."""
    from tokenizers import pre_tokenizers

    folder = tmp_path / "home" / "gpt2-tokenizer"
    folder.mkdir(parents=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {t: i for i, t in enumerate([*letters, "Ġa", gpt2_tokenizer.END])}
    (folder / "encoder.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "vocab.bpe").write_text("#version: 0.2\nĠ a\n", encoding="utf-8")
    sums = {name: gpt2_tokenizer.files.sha256(folder / name) for name in gpt2_tokenizer.SHA256}
    monkeypatch.setattr(gpt2_tokenizer, "SHA256", sums)


def table_of(rows):
    span = torch.tensor([[0, 1]] * len(rows)).int().numpy()
    ids = torch.tensor([i for row in rows for i in row]).int().numpy()
    one = torch.ones(len(rows)).int().numpy()
    return TokenTable(ids, cumulative([len(row) for row in rows]), one, span, ("d",) * len(rows), ("",), one)


def test_padded_rows_are_free_full_ones_cost_their_token_and_the_ignored_id_is_left_out():
    table = table_of([[1, 2, 3], [1, 2], [1, 2, 0], [3], [5, 4, 2]])
    train = torch.tensor([2, 2, 2, 3, 5, 0])
    scored, full, nll = scoring.without_weights(table, 3, train, vocab=6)
    assert scored.tolist() == [True, True, False, True, True] and full.tolist() == [
        True,
        False,
        False,
        False,
        True,
    ]
    total = len(train) + 6 * 0.1
    by_hand = [-math.log(1.1 / total), 0, 0, 0, -math.log(3.1 / total)]
    assert nll.tolist() == pytest.approx(by_hand)


def test_rows_are_those_of_the_scripts():
    row = parse({"instruction": "Add", "input": "1 2", "output": "3"}, 1)
    alpaca = scoring.script_row(Document("1", row.text, prompt=row.prompt)).text
    assert alpaca == "### Instruction:\nAdd\n### Input:\n1 2\n### Response:\n3"
    assert scoring.script_row(Document("1", " = A = ")).text == " = A = \n"


def test_the_average_over_batches_by_hand(released_settings, monkeypatch):
    settings = released_settings("plain", {"preset": "as_released"})
    monkeypatch.setattr(scoring, "SEEDS", 3)
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    full = (torch.arange(40) % 3 == 0).double()
    scored = torch.arange(40) % 7 > 0
    full[~scored] = 0.0
    means = scoring.over_clusterings({"f": full}, x, scored, settings)["f"]
    for seed in range(3):
        labels = released_clusters(x, 5, seed=seed).labels
        shares = []
        for batch in released_batches(labels, 8, seed=seed):
            some = [full[i] for i in batch.tolist() if scored[i]]
            shares += [float(sum(some)) / len(some)] if some else []
        assert means[seed] == pytest.approx(sum(shares) / len(shares), abs=1e-12)
    assert means.nunique() == 3  # the clustering alone moves it


@pytest.mark.parametrize(("corpus", "table"), [("plain", 1), ("alpaca-like", 2)])
def test_a_proof_of_small_text(
    small_tokenizer, tiny_backbone, released_settings, monkeypatch, tmp_path, corpus, table
):
    monkeypatch.setattr(scoring, "SEEDS", 5)
    monkeypatch.setattr(scoring, "PAPERS", (corpus,))
    settings = released_settings(corpus, {"preset": "as_released"})
    subject = Subject(settings, tiny_backbone, settings.corpora[0])
    (proof,) = prove_all(subject, "test", ["paper_tokens"])
    assert "material" not in vars(subject)  # no states were computed
    n = proof.numbers
    assert (
        n["rows"] == n["full_rows"] + n["padded_rows"] + n["unscored_rows"] and 0 < n["full_rows"] < n["rows"]
    )
    assert n["model_free_loss_row_mean"] == pytest.approx(n["full_share"] * n["unigram_nll_of_full_rows"])
    assert n["model_free_min"] <= n["model_free_low"] <= n["model_free_mean"] <= n["model_free_high"]
    for regime in ("R0", "R1", "R4"):
        loss, f = published(table, regime, "validation_loss"), n["full_share_mean"]
        assert n[f"{regime}_published"] == loss
        assert f * n[f"{regime}_full_rows_if_padded_cost_0"] == pytest.approx(loss)
        assert (1 - f) * n[f"{regime}_padded_rows_if_full_cost_0"] == pytest.approx(loss)
        rest = (1 - f) * n[f"{regime}_padded_rows_if_full_cost_unigram"]
        assert rest + f * n["unigram_nll_of_full_rows"] == pytest.approx(loss)
    assert proof.data["hash"] == subject.texts.hash and proof.corpus == placeless(settings.corpora[0])
    store_proofs([proof.model_copy(update={"backbone": "smollm2"})], tmp_path)
    assert load_proofs(tmp_path)[0].numbers == n


def test_it_is_left_out_without_the_tokenizer_and_on_other_corpora(
    tiny_backbone, released_settings, monkeypatch
):
    settings, said = released_settings("plain", {"preset": "as_released"}), []
    subject = Subject(settings, tiny_backbone, settings.corpora[0], say=said.append)
    assert scoring.paper_tokens(subject) is None and not said
    monkeypatch.setattr(scoring, "PAPERS", ("plain",))
    assert scoring.paper_tokens(subject) is None and "fetch gpt2-tokenizer" in said[0]
