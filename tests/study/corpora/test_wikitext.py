import pytest

from chameleon_lite.errors import UserError
from chameleon_study.corpora import load_corpus
from chameleon_study.corpora.hub import articles

# Written for this test in the data set's manner.
SAMPLE = """ \n = The Tin Lighthouse = \n \n The lighthouse was built of tin by a <unk> who disliked stone . \n
 = = History = = \n \n It fell over twice . The height is given by \n = 3 <unk> and h = \n 3 metres . \n
 = Ada Quill = \n \n Ada Quill invented the folding spoon . \n \n = = = Spoons = = = \n \n Seven are known . \n"""


def test_a_level_one_heading_begins_an_article():
    documents = articles(SAMPLE.split("\n"), "toy")
    assert [d.group for d in documents] == ["toy-1: The Tin Lighthouse"] * 6 + ["toy-2: Ada Quill"] * 4
    assert documents[0].text == " = The Tin Lighthouse = " and documents[4].text == " = 3 <unk> and h = "
    assert [d.id for d in documents] == [f"toy-{i}" for i in range(10)]


@pytest.fixture
def folder(tmp_path):
    for split in ("validation", "test"):
        (tmp_path / f"{split}.txt").write_text(SAMPLE.replace("Tin", split), encoding="utf-8")
    return tmp_path


def test_lite_takes_training_from_test_and_halves_validation(folder):
    corpus = load_corpus("wikitext-2-lite", data_dir=folder)
    groups = {split: {d.group for d in part} for split, part in corpus.splits.items()}
    assert groups["train"] == {"test-1: The test Lighthouse", "test-2: Ada Quill"}
    assert groups["validation"] == {"validation-1: The validation Lighthouse"}
    assert groups["test"] == {"validation-2: Ada Quill"}
    assert corpus.notes["split"].startswith("lite: training is the official test rows")


def test_as_released_all_validation_rows_are_the_validation_set(folder):
    corpus = load_corpus("wikitext-2-lite-released", data_dir=folder)
    assert {split: len(part) for split, part in corpus.splits.items()} == {
        "train": 10,
        "validation": 10,
        "test": 0,
    }


def test_the_folder_may_be_given_by_its_parent(folder, tmp_path):
    inside = tmp_path / "wikitext-2"
    inside.mkdir()
    for split in ("validation", "test"):
        (folder / f"{split}.txt").rename(inside / f"{split}.txt")
    assert len(load_corpus("wikitext-2-lite", data_dir=tmp_path).splits["train"]) == 10


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(UserError, match="no train.txt; add it, or use the corpus wikitext-2-lite"):
        load_corpus("wikitext-2", data_dir=folder)
    (folder / "test.txt").unlink()
    with pytest.raises(UserError, match="has no test.txt"):
        load_corpus("wikitext-2-lite", data_dir=folder)
    with pytest.raises(UserError, match="no folder at"):
        load_corpus("wikitext-2-lite", data_dir=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"a\nb\nc\0d\n", "validation.txt, line 3 holds a NUL"),
        (b"a\n\xff\n", "validation.txt is not UTF-8 .byte 2"),
    ],
)
def test_a_file_that_is_no_text_is_named_with_its_line(folder, content, named):
    (folder / "validation.txt").write_bytes(content)
    with pytest.raises(UserError, match=named):
        load_corpus("wikitext-2-lite", data_dir=folder)


def test_a_byte_order_mark_is_no_text(folder):
    before = load_corpus("wikitext-2-lite", data_dir=folder)
    for split in ("validation", "test"):
        path = folder / f"{split}.txt"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_corpus("wikitext-2-lite", data_dir=folder).hash == before.hash
