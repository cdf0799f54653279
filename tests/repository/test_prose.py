"""The linter of the prose sees what its word list is for, and nothing in what stands beside it."""

import json

import pytest

pytest.importorskip("proselint", reason="the extra `dev` is not installed")
from . import prose

RULES = prose.patterns()


@pytest.mark.parametrize(("rule", "pattern"), RULES, ids=[rule["write"][:20] for rule, _ in RULES])
def test_a_rule_finds_the_bad_and_leaves_the_good(rule, pattern):
    assert rule["bad"] and rule["good"]
    assert [text for text in rule["bad"] if not pattern.search(text)] == []
    assert [text for text in rule["good"] if pattern.search(text)] == []


def test_pages_notebooks_and_docstrings_are_read(tmp_path):
    page, book, module = tmp_path / "a.md", tmp_path / "b.ipynb", tmp_path / "c.py"
    page.write_text(
        "# About `fit`\n\nIt takes 3 ms a step.\n\n```\n3 ms a step\n```\nSo `the data says` hello.\n"
    )
    cells = [
        ("markdown", "The data\ntells us a more unique thing."),
        ("code", "show(f'in all {n} tokens a row are read')\n%magic"),
    ]
    book.write_text(json.dumps({"cells": [{"cell_type": kind, "source": [text]} for kind, text in cells]}))
    module.write_text('"""Nothing."""\n\n\ndef f():\n    """Whilst it runs."""\n')
    prose.register()
    found = [f for path in (page, book, module) for f in prose.findings(path, RULES, prose.config())]
    assert [finding.partition(": write")[0] for finding in found] == [
        "a.md: '3 ms a step'",
        "a.md: '# About `fit`'",
        "b.ipynb cell 0: 'data\\ntells'",
        "b.ipynb cell 0, line 2: uncomparables: Comparison of an uncomparable: 'more unique' is not comparable.",
        "b.ipynb cell 1 (code): '7 tokens a row'",
        "c.py: 'Whilst'",
    ]


def test_a_check_of_proselint_is_switched_off_by_a_name_that_exists():
    prose.register()
    paths = {check.path for check in prose.CheckRegistry().checks}
    assert set(prose.WORDS["proselint_off"]) <= paths and all(prose.WORDS["proselint_off"].values())
