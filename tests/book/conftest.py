"""Helpers of the book's tests: the repository's root, its notebooks, and the book's tools as modules."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def book_tools():
    """`book/execute.py` and `book/build.py`, which are scripts beside the pages and not part of the package."""
    pytest.importorskip("papermill", reason="the extra `book` is not installed")
    found = {}
    for name in ("execute", "build"):
        spec = importlib.util.spec_from_file_location(name, ROOT / "book" / f"{name}.py")
        found[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found[name])
    yield found
    for name in found:
        del sys.modules[name]


def pytest_generate_tests(metafunc):
    """A test that takes `notebook_path` runs once for every notebook of the repository."""
    if "notebook_path" in metafunc.fixturenames:
        paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
        metafunc.parametrize("notebook_path", paths, ids=[p.stem for p in paths])
