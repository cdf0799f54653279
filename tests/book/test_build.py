"""The book's machinery: what must stop a build does stop it, and what is staged is what was run."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from chameleon_lite.errors import RunFailed


def written(path, *code, parameters='profile = "smoke"'):
    """A runnable notebook at `path` with a parameters cell and the given code cells."""
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    book = new_notebook(cells=[new_markdown_cell("# Title"), first, *(new_code_cell(c) for c in code)])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)
    return path


@pytest.fixture
def run(book_tools, tmp_path):
    def call(*code, profile="smoke", timeout=60):
        source = written(tmp_path / "x.ipynb", *code)
        return book_tools["build"].run_notebook(source, tmp_path, profile, timeout)

    return call


@pytest.mark.filterwarnings("default")  # the notebook client warns about event loops on some versions
def test_a_good_run_is_published_with_its_parameters(run, book_tools, tmp_path):
    seconds = run("print(profile * 2)", profile="paper")
    book = nbformat.read(tmp_path / "executed" / "x.ipynb", as_version=4)
    assert book.cells[-1].outputs[0].text == "paperpaper\n" and seconds > 0
    (row,) = book_tools["build"].notebook_status([tmp_path / "executed" / "x.ipynb"]).to_dict("records")
    assert row | {"seconds": 0, "run on": ""} == {
        "notebook": "x",
        "profile": "paper",
        "seconds": 0,
        "code cells": 3,
        "run on": "",
    }
    (injected,) = [c for c in book.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert "remove-cell" in injected.metadata.tags
    assert "profile = paper" in book.cells[0].source
    assert not (tmp_path / "failed" / "x.ipynb").exists()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "code, says",
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import time; time.sleep(60)", "after 4 seconds"),
        ("import os; os._exit(9)", "Kernel died"),
        ("import sys; print('careful', file=sys.stderr)", "stderr"),
    ],
)
def test_a_bad_run_is_kept_apart_and_replaces_no_good_page(run, tmp_path, code, says):
    (tmp_path / "executed").mkdir()
    (tmp_path / "executed" / "x.ipynb").write_text("an older page")
    with pytest.raises(RunFailed, match=says):
        run(code, timeout=4)
    assert (tmp_path / "failed" / "x.ipynb").exists() and not (tmp_path / "executed" / "x.ipynb").exists()


OF_ITS_OWN = """
import multiprocessing, os
import pandas as pd

process = multiprocessing.get_context("spawn").Process(target=print)
process.start()
process.join()
own = [os.getsid(0) == os.getpid(), os.environ["MARK"], os.path.basename(os.getcwd())]
print(*own, process.exitcode, pd.get_option("display.max_columns"))
"""


@pytest.mark.filterwarnings("default")
def test_a_kernel_is_a_process_of_its_own_as_if_started_by_a_command(run, tmp_path, monkeypatch):
    for mark in ("first", "second"):  # the process it is a copy of was started before the second mark
        monkeypatch.setenv("MARK", mark)
        run(OF_ITS_OWN)
        book = nbformat.read(tmp_path / "executed" / "x.ipynb", as_version=4)
        assert book.cells[-1].outputs[-1].text == f"True {mark} {tmp_path.name} 0 20\n"


SHARED = """
import sys, threading, warnings
from importlib import import_module

warnings.simplefilter("error", UserWarning)
for name in sys.argv[1:]:
    import_module(name)
assert threading.active_count() == 1
"""


def test_what_kernels_share_exists_and_starts_no_thread(book_tools):
    """The fork server passes over a module that it cannot import, without a word."""
    command = [sys.executable, "-c", SHARED, *book_tools["build"].WORDS["preloaded"]]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0 and not run.stderr, run.stderr


@pytest.mark.parametrize(
    "output, says",
    [
        (new_output("error", ename="E", evalue="", traceback=[]), "shows an error"),
        (
            new_output("stream", name="stdout", text="Traceback (most recent call last):\n  …"),
            "shows an error",
        ),
        (new_output("display_data", data={"image/png": "aGk="}), "mystnb.image.alt"),
    ],
)
def test_faults_name_what_is_unfit(book_tools, output, says):
    book = new_notebook(cells=[new_code_cell("x", outputs=[output])])
    (fault,) = book_tools["build"].faults(book)
    assert says in fault
    book.cells[0].outputs = [new_output("stream", name="stdout", text="fine")]
    assert book_tools["build"].faults(book) == []


def test_api_page_names_every_module_with_code(book_tools, repository):
    page = book_tools["build"].api_page()
    for path in (p for package in book_tools["build"].PACKAGES for p in (repository / package).rglob("*.py")):
        if path.name not in ("__init__.py", *book_tools["build"].COMMANDS):
            name = ".".join(path.relative_to(repository).with_suffix("").parts)
            assert f".. automodule:: {name}\n" in page


def test_mathjax_comes_from_the_installed_package(book_tools, tmp_path):
    book_tools["build"].copy_mathjax(tmp_path / "mathjax")
    size = sum(p.stat().st_size for p in (tmp_path / "mathjax").rglob("*") if p.is_file())
    assert (tmp_path / "mathjax" / "tex-mml-chtml.js").exists() and 1e6 < size < 3e6


@pytest.mark.parametrize("name, built", [("step", True), ("stride", False)])
def test_a_page_shows_a_function_from_the_source_or_is_not_built(repository, tmp_path, name, built):
    source, site = tmp_path / "pages", tmp_path / "site"
    (source / "room").mkdir(parents=True)
    (source / "room" / "file.py").write_text("def before():\n    pass\n\n\ndef step():\n    return 42\n")
    (source / "index.md").write_text(f"# Page\n\n```{{from-source}} room/file.py {name}\nElsewhere.\n```\n")
    (source / "conf.py").write_text('extensions = ["myst_parser", "book_fixes"]\n')
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(source), str(site)]
    found = os.environ | {"PYTHONPATH": str(repository / "book" / "_ext")}
    run = subprocess.run(command, env=found, capture_output=True, text=True)
    assert (run.returncode == 0) == built, run.stderr
    if not built:
        assert f"Object named '{name}' not found" in run.stderr
        return
    page = (site / "index.html").read_text()
    assert "42" in page and "room/file.py" in page and "before" not in page and "Elsewhere" not in page


READ_ONLY = """
import numba.core.caching as caching
from pathlib import Path

for locator in caching.CacheImpl._locator_classes:
    if "UserProvided" not in locator.__name__:  # root may write anywhere
        locator.ensure_cache_path = lambda self: (_ for _ in ()).throw(OSError("read-only"))
import numba

source = Path("kernel.py")
source.write_text("import numba\\n\\n\\n@numba.njit(cache=True)\\ndef twice(x):\\n    return 2 * x\\n")
from kernel import twice

assert twice(2) == 4
"""


@pytest.mark.parametrize("ours", [True, False])
def test_maps_are_drawn_where_libraries_and_home_are_read_only(book_tools, tmp_path, ours):
    pytest.importorskip("numba")
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    environment["PYTHONPATH"] = str(tmp_path)
    name = "NUMBA_CACHE_DIR"
    assert Path(book_tools["build"].QUIET[name]).is_relative_to(book_tools["build"].OUT)
    if ours:
        environment[name] = str(tmp_path / "cache")
    command = [sys.executable, "-c", READ_ONLY]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (run.returncode == 0) == ours, run.stderr
    assert ours or "no locator available" in run.stderr
