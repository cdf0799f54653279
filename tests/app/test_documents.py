import json

import pytest

from chameleon_lite.app.corpus import Corpus
from chameleon_lite.app.own_texts import read_jsonl, write_jsonl
from chameleon_lite.errors import DamagedFile, UserError
from chameleon_lite.text import Document
from chameleon_study.corpora import load_corpus

DOCUMENTS = (
    Document("a", "Zwölf Boxkämpfer\njagen\u2028Viktor.", group="pangram"),
    Document("b", "yes", prompt="? ", instruction="?"),
)


def corpus_of(train=DOCUMENTS, name="toy"):
    splits = {"train": train, "validation": (Document("c", "held out"),), "test": ()}
    return Corpus(name, splits, "by hand", {"overlap": {"validation": 0.0}})


def test_counts():
    assert corpus_of().counts()["train"] == {"documents": 2, "characters": 33, "groups": 2}
    assert corpus_of().counts()["test"] == {"documents": 0, "characters": 0, "groups": 0}


def test_hash_is_of_the_documents_and_their_order():
    assert corpus_of().hash == corpus_of(name="other").hash
    assert corpus_of().hash != corpus_of(DOCUMENTS[::-1]).hash != corpus_of(DOCUMENTS[:1]).hash


def test_export_and_read_back(tmp_path):
    corpus = corpus_of()
    path = write_jsonl(corpus, tmp_path / "toy.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["toy.jsonl"]
    back = read_jsonl(path)
    assert back == corpus and back.hash == corpus.hash
    assert load_corpus(str(path)) == corpus


def test_damage_is_named(tmp_path):
    path = write_jsonl(corpus_of(), tmp_path / "toy.jsonl")
    whole = path.read_text(encoding="utf-8")
    for damaged in (whole.replace("jagen", "fangen"), whole[:-9], whole + "{}\n"):
        path.write_text(damaged, encoding="utf-8")
        with pytest.raises(DamagedFile, match="toy.jsonl is damaged"):
            read_jsonl(path)


@pytest.mark.parametrize(
    "part, other",
    [
        ('"by hand"', '"by head"'),
        ('"toy"', '"tOy"'),
        ('"validation": 0.0', '"validation": 0.5'),
        ('"notes": {', '"notes": {"more": 1, '),
        ('corpus": 2', 'corpus": 3'),
        ('corpus": 2', 'corpus": 0'),
        ('"seal"', '"sial"'),
        ('"name"', '"source": "x", "name"'),
    ],
)
def test_a_change_of_the_header_is_seen(tmp_path, part, other):
    path = write_jsonl(corpus_of(), tmp_path / "toy.jsonl")
    header, *rest = path.read_text(encoding="utf-8").split("\n")
    assert part in header
    path.write_text("\n".join([header.replace(part, other, 1), *rest]), encoding="utf-8")
    with pytest.raises(DamagedFile, match="toy.jsonl is damaged"):
        read_jsonl(path)


def test_an_export_of_before_the_header_had_a_checksum_is_read_as_ever(tmp_path):
    corpus = corpus_of()
    path = write_jsonl(corpus, tmp_path / "toy.jsonl")
    first, *rest = path.read_text(encoding="utf-8").split("\n")
    header = json.loads(first)
    assert header.pop("seal") and header["hash"] == corpus.hash
    old = json.dumps(header | {"chameleon_lite_corpus": 1}, ensure_ascii=False)
    path.write_text("\n".join([old, *rest]), encoding="utf-8")
    assert read_jsonl(path) == corpus


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(UserError, match="no file at"):
        read_jsonl(path)
    path.write_text(json.dumps({"text": "x"}))
    with pytest.raises(UserError, match="not an exported corpus"):
        read_jsonl(path)
