"""The style checks of `make lint`: what they find, and what is no prose."""

import pytest

pytest.importorskip("proselint", reason="the extra `dev` is not installed")
from .prose import findings, prose, register  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def checks():
    register()


@pytest.mark.parametrize(
    "text, found",
    [
        ("It costs 3 seconds a page.", "per or for each"),
        ("The table says that all is well.", "shows has is holds"),
        ("That is 5 less 3 nats.", "minus"),
        ("## The gain of R4", "a name instead of a code"),
        ("The the word is here twice.", "repeated"),
        ("It is very good.", "very"),
    ],
)
def test_what_is_found(text, found):
    assert any(found in line for line in findings("page", f"One line.\n{text}\n")), text
    assert findings("page", text)[0].startswith("page, line 1: ")


def test_code_formulas_and_links_are_no_prose():
    text = "A `very very` $very$ [link](https://very.example/very) and\n```\nvery\n```\n:width: very\n\n{abbr}`very`"
    assert findings("page", text) == []


def test_lines_are_counted_across_what_is_cut_out():
    assert findings("page", "```\ncode\n```\n\nIt is very good.")[0].startswith("page, line 5: ")


def test_every_kind_of_page_is_read():
    names = [name for name, _ in prose()]
    assert {"README.md", "book/index.md", "notebooks/00_answer.ipynb, cell 0"} <= set(names)
