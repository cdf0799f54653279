"""Run one notebook under papermill; a copy is kept only when it is fit to be read.

    notebooks/X.ipynb ─ checked parameters ─▶ papermill ─▶ checks ─▶ <done>/X.ipynb     (only a good one)
                                                              └────▶ <failed>/X.ipynb   (what a failed run left)

papermill accepts parameters that no cell names and writes failed notebooks to the same place as good ones;
both would let a wrong page through, hence this file.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat

from chameleon_lite import files
from chameleon_lite.errors import RunFailed, unknown

TRACEBACK = re.compile(r"Traceback \(most recent call last\)")
INJECTED = "injected-parameters"  # papermill's tag for the cell it adds


def parameter_names(path: Path) -> set[str]:
    """Names assigned in the notebook's `parameters` cell."""
    import papermill

    with log_stderr(None):
        return set(papermill.inspect_notebook(str(path)))


def checked_parameters(path: Path, given: dict) -> dict:
    """`given` if the notebook names every one of them; UserError with the nearest name if not."""
    names = parameter_names(path)
    for name in given:
        if name not in names:
            raise unknown(f"parameter of {path.name}", name, names)
    return given


def run_notebook(
    source: Path, done: Path, failed: Path, parameters: dict, *, timeout: int, log: Path
) -> float:
    """Run `source` in its own folder; its copy goes to `done` and its seconds are returned, or to `failed` (RunFailed).

    `timeout` is seconds a cell; what the kernel writes to its own stderr goes to `log`.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    checked_parameters(source, parameters)
    done.unlink(missing_ok=True)  # an old copy must not be taken for this run's
    failed.unlink(missing_ok=True)
    failed.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=failed.parent) as folder:
        part = Path(folder) / source.name
        problem = ""
        try:
            with log_stderr(log):
                papermill.execute_notebook(
                    str(source),
                    str(part),
                    parameters,
                    kernel_name="python3",
                    cwd=str(source.parent),
                    progress_bar=False,
                    execution_timeout=timeout,
                )
        except PapermillExecutionError as error:
            problem = f"cell {error.cell_index}: {error.ename}: {error.evalue}"
        except CellTimeoutError:
            problem = f"a cell ran longer than {timeout} s"
        except DeadKernelError:
            problem = "the kernel died (out of memory?)"
        book = nbformat.read(part, as_version=4)
        problem = problem or "; ".join(faults(book))
        if problem:
            os.replace(part, failed)
            raise RunFailed(
                f"{source.name}: {problem} (the executed copy: {failed}; the kernel's messages: {log})"
            )
    seconds = float(book.metadata.papermill.duration)
    with files.atomic(done) as temporary:
        nbformat.write(presentable(book, parameters, seconds), temporary)
    return seconds


def faults(book: nbformat.NotebookNode) -> list[str]:
    """What makes an executed notebook unfit to publish, one line each; an empty list means fit."""
    found = []
    if book.metadata.get("papermill", {}).get("exception"):
        found.append("papermill marked the run as failed")
    for number, cell in enumerate(book.cells):
        for output in cell.get("outputs", []):
            text = output_text(output)
            if output.output_type == "error" or TRACEBACK.search(text):
                found.append(f"cell {number} shows an error")
            elif output.get("name") == "stderr":
                found.append(f"cell {number} writes to stderr: {text.strip()[:160]!r}")
            if "image/png" in output.get("data", {}) and not alt_text(cell):
                found.append(f"cell {number} draws a figure without metadata mystnb.image.alt")
    return found


def output_text(output: nbformat.NotebookNode) -> str:
    """The text of a stream or display output, '' where there is none."""
    text = output.get("text") or output.get("data", {}).get("text/plain") or ""
    return "".join(text)


def alt_text(cell: nbformat.NotebookNode) -> str:
    """The alternative text a cell gives its figure, '' where it gives none."""
    return cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")


def presentable(book: nbformat.NotebookNode, parameters: dict, seconds: float) -> nbformat.NotebookNode:
    """The executed notebook as the site shows it: no widget state, injected cell folded, its own run time on top."""
    book.metadata.pop("widgets", None)  # its viewer would be loaded from another host
    for cell in book.cells:
        tags = cell.metadata.get("tags", [])
        if INJECTED in tags and "hide-input" not in tags:
            cell.metadata["tags"] = [*tags, "hide-input"]
    given = ", ".join(f"{name} = {value}" for name, value in parameters.items())
    book.cells[0].source += f"\n\n*This page was computed in {seconds:.0f} s ({given}).*"
    return book


@contextmanager
def log_stderr(log: Path | None) -> Iterator[None]:
    """Send file descriptor 2 of this process and of the kernels it starts to `log` (None: nowhere)."""
    target = Path(os.devnull) if log is None else log
    target.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    kept = os.dup(2)
    with open(target, "w") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
