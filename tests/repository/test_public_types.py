"""Type checkers see the public names that exist, and the file that they check runs."""

import ast
import re

import pytest

import chameleon_lite

from . import typed_use
from .counts import CORE, ROOT


def test_the_stub_names_every_public_name_from_its_file():
    tree = ast.parse((CORE / "__init__.pyi").read_text(encoding="utf-8"))
    seen = {a.asname: (n.module, a.name) for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert set(seen) == set(chameleon_lite.__all__)
    for name, (module, original) in seen.items():
        assert name == original and (name == "engine" or module == chameleon_lite._FILE[name])
    assert (CORE / "py.typed").exists()


def test_the_checked_file_runs(tmp_path):
    update = typed_use.update_of(["rows and columns of a table", "a boat on the open sea at night"], "tiny")
    assert update.down.shape[0] == update.up.shape[0] == 1
    with pytest.raises(chameleon_lite.errors.UserError):
        typed_use.load(tmp_path)


def test_hooks_and_lint_check_the_same():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    (lint,) = re.findall(r"^lint:.*\n\t@(.*)", (ROOT / "Makefile").read_text(), re.M)
    for tool in ("ruff check", "ruff format", "codespell", "python tests/repository/prose.py"):
        assert f"entry: {tool}" in hooks and f"$(BIN)/{tool}" in lint


def test_contributing_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z]+)", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
    for path in re.findall(r"`([\w.]+/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
    for name in ("paper.json", "rules.yaml"):
        assert name in text and (ROOT / "chameleon_study" / "claims" / name).exists()
