"""The proofs on the tiny backbone, their parts by hand, and what may be stored of them."""

import math

import pytest
import torch

from chameleon_lite.errors import UserError
from chameleon_lite.heads import Condition, HyperHead
from chameleon_study.claims.paper import published
from chameleon_study.corpora import load_corpus
from chameleon_study.prepare import prepare, seed_material
from chameleon_study.released.proofs import PROOFS, prove_all, training
from chameleon_study.released.proofs.clustering import first_component, implied_shares
from chameleon_study.released.proofs.scoring import call_as_released, unigram_nll
from chameleon_study.released.proofs.store import checks_frame, load_proofs, store_proofs, stored_sentences
from chameleon_study.released.proofs.subject import Subject
from chameleon_study.released.proofs.training import rebuilt
from chameleon_study.sources import mean_cosine


@pytest.fixture(scope="module")
def proved():
    """Proofs by corpus and protocol: no test changes them, and most take those of plain text."""
    return {}


@pytest.fixture
def proofs_of(tiny_backbone, released_settings, proved):
    def make(corpus, **protocol):
        key = (corpus, repr(protocol))
        if key not in proved:
            settings = released_settings(corpus, {"preset": "as_released", **protocol})
            subject = Subject(settings, tiny_backbone, settings.corpora[0])
            names = [
                name for name in PROOFS if name != "architectures"
            ]  # a test of its own fits several models
            proved[key] = prove_all(subject, "test", names)
        return {p.proof: p for p in proved[key]}

    return make


def test_all_but_one_on_instructions(proofs_of):
    found = proofs_of("alpaca-like", switches={"initialisation": "alpaca"})
    # these need a tokenizer of its own, the honest protocol, and other models
    others = {"paper_tokens", "study_clusters", "architectures"}
    assert len(PROOFS) == 15 and set(PROOFS) - set(found) == others
    for proof in found.values():
        assert proof.shows.endswith(".") and "{" not in proof.shows and proof.audit and proof.where
        assert all(math.isfinite(value) for value in proof.numbers.values()), proof.proof
    assert found["decomposition"].numbers["largest_error_of_the_identity"] < 1e-9
    assert found["alpaca_overlap"].numbers["as_released_rows_also_trained_on"] == 1.0
    assert found["full_mode"].numbers["fails"] == 1.0
    counts = found["untouched_layers"].numbers
    assert (counts["gpt2_linear_modules"], counts["gpt2_conv1d_modules"]) == (0, 48)
    assert counts["head_LoRA_parameters"] == counts["published_LoRA_parameters"] == 204_100
    assert counts["hyper_network_parameters"] == counts["published_hyper_network_parameters"] == 6_786_596
    assert counts["layer_LoRA_parameters"] == 589_824
    bank = found["adapter_bank"].numbers
    assert bank["stored_adapters"] == 33 and bank["relative_error"] < 1e-6
    vectors = found["instruction_vectors"].numbers
    assert vectors["padded_mean_cosine"] > vectors["unpadded_mean_cosine"]


def test_plain_text_leaves_out_what_needs_instructions(proofs_of):
    found = proofs_of("plain")
    assert set(PROOFS) - set(found) == {
        "instruction_vectors",
        "alpaca_overlap",
        "paper_tokens",
        "study_clusters",
        "architectures",
    }
    numbers = found["length_clusters"].numbers
    assert numbers["padded_length_variance_explained"] > numbers["unpadded_length_variance_explained"]
    spread = found["clustering_spread"].numbers
    assert spread["R1_min"] < spread["R1_mean"] < spread["R1_max"]
    assert "published_frozen_inside_spread" not in spread  # the published number is GPT-2's


def test_unigram_and_cosine_by_hand():
    nll = unigram_nll(torch.tensor([1, 1, 2]), torch.tensor([1, 0]), vocab=3, added=0.5)
    assert nll.tolist() == pytest.approx([-math.log(2.5 / 4.5), -math.log(0.5 / 4.5)])
    x = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [1, 1], [0, 1]]), dim=1)
    assert mean_cosine(x) == pytest.approx((2 * math.sqrt(0.5) + 0) / 3)


def test_first_component_finds_length():
    values = torch.arange(30.0)
    x = torch.stack([values, 0.01 * torch.randn(30, generator=torch.Generator().manual_seed(0))], 1)
    share, correlation = first_component(x, values.numpy())
    assert share > 0.99 and correlation == pytest.approx(1)


@pytest.mark.parametrize("initialisation", ["wikitext", "alpaca"])
@torch.no_grad()
def test_factors_are_a_gated_sum_of_33_stored_pairs(initialisation):
    torch.manual_seed(0)
    head = HyperHead(16, 50, released_init=initialisation).double().eval()
    error, cross = rebuilt(head, Condition(torch.randn(3, 16).double()))
    assert error < 1e-12
    assert cross > 1e-3  # blending updates is another function: a bank by storage only


def test_the_call_of_mode_full_fails():
    assert "IndexError" in call_as_released()


