from functools import cache
from pathlib import Path

import pytest

from chameleon_lite.app.own_texts import write_jsonl
from chameleon_lite.errors import UserError
from chameleon_study.corpora import docstrings, load_corpus
from chameleon_study.corpora.docstrings import IDENTIFIER, LIBRARIES, MORE, build, read_by, to_install


@pytest.fixture(autouse=True, scope="module")
def read_once():
    """What a source says is kept for the next corpus that reads the library: most of the time is Python's parser's."""
    with pytest.MonkeyPatch.context() as patch:
        of_source = docstrings._of_source
        patch.setattr(docstrings, "_of_source", cache(lambda source: tuple(of_source(source))))
        yield


@pytest.fixture(scope="module")
def paragraphs():
    return build(libs=("matplotlib",))


def everything(corpus):
    return [d for part in corpus.splits.values() for d in part]


def test_real_prose_in_real_amounts(paragraphs):
    documents = everything(paragraphs)
    groups = [d.group for d in documents]
    assert set(groups) == {"matplotlib", "python"}
    assert groups.count("matplotlib") > 1_000 and groups.count("python") > 400
    assert len({d.id for d in documents}) == len(documents)
    assert paragraphs.notes["versions"].keys() == {"matplotlib", "python"}


def test_names_are_public_and_near_copies_dropped(paragraphs):
    documents = everything(paragraphs)
    assert not [
        d.id for d in documents if any(part.startswith("_") for part in d.id.split("#")[0].split("."))
    ]
    masks = [IDENTIFIER.sub("#", d.text).lower() for d in documents]
    assert len(set(masks)) == len(masks)


def test_no_held_out_document_is_near_one_in_training(paragraphs):
    assert set(paragraphs.notes["overlap"]) == {"validation", "test"}
    assert max(paragraphs.notes["overlap"].values()) < 0.01


def test_instructions_ask_for_a_name():
    corpus = build("instructions", libs=("matplotlib",))
    by_name = {d.id: d for d in everything(corpus)}
    one = by_name["matplotlib.figure.Figure.savefig"]
    assert (
        one.prompt == "Explain `matplotlib.figure.Figure.savefig`.\n\n"
        and one.instruction == one.prompt.strip()
    )
    assert by_name["python.lambda"].instruction == "Explain `lambda` in Python."
    assert max(len(d.text) for d in by_name.values()) < 4_000


def test_the_same_in_another_process_and_the_library_is_not_imported(paragraphs, machine, tmp_path):
    code = (
        "import sys; from chameleon_study.corpora.docstrings import build; c = build(libs=('matplotlib',));"
        "print(c.hash, 'matplotlib' in sys.modules)"
    )
    machine.whole(code, tmp_path)
    assert machine.log.read_text().split() == [paragraphs.hash, "False"]


def test_the_large_corpus_reads_more_of_the_books_own_environment():
    pins = Path(__file__).parents[3].joinpath("constraints.txt").read_text().lower().replace("_", "-")
    assert read_by("large")[: len(LIBRARIES)] == read_by("paragraphs") == tuple(LIBRARIES)
    for lib in MORE:  # so that the text is the same wherever these versions are
        assert f"\n{to_install(lib).lower().replace('_', '-')}==" in pins, lib
    corpus = build("large", libs=("typer", "umap"))
    assert corpus.name == "docstrings-large" and corpus.source.startswith(
        "docstrings of 2 packages as installed"
    )
    assert {d.group for d in everything(corpus)} == {"typer", "umap", "python"}
    assert set(corpus.notes["versions"]) == {"typer", "umap", "python"}


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(docstrings.LIBRARIES, "no_such_library", "no-such-library")
    with pytest.raises(
        UserError, match="no-such-library, which is not installed: pip install no-such-library"
    ):
        build(libs=("no_such_library",))


def test_functions_documented_from_outside_and_re_exports():
    names = {name for _, name, _ in docstrings._docstrings(("numpy",))}
    assert {"numpy.mean", "numpy.linalg.norm"} <= names
    assert {
        "numpy.arange",
        "numpy.ndarray.sort",
    } <= names  # compiled: the text is added by a call, not by a def


def test_the_whole_corpus_by_name_is_kept_and_read_back(monkeypatch, tmp_path):
    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(tmp_path))
    built = load_corpus("docstrings")
    groups = [d.group for d in everything(built)]
    assert set(groups) == {*docstrings.LIBRARIES, "python"} and min(map(groups.count, set(groups))) > 500
    (kept,) = (tmp_path / "corpora").glob("docstrings-*.jsonl")
    written = kept.stat().st_mtime_ns
    assert load_corpus("docstrings") == built and kept.stat().st_mtime_ns == written


def test_an_export_in_the_data_folder_is_read_instead(paragraphs, tmp_path):
    write_jsonl(paragraphs, tmp_path / "docstrings.jsonl")
    again = load_corpus("docstrings", data_dir=tmp_path)
    assert again.hash == paragraphs.hash and again.name == "docstrings"
