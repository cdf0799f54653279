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
from chameleon_study.corpora.planted import DOCUMENTS, MARKERS, THEMES, distributions
from chameleon_study.run import run_experiment


@pytest.fixture(scope="module")
def corpora():
    return {name: load_corpus(name) for name in ("planted", "planted-null")}


class Words:
    """A tokenizer with one id for each word, as both vocabularies have for these."""

    is_fast = False

    def __init__(self):
        self.number = {w: i for i, w in enumerate([*MARKERS, *(w for own in THEMES.values() for w in own)])}

    def __call__(self, texts, **options):
        return {"input_ids": [[self.number[w] for w in text.split()] for text in texts]}


def markers_by_group(corpus, split):
    counts = defaultdict(Counter)
    for d in corpus.splits[split]:
        counts[d.group].update(d.text.split())
    return counts


def test_as_many_documents_prompts_and_markers_as_promised(corpora):
    table = tokenise(corpora["planted"].splits["train"], Words())
    assert len(table) == DOCUMENTS["train"] and table.dropped["shorter than prefix + scored"] == 0
    assert (table.prefix.min(), table.prefix.max()) == (16, 23)
    assert (table.n_scored.min(), table.n_scored.max()) == (16, 24)
    for split, count in DOCUMENTS.items():
        groups = Counter(d.group for d in corpora["planted"].splits[split])
        assert len(groups) == 16 and set(groups.values()) == {count // 16}


def test_the_known_losses_by_other_code(corpora):
    p = {group: dict(zip(MARKERS, row)) for group, row in zip(THEMES, distributions().tolist())}
    mean = {m: math.fsum(p[group][m] for group in THEMES) / len(THEMES) for m in MARKERS}
    assert all(math.fsum(of.values()) == pytest.approx(1) for of in p.values())
    gain = entropy(list(mean.values())) - np.mean([entropy(list(of.values())) for of in p.values()])
    assert gain == pytest.approx(1, abs=1e-9)
    for name, corpus in corpora.items():
        own = p if name == "planted" else dict.fromkeys(THEMES, mean)
        assert corpus.notes["mutual_information"] == pytest.approx(gain if own is p else 0, abs=1e-9)
        for split in DOCUMENTS:
            counts = markers_by_group(corpus, split)
            pairs = [(of, m, n) for of, row in counts.items() for m, n in row.items()]
            total = sum(n for _, _, n in pairs)
            for note, used in (("marginal_nll", dict.fromkeys(THEMES, mean)), ("conditional_nll", own)):
                nll = math.fsum(-n * math.log(used[of][m]) for of, m, n in pairs) / total
                assert corpus.notes[note][split] == pytest.approx(nll, abs=1e-9)


def test_markers_depend_on_the_group_in_one_corpus_and_not_in_the_other(corpora):
    chances = {}
    for name, corpus in corpora.items():
        counts = markers_by_group(corpus, "train")
        chances[name] = chi2_contingency([[counts[g][m] for m in MARKERS] for g in sorted(counts)]).pvalue
    assert chances["planted"] < 1e-100 and chances["planted-null"] > 0.01


def test_both_have_the_same_prompts_and_lengths(corpora):
    both = [[(d.prompt, len(d.text.split())) for d in c.splits["test"]] for c in corpora.values()]
    assert both[0] == both[1]


def test_clusters_of_mean_embeddings_are_the_groups(corpora):
    table = tokenise(corpora["planted"].splits["test"], Words())
    weight = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    labels = fit_clusters(mean_embeddings(table, weight), 16, seed=0).labels
    assert adjusted_mutual_info_score(table.groups, labels.numpy()) > 0.95


def test_the_same_again_and_another_seed_is_another_corpus(corpora):
    assert load_corpus("planted").hash == corpora["planted"].hash
    assert load_corpus("planted", seed=1).hash != corpora["planted"].hash != corpora["planted-null"].hash


def test_a_record_carries_the_known_losses(corpora, tmp_path):
    data = {"max_train_tokens": 4_000, "max_validation_documents": 8, "max_test_documents": 8}
    raw = {"name": "x", "regimes": ["R0"], "seeds": 1, "data": data, "clusters": {"batch_rows": 8}}
    settings = experiment_from(raw | {"tokens": {"max_length": 64}}, backbone="tiny", corpora=("planted",))
    (record,) = run_experiment(settings, runs=tmp_path, command="test")
    for note in ("marginal_nll", "conditional_nll"):
        assert record.data["notes"][note]["test"] == corpora["planted"].notes[note]["test"]
