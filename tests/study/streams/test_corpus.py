"""The stream's documents: every source where it belongs, near-duplicates in one part."""

import json
from collections import defaultdict

import numpy as np
import pytest

from chameleon_lite.errors import UserError
from chameleon_study.streams.corpus import ARTICLES, INSTRUCTIONS, stream_corpus

WORDS = (
    "stone river cloud paper light wheel table green seven garden window market silver quiet north".split()
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with Alpaca's and WikiText's files, small, and the corpus of it."""
    folder, numbers = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def sentence():
        return " ".join(numbers.choice(WORDS, size=20))

    rows = [{"instruction": f"Say {i} {sentence()}", "output": sentence()} for i in range(60)]
    rows += [{"instruction": f"Say {i} again", "output": rows[i]["output"] + " and more"} for i in range(10)]
    (folder / "alpaca").mkdir()
    (folder / "alpaca" / "alpaca.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "wikitext-2").mkdir()
    for split in ("validation", "test"):
        lines = []
        for article in range(15):
            lines += [
                f" = {split} {article} = ",
                "",
                *(f" {sentence()} . " for _ in range(3)),
                " = = History = = ",
                "",
            ]
        (folder / "wikitext-2" / f"{split}.txt").write_text("\n".join(lines))
    return folder, stream_corpus(folder, libraries=["typer"], others=["jsonschema"])


def test_sources_lie_where_they_belong(made):
    parts = made[1].splits
    known = {INSTRUCTIONS, ARTICLES, "typer", "python"}
    assert {d.group for name in ("stream", "tuning", "train") for d in parts[name]} == known
    assert {d.group for d in parts["other"]} == {"jsonschema"}
    assert len(parts["stream"]) > max(len(parts["tuning"]), len(parts["train"])) > 0
    assert all(d.prompt for d in parts["stream"] if d.group == INSTRUCTIONS)
    names = [d.id for rows in parts.values() for d in rows]
    assert len(names) == len(set(names))


def test_near_duplicates_and_articles_are_in_one_part(made):
    where = defaultdict(set)
    for name, rows in made[1].splits.items():
        for d in rows:
            if d.group == ARTICLES:
                where[d.id.rpartition("/")[0]].add(name)
            if d.group == INSTRUCTIONS:
                where[" ".join(d.text.split()[:20])].add(name)
    assert len(where) == 30 + 60 and all(len(parts) == 1 for parts in where.values())


def test_the_same_data_give_the_same_parts_and_a_missing_library_is_named(made):
    folder, corpus = made
    assert stream_corpus(folder, libraries=["typer"], others=["jsonschema"]).hash == corpus.hash
    assert stream_corpus(folder, libraries=["typer"], others=["jsonschema"], seed=1).hash != corpus.hash
    with pytest.raises(UserError, match="no_such_library"):
        stream_corpus(folder, libraries=["no_such_library"], others=[])