def test_smoke_and_random_weights_are_not_kept(proofs_of, tmp_path):
    (proof,) = [p for name, p in proofs_of("plain").items() if name == "padding_share"]
    with pytest.raises(UserError, match="whose weights are random"):
        store_proofs([proof], tmp_path)
    real = proof.model_copy(update={"backbone": "smollm2"})
    with pytest.raises(UserError, match="smoke profile: shown, never kept"):
        store_proofs([real.model_copy(update={"profile": "smoke"})], tmp_path)
    with pytest.raises(UserError, match="is not finite"):
        store_proofs([real.model_copy(update={"numbers": {"x": math.nan}})], tmp_path)


def test_stored_proofs_replace_those_of_the_same_key(proofs_of, tmp_path):
    (proof,) = [p for name, p in proofs_of("plain").items() if name == "padding_share"]
    first = proof.model_copy(update={"backbone": "smollm2"})
    other = first.model_copy(update={"corpus": "another"})
    store_proofs([first, other], tmp_path)
    store_proofs([first.model_copy(update={"shows": "again."})], tmp_path)
    kept = load_proofs(tmp_path)
    assert sorted(p.shows == "again." for p in kept) == [False, True]
    assert all(p.numbers == first.numbers for p in kept)


def test_early_checks_of_the_paper_of_what_is_stored_and_of_this_run(proofs_of):
    found = proofs_of("plain")
    other = [p.model_copy(update={"corpus": "elsewhere"}) for p in found.values()]
    foreign = [p.model_copy(update={"backbone": "another"}) for p in found.values()]
    frame = checks_frame(found, [*other, *foreign], vocab=100)
    assert list(frame.columns)[0] == "published, Table 1" and list(frame.columns)[-1] == "this run"
    assert len(frame.columns) == 3 and frame.iloc[:, 1].equals(frame.iloc[:, 2].rename(frame.columns[1]))
    expected = published(1, "R0", "validation_loss") - math.log(50_257)
    assert (
        frame.iloc[0, 0] == pytest.approx(expected, abs=1e-3)
        and frame.loc["loss without a model"].iloc[0] == "–"
    )
    untrained = found["clustering_spread"].numbers["R0_mean"] - math.log(100)
    assert frame.iloc[0, -1] == pytest.approx(untrained, abs=1e-3)


def test_a_proof_without_a_record_says_so(proofs_of):
    says = stored_sentences(list(proofs_of("plain").values()), PROOFS)
    assert set(says) == set(PROOFS) and says["alpaca_overlap"] == "not measured yet."
    assert says["full_mode"].startswith("(") and "of bounds;" in says["full_mode"]


def test_equal_sentences_are_said_once_with_every_corpus_and_length(proofs_of):
    (proof,) = [p for name, p in proofs_of("plain").items() if name == "padding_share"]
    longer = proof.model_copy(update={"settings": {"tokens": {"max_length": 999}}})
    other = longer.model_copy(update={"corpus": "elsewhere", "shows": "Nothing."})
    says = stored_sentences([proof, longer, other], ["padding_share"])["padding_share"]
    assert says.count(proof.shows) == 1 and f"; {proof.corpus}, 999 tokens)" in says
    assert says.endswith("(elsewhere, 999 tokens) Nothing.")


def test_the_share_that_stored_losses_imply_is_the_measured_one(proofs_of):
    found = proofs_of("plain")
    numbers = found["kmeans_start"].numbers
    assert 0 <= numbers["ten_steps_full_share"] <= 1 and 0 <= numbers["plusplus_full_share"] <= 1
    parts = found["decomposition"].numbers
    full, padded = parts["R1_full_rows"], parts["R1_padded_rows"]
    f = (numbers["plusplus_R1_loss"] - padded) / (full - padded)
    says = implied_shares(list(found.values()))
    assert says["plusplus"].startswith(f"{f:.3f} (") and implied_shares([])["ten_steps"] == "not measured yet"


def test_clusters_of_the_honest_study_are_those_of_its_runs(tiny_backbone, small):
    settings = small(["R0"], seeds=2)
    corpus = load_corpus(settings.corpora[0])
    (proof,) = prove_all(Subject(settings, tiny_backbone, settings.corpora[0]), "test", ["study_clusters"])
    material = prepare(settings, tiny_backbone, corpus)
    for seed in range(2):
        for name, value in seed_material(settings, material, seed).quality.items():
            if name != "sizes" and value is not None:
                assert proof.numbers[f"seed{seed}_{name}"] == value
    assert "rows lie in clusters of fewer than four" in proof.shows


def test_kinds_of_model_that_a_head_is_built_on(tiny_backbone, small, monkeypatch):
    kinds = {kind: training.KINDS[kind] for kind in ("gpt_neo", "llama")}
    monkeypatch.setattr(training, "KINDS", kinds)
    settings = small(["R0"], seeds=1)
    subject = Subject(settings, tiny_backbone, settings.corpora[0])
    (proof,) = prove_all(subject, "test", ["architectures"])
    assert proof.numbers == {"kinds": 2.0, "built": 2.0, "released_built": 1.0}
    assert proof.shows.endswith("(gpt_neo).")
    # at a rate of almost nothing the head lowers no loss
    monkeypatch.setattr(training, "SETTINGS", training.SETTINGS.model_copy(update={"learning_rate": 1e-9}))
    (proof,) = prove_all(subject, "test", ["architectures"])
    assert proof.numbers["built"] == 0.0
