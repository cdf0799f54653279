import random

import pytest

from chameleon_lite.app.corpus import components, overlaps, split_documents
from chameleon_lite.errors import UserError
from chameleon_lite.text import Document

WORDS = [f"word{i}" for i in range(3_000)]


def sentence(seed, n=24):
    return " ".join(random.Random(seed).choices(WORDS, k=n))


def unrelated(n):
    return [Document(str(i), sentence(i)) for i in range(n)]


def test_half_of_the_shorter_ones_grams_links():
    base = sentence("base").split()  # 24 words, 17 grams
    texts = [
        " ".join(base),
        " ".join(base[:16] + WORDS[:8]),  # shares 9 of its 17 grams
        " ".join(base[:15] + WORDS[20:29]),  # shares 8 of 17: not half
        " ".join(base[9:20]),  # a short one, all of its 4 grams
        sentence("other"),
    ]
    component = components(texts).tolist()
    assert component[0] == component[1] == component[3]
    assert len({component[0], component[2], component[4]}) == 3


def test_short_texts_link_only_when_equal_but_for_case_and_marks():
    assert components(["See also.", "see ALSO", "see also this"]).tolist() == [0, 0, 1]


def test_links_are_followed():
    words = sentence("chain", 60).split()
    texts = [" ".join(words[i : i + 20]) for i in range(0, 41, 5)]  # each shares 8 of 13 with the next
    assert set(components(texts)) == {0}


def test_near_duplicates_stay_on_one_side():
    documents = unrelated(300)
    documents += [Document(f"{d.id}b", d.text + " and a little more") for d in documents[::3]]
    splits, notes = split_documents(documents)
    side = {d.id: name for name, part in splits.items() for d in part}
    assert all(side[i] == side[i.removesuffix("b")] for i in side)
    assert {name: len(part) for name, part in splits.items()} == {"train": 320, "validation": 40, "test": 40}
    assert notes == {
        "linked_documents": 200,
        "largest_component": 2,
        "overlap": {"validation": 0.0, "test": 0.0},
    }


def test_equal_keys_stay_on_one_side():
    documents = unrelated(100)
    splits, _ = split_documents(documents, keys=[i // 4 for i in range(100)])
    side = {int(d.id): name for name, part in splits.items() for d in part}
    assert all(side[i] == side[i - i % 4] for i in range(100))


def test_large_components_go_to_training():
    documents = unrelated(90) + [Document(f"x{i}", f"{sentence('x')} {i}") for i in range(10)]
    for seed in range(5):
        splits, _ = split_documents(documents, seed=seed)
        assert sum(d.id.startswith("x") for d in splits["train"]) == 10


def test_the_split_depends_on_texts_and_seed_alone():
    documents = unrelated(60)
    first = split_documents(documents)[0]
    again = split_documents(documents[::-1])[0]
    assert {n: set(part) for n, part in first.items()} == {n: set(part) for n, part in again.items()}
    assert first != split_documents(documents, seed=1)[0]


def test_overlap_counts_documents_found_in_training_by_half():
    base = sentence("base").split()
    held = (
        Document("half", " ".join(base[:16] + WORDS[:8])),
        Document("less", " ".join(base[:15] + WORDS[20:29])),
        Document("short", "too short to count"),
    )
    shares = overlaps({"train": (Document("t", " ".join(base)),), "validation": held, "test": ()})
    assert shares == {"overlap": {"validation": 0.5, "test": 0.0}}


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_to_split(n):
    with pytest.raises(UserError, match="too few distinct documents"):
        split_documents(unrelated(n))
    assert {k: len(v) for k, v in split_documents(unrelated(3))[0].items()} == {
        "train": 1,
        "validation": 1,
        "test": 1,
    }
