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
    """`book/build.py`, which is a script beside the pages and not part of the package, by its name."""
    pytest.importorskip("papermill", reason="the extra `book` is not installed")
    spec = importlib.util.spec_from_file_location("build", ROOT / "book" / "build.py")
    sys.modules["build"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["build"])
    yield {"build": sys.modules["build"]}
    del sys.modules["build"]


def pytest_generate_tests(metafunc):
    """A test that takes `notebook_path` runs once for every notebook of the repository."""
    if "notebook_path" in metafunc.fixturenames:
        paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
        metafunc.parametrize("notebook_path", paths, ids=[p.stem for p in paths])
