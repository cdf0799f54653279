"""The planted corpora: known losses by other code, prompts that give the group away, and a null without signal."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, entropy
from sklearn.metrics import adjusted_mutual_info_score

from chameleon_lite.cluster import fit_clusters
from chameleon_lite.embed import mean_embeddings
from chameleon_lite.text import tokenise
from chameleon_study.config import experiment_from
from chameleon_study.corpora import load_corpus
from chameleon_study.corpora.planted import DESIGNS, THEMES, distributions
from chameleon_study.regimes import RANK
from chameleon_study.run import run_experiment


@pytest.fixture(scope="module", params=DESIGNS)
def design(request):
    return request.param


@pytest.fixture(scope="module")
def corpora(design):
    """A corpus with a signal and the same without, as "signal" and "null"."""
    return {"signal": load_corpus(design), "null": load_corpus(f"{design}-null")}


class Words:
    """A tokenizer with one id for each word, as both vocabularies have for these."""

    is_fast = False

    def __init__(self):
        words = [*DESIGNS["planted"].markers, *(w for own in THEMES.values() for w in own)]
        self.number = {w: i for i, w in enumerate(words)}

    def __call__(self, texts, **options):
        return {"input_ids": [[self.number[w] for w in text.split()] for text in texts]}


def markers_by_group(corpus, split):
    counts = defaultdict(Counter)
    for d in corpus.splits[split]:
        counts[d.group].update(d.text.split())
    return counts


def test_as_many_documents_prompts_and_markers_as_promised(corpora, design):
    table, documents = tokenise(corpora["signal"].splits["train"], Words()), DESIGNS[design].documents
    assert len(table) == documents["train"] and table.dropped["shorter than prefix + scored"] == 0
    assert (table.prefix.min(), table.prefix.max()) == (16, 23)
    low, high = {"planted": (16, 24), "planted-few": (8, 12)}[design]
    assert (table.n_scored.min(), table.n_scored.max()) == (low, high)
    for split, count in documents.items():
        groups = Counter(d.group for d in corpora["signal"].splits[split])
        assert len(groups) == 16 and set(groups.values()) == {count // 16}


def test_as_few_markers_as_ranks():
    assert len(DESIGNS["planted-few"].markers) == RANK < len(DESIGNS["planted"].markers)
    assert set(DESIGNS["planted-few"].markers) < set(DESIGNS["planted"].markers)


def test_the_known_losses_by_other_code(corpora, design):
    markers, nats = DESIGNS[design].markers, {"planted": 1, "planted-few": 0.5}[design]
    p = {
        group: dict(zip(markers, row)) for group, row in zip(THEMES, distributions(DESIGNS[design]).tolist())
    }
    mean = {m: math.fsum(p[group][m] for group in THEMES) / len(THEMES) for m in markers}
    assert all(math.fsum(of.values()) == pytest.approx(1) for of in p.values())
    gain = entropy(list(mean.values())) - np.mean([entropy(list(of.values())) for of in p.values()])
    assert gain == pytest.approx(nats, abs=1e-9)
    for name, corpus in corpora.items():
        own = p if name == "signal" else dict.fromkeys(THEMES, mean)
        assert corpus.notes["mutual_information"] == pytest.approx(gain if own is p else 0, abs=1e-9)
        for split in DESIGNS[design].documents:
            counts = markers_by_group(corpus, split)
            pairs = [(of, m, n) for of, row in counts.items() for m, n in row.items()]
            total = sum(n for _, _, n in pairs)
            for note, used in (("marginal_nll", dict.fromkeys(THEMES, mean)), ("conditional_nll", own)):
                nll = math.fsum(-n * math.log(used[of][m]) for of, m, n in pairs) / total
                assert corpus.notes[note][split] == pytest.approx(nll, abs=1e-9)


def test_markers_depend_on_the_group_in_one_corpus_and_not_in_the_other(corpora, design):
    markers, chances = DESIGNS[design].markers, {}
    for name, corpus in corpora.items():
        counts = markers_by_group(corpus, "train")
        chances[name] = chi2_contingency([[counts[g][m] for m in markers] for g in sorted(counts)]).pvalue
    assert chances["signal"] < 1e-100 and chances["null"] > 0.01


def test_both_have_the_same_prompts_and_lengths(corpora):
    both = [[(d.prompt, len(d.text.split())) for d in c.splits["test"]] for c in corpora.values()]
    assert both[0] == both[1]


def test_clusters_of_mean_embeddings_are_the_groups(corpora):
    table = tokenise(corpora["signal"].splits["test"], Words())
    weight = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    labels = fit_clusters(mean_embeddings(table, weight), 16, seed=0).labels
    assert adjusted_mutual_info_score(table.groups, labels.numpy()) > 0.95


def test_the_same_again_and_another_seed_is_another_corpus(corpora, design):
    assert load_corpus(design).hash == corpora["signal"].hash
    assert load_corpus(design, seed=1).hash != corpora["signal"].hash != corpora["null"].hash


def test_a_record_carries_the_known_losses(corpora, design, tmp_path):
    data = {"max_train_tokens": 4_000, "max_validation_documents": 8, "max_test_documents": 8}
    raw = {"name": "x", "regimes": ["R0"], "seeds": 1, "data": data, "clusters": {"batch_rows": 8}}
    settings = experiment_from(raw | {"tokens": {"max_length": 64}}, backbone="tiny", corpora=(design,))
    (record,) = run_experiment(settings, runs=tmp_path, command="test")
    for note in ("marginal_nll", "conditional_nll"):
        assert record.data["notes"][note]["test"] == corpora["signal"].notes[note]["test"]
